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

from figures import frames, style

GAP = "–"
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

    def printed(self) -> dict[tuple[str, str, str], tuple[str, str, bool]]:
        """(method, domain, metric) -> mean and sd as printed (%, "" for none), and bold."""
        cells = {}
        for row in self.tidy.itertuples():
            mean = "" if pd.isna(row.mean) else f"{100 * row.mean:.{self.digits}f}"
            sd = "" if pd.isna(row.sd) else f"{100 * row.sd:.{self.digits}f}"
            cells[row.method, row.domain, row.metric] = (mean, sd)
        best = {
            column: max((float(cells[m, *column][0] or "nan") for m in self.methods), key=_low_nan)
            for column in self.columns
        }
        return {
            (m, d, k): (mean, sd, mean != "" and float(mean) == best[d, k])
            for (m, d, k), (mean, sd) in cells.items()
            if (d, k) in best
        }

    def seeds(self, method: str) -> str:
        """How many seeds a row's numbers are over: "3", "1–3", a dash where seeds mean nothing."""
        rows = self.tidy[(self.tidy["method"] == method) & (self.tidy["seeds"] > 0)]
        if method == "popularity" or rows.empty:
            return GAP
        low, high = rows["seeds"].min(), rows["seeds"].max()
        return f"{low}" if low == high else f"{low}–{high}"


def _low_nan(value: float) -> float:
    return float("-inf") if value != value else value


def results_table(
    metrics: pd.DataFrame,
    ranks: pd.DataFrame | None = None,
    *,
    dataset: str,
    protocol: str,
    ranker: str | None = None,
    methods: Sequence[str] = frames.METHODS,
    names: Sequence[str] = ("hit@5", "hit@10", "ndcg@5", "ndcg@10"),
    domains: Sequence[str] | None = None,
) -> ResultsTable:
    """The table of one data set under one protocol.

    ``metrics`` is the frame of ``fedecider.runs.metrics``; ``ranks``, where given, that of
    ``fedecider.runs.ranks``, from which it is checked that all methods ranked for the same users.
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
        notes.append("No finished run.")
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
        & ((ranks["ranker"] == ranker) | (ranks["method"] == "popularity"))
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
    printed = table.printed()
    data = {("", "Seeds"): [table.seeds(method) for method in table.methods]}
    for domain, metric in table.columns:
        key = (style.domain_label(domain), style.metric_label(metric))
        data[key] = [_plain(printed[m, domain, metric]) for m in table.methods]
    frame = pd.DataFrame(data, index=[style.method_label(m) for m in table.methods])
    frame.columns = pd.MultiIndex.from_tuples(data)
    return frame


def to_styler(table: ResultsTable) -> Styler:
    """:func:`to_frame` for a notebook, best cells bold, the caption above."""
    printed, frame = table.printed(), to_frame(table)
    bold = pd.DataFrame("", index=frame.index, columns=frame.columns)
    for c, (domain, metric) in enumerate(table.columns, start=1):
        for r, method in enumerate(table.methods):
            bold.iloc[r, c] = "font-weight: bold" if printed[method, domain, metric][2] else ""
    name = f"{table.dataset}-{table.protocol}"  # a fixed id: equal tables give equal HTML
    caption = " ".join([table.caption, *table.notes])
    return Styler(frame, uuid=name).apply(lambda _: bold, axis=None).set_caption(caption)


def to_markdown(table: ResultsTable, width: int = 8) -> str:
    """GitHub Markdown, in blocks of whole domains with at most ``width`` columns of numbers."""
    printed = table.printed()
    lines = [table.caption, ""]
    for block in _blocks(table, width):
        head = [f"{style.domain_label(d)} {style.metric_label(k)}" for d, k in block]
        lines.append("| " + " | ".join(["Method", "Seeds", *head]) + " |")
        lines.append("|" + "|".join(["---", *["---:"] * (1 + len(block))]) + "|")
        for m in table.methods:
            cells = [_plain(printed[m, d, k], "**") for d, k in block]
            lines.append("| " + " | ".join([style.method_label(m), table.seeds(m), *cells]) + " |")
        lines.append("")
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def to_latex(table: ResultsTable, width: int = 8) -> str:
    """A ``table*`` with one booktabs ``tabular`` for each block of whole domains."""
    printed = table.printed()
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{_tex(table.caption)}}}",
        f"\\label{{tab:{table.dataset}-{table.protocol}}}",
    ]
    for number, block in enumerate(_blocks(table, width)):
        if number:
            lines.append("\\par\\medskip")
        groups = list(dict.fromkeys(domain for domain, _ in block))
        lines.append(f"\\begin{{tabular}}{{lr{'r' * len(block)}}}")
        lines.append("\\toprule")
        if groups:
            each = len(block) // len(groups)
            spans = [
                f"\\multicolumn{{{each}}}{{c}}{{{_tex(style.domain_label(g))}}}" for g in groups
            ]
            rules = [
                f"\\cmidrule(lr){{{3 + i * each}-{2 + (i + 1) * each}}}" for i in range(len(groups))
            ]
            lines.append(" & ".join(["", "", *spans]) + " \\\\")
            lines.append("".join(rules))
        lines.append(
            " & ".join(["Method", "Seeds", *(style.metric_label(k) for _, k in block)]) + " \\\\"
        )
        lines.append("\\midrule")
        for m in table.methods:
            cells = [_math(printed[m, d, k]) for d, k in block]
            seeds = table.seeds(m).replace("–", "--")
            lines.append(" & ".join([_tex(style.method_label(m)), seeds, *cells]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}"]
    if table.notes:
        lines.append(f"\\par\\smallskip\\footnotesize {_tex(' '.join(table.notes))}")
    lines.append("\\end{table*}")
    return "\n".join(lines) + "\n"


def write(table: ResultsTable, folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """Write ``<folder>/<name>.csv``, ``.md`` and ``.tex``, each whole or not at all."""
    folder = Path(folder)
    return (
        style.write(folder / f"{name}.csv", to_csv(table)),
        style.write(folder / f"{name}.md", to_markdown(table)),
        style.write(folder / f"{name}.tex", to_latex(table)),
    )


def _blocks(table: ResultsTable, width: int) -> list[list[tuple[str, str]]]:
    """The columns cut into blocks of whole domains; one empty block if there are none."""
    domains = max(width // len(table.metrics), 1)
    step = domains * len(table.metrics)
    columns = table.columns
    return [columns[i : i + step] for i in range(0, len(columns), step)] or [[]]


def _plain(cell: tuple[str, str, bool], mark: str = "") -> str:
    mean, sd, bold = cell
    if not mean:
        return GAP
    return (f"{mark}{mean}{mark}" if bold else mean) + (f" ± {sd}" if sd else "")


def _math(cell: tuple[str, str, bool]) -> str:
    mean, sd, bold = cell
    if not mean:
        return "--"
    spread = f"{{\\scriptsize$\\,\\pm\\,${sd}}}" if sd else ""
    return (f"\\textbf{{{mean}}}" if bold else mean) + spread


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", "\\textbackslash "),
        ("&", "\\&"),
        ("%", "\\%"),
        ("_", "\\_"),
        ("#", "\\#"),
        ("$", "\\$"),
        ("±", "$\\pm$"),
        ("–", "--"),
    ):
        text = text.replace(plain, escaped)
    return text
