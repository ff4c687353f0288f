r"""Tables 2 and 3: every method on every domain, mean and spread over seeds.

One table holds one data set under one protocol: whole-catalogue ranks and ranks among 1 + 99
candidates measure different things and never share a table. The best value of a column is bold
(as printed: values that print alike are all bold), popularity's line included: a method that does
not beat it has not learned. What is printed is a choice of metrics, the mean over domains before
the domains, so that it is seen where a wide table scrolls; the CSV file holds all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from figures import frames, small_table, style
from figures.small_table import GAP, NO_RUN, Column

_TIDY = ("method", "domain", "metric", "mean", "sd", "seeds", "users", "runs")


@dataclass(frozen=True)
class ResultsTable:
    """One data set under one protocol, ready to be written or shown.

    ``tidy`` has one row for each method, domain (and "mean") and metric of ``frames.METRICS``, gaps
    included: method, domain, metric, mean and sd (0..1), seeds, users, runs (folders, joined by
    ";"). ``metrics`` are those printed; ``notes`` are sentences that belong under the table.
    """

    dataset: str
    protocol: str
    ranker: str
    methods: tuple[str, ...]
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    tidy: pd.DataFrame
    notes: tuple[str, ...]
    digits: int = 2

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(domain, metric) from left to right, the mean over domains first."""
        groups = [frames.MEAN, *self.domains] if self.domains else []
        return [(domain, metric) for domain in groups for metric in self.metrics]

    @property
    def caption(self) -> str:
        """What the numbers are, in one sentence."""
        several = self.tidy["sd"].notna().any()
        spread = "mean ± sample standard deviation over seeds" if several else "one seed"
        return (
            f"{style.dataset_label(self.dataset)}, {frames.PROTOCOL_LABELS[self.protocol]} "
            f"(ranker: {self.ranker}), in %; {spread}; best value of a column in bold."
        )

    def printed(self, width: int = 8) -> small_table.Table:
        """Methods as rows, the seeds, and the metrics under their domains as columns.

        ``width`` is the largest number of metrics side by side; domains are never cut.
        """
        found = self.tidy.set_index(["domain", "metric", "method"])
        rows: dict[str, list] = {
            "method": [style.method_label(method) for method in self.methods],
            "seeds": [self.seeds(method) for method in self.methods],
        }
        columns = [Column("method", "Method", align="l"), Column("seeds", "Seeds")]
        for domain, metric in self.columns:
            name, label = f"{domain} {metric}", style.metric_label(metric)
            group, form = style.domain_label(domain), f".{self.digits}f"
            for part, values in (("mean", name), ("sd", f"{name} sd")):
                rows[values] = [found.at[(domain, metric, m), part] for m in self.methods]
            columns.append(Column(name, label, form, 100.0, f"{name} sd", group, best="max"))
        label = f"{self.dataset}-{self.protocol}"
        return small_table.Table(
            label,
            self.caption,
            tuple(columns),
            pd.DataFrame(rows),
            self.notes,
            width=width,
            sources="",  # the CSV file is another
        )

    def seeds(self, method: str) -> str:
        """How many seeds a row's numbers are over: "3", "1–3", a dash where seeds mean nothing."""
        rows = self.tidy[(self.tidy["method"] == method) & (self.tidy["seeds"] > 0)]
        if method in frames.NO_MODEL or rows.empty:
            return GAP
        low, high = rows["seeds"].min(), rows["seeds"].max()
        return f"{low}" if low == high else f"{low}–{high}"


def results_table(
    metrics: pd.DataFrame,
    ranks: pd.DataFrame | None = None,
    compared: pd.DataFrame | None = None,
    *,
    dataset: str,
    protocol: str,
    ranker: str | None = None,
    methods: Sequence[str] = frames.EXPECTED,
    names: Sequence[str] = ("hit@5", "hit@10", "ndcg@5", "ndcg@10"),
    domains: Sequence[str] | None = None,
) -> ResultsTable:
    """The table of one data set under one protocol.

    ``metrics`` is the frame of ``fedecider.runs.metrics``; ``ranks``, where given, that of
    ``fedecider.runs.ranks``, from which it is checked that all methods ranked for the same users;
    ``compared`` that of ``fedecider.runs.compare``, from which a note tells how far the method is
    from the best of the others, read off the same test users.
    ``methods`` are expected (a gap row where no run is found); others that the runs hold follow.
    ``names`` are the metrics printed; ``tidy`` and the CSV file hold all. sd is the sample standard
    deviation over seeds. The mean over domains is left out for a method that lacks a domain. Raises
    ValueError as :func:`figures.frames.scores` does, and for an unknown metric.
    """
    unknown = [name for name in names if name not in frames.METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown; expected some of {frames.METRICS}")
    ranker = ranker or frames.RANKERS.get(protocol)
    rows = frames.scores(metrics, dataset, protocol, ranker)
    if domains is None:
        domains = sorted(set(rows["domain"]))
    rows = rows[rows["domain"].isin(domains)]
    methods = frames.ordered([*methods, "popularity", *rows["method"]])
    groups = [*domains, frames.MEAN] if len(domains) else []
    index = pd.MultiIndex.from_product(
        [methods, groups, frames.METRICS], names=["method", "domain", "metric"]
    )
    tidy = frames.summary(rows, domains).set_index(["method", "domain", "metric"]).reindex(index)
    tidy = tidy.reset_index().astype({"mean": float, "sd": float})
    tidy[["seeds", "users"]] = tidy[["seeds", "users"]].fillna(0).astype(int)
    tidy["runs"] = tidy["runs"].astype(object).where(tidy["runs"].notna(), "")
    tidy = tidy[list(_TIDY)]
    notes = _notes(rows, ranks, dataset, protocol, ranker, methods, domains)
    if compared is not None and len(compared):
        notes += _against_best(tidy, compared, dataset, protocol, ranker)
    return ResultsTable(
        dataset, protocol, ranker, tuple(methods), tuple(domains), tuple(names), tidy, notes
    )


def _notes(
    rows: pd.DataFrame,
    ranks: pd.DataFrame | None,
    dataset: str,
    protocol: str,
    ranker: str,
    methods: Sequence[str],
    domains: Sequence[str],
) -> tuple[str, ...]:
    notes = []
    if rows.empty:
        notes.append(NO_RUN)
    else:
        without = [style.method_label(m) for m in methods if m not in set(rows["method"])]
        if without:
            notes.append(f"Not run: {', '.join(without)}.")
    for domain in domains:
        counts = rows[rows["domain"] == domain].groupby("method")["users"]
        users = {method: sorted(set(values)) for method, values in counts}
        if len({count for values in users.values() for count in values}) > 1:
            each = ", ".join(
                f"{style.method_label(m)} {'/'.join(map(str, users[m]))}"
                for m in methods
                if m in users
            )
            notes.append(f"{style.domain_label(domain)}: test users differ ({each}).")
    if ranks is not None and len(ranks):
        notes += _other_users(ranks, dataset, protocol, ranker, methods, domains)
    return tuple(notes)


def _against_best(
    tidy: pd.DataFrame, compared: pd.DataFrame, dataset: str, protocol: str, ranker: str
) -> tuple[str, ...]:
    """A sentence about the best other method, and one about the best other federated one."""
    rows = compared[
        (compared["dataset"] == dataset)
        & (compared["protocol"] == protocol)
        & (compared["ranker"] == ranker)
    ]
    notes = []
    for metric, found in rows.groupby("metric"):
        means = tidy[(tidy["domain"] == frames.MEAN) & (tidy["metric"] == metric)]
        means, found = means.set_index("method")["mean"], found.set_index("against")
        federated = [method for method in frames.FEDERATED if method in found.index]
        for kind, among in (("other", found.index), ("other federated", federated)):
            best = frames.best(means, among)
            if best is None:
                continue
            row = found.loc[best]
            change, low, high = (
                style.number(100 * row[name], 1, sign=True)
                for name in ("difference", "low", "high")
            )
            notes.append(
                f"{style.method_label(row['method'])} against the best {kind} method, "
                f"{style.method_label(best)}: {change} points of "
                f"{style.metric_label(metric)} (95 %: {low} to {high}; p = {row['p']:.2g}, paired "
                f"bootstrap over {row['users']} users)."
            )
    return tuple(notes)


def _other_users(
    ranks: pd.DataFrame,
    dataset: str,
    protocol: str,
    ranker: str,
    methods: Sequence[str],
    domains: Sequence[str],
) -> list[str]:
    """A sentence for each domain in which some method ranked for other users than the first."""
    columns = ("dataset", "method", "seed", "domain", "protocol", "ranker", "user_id")
    frames.require(ranks, columns, "ranks")
    kept = ranks[
        (ranks["dataset"] == dataset)
        & (ranks["protocol"] == protocol)
        & ((ranks["ranker"] == ranker) | ranks["method"].isin(frames.NO_MODEL))
    ]
    notes = []
    for domain in domains:
        of_domain = kept[kept["domain"] == domain]
        users = {
            key: frozenset(ids) for key, ids in of_domain.groupby(["method", "seed"])["user_id"]
        }
        if len(set(users.values())) > 1:
            shared = len(frozenset.intersection(*users.values()))
            every = len(frozenset.union(*users.values()))
            notes.append(
                f"{style.domain_label(domain)}: not all methods ranked for the same users "
                f"({shared} of {every} users are shared); the column is no fair comparison."
            )
    return notes


def to_csv(table: ResultsTable) -> str:
    """One line a number (0..1, full precision) of every metric, gaps as empty cells."""
    tidy = table.tidy.assign(dataset=table.dataset, protocol=table.protocol, ranker=table.ranker)
    return tidy.to_csv(index=False, lineterminator="\n")


def to_frame(table: ResultsTable) -> pd.DataFrame:
    """The printed cells: methods as rows, (domain, metric) as columns, and the seeds."""
    return small_table.to_frame(table.printed())


def to_styler(table: ResultsTable) -> Styler:
    """:func:`to_frame` for a notebook, best cells bold, the caption above."""
    return small_table.to_styler(table.printed())


def to_markdown(table: ResultsTable, width: int = 8) -> str:
    """GitHub Markdown, in blocks of whole domains with at most ``width`` columns of numbers."""
    return small_table.to_markdown(table.printed(width))


def to_latex(table: ResultsTable, width: int = 8) -> str:
    """A ``table*`` with one booktabs ``tabular`` for each block of whole domains."""
    return small_table.to_latex(table.printed(width))


def write(table: ResultsTable, folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """Write ``<folder>/<name>.csv``, ``.md`` and ``.tex``, each whole or not at all."""
    return small_table.write(table.printed(8), folder, name, csv=to_csv(table))
