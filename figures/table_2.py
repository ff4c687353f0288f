r"""Tables 2 and 3: every method on every domain, mean and spread over seeds.

One table per protocol and ranker of the frame: whole-catalogue ranks and ranks among 1 + 99
candidates measure different things and never share a table. The best value of a column is bold
(as printed: values that print alike are all bold), popularity's included: a method that does not
beat it has not learned. What is printed is a choice of metrics, the mean over domains before the
domains, so that it is seen where a wide table scrolls; the CSV file holds all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from figures import aggregate, select, style
from figures.table import GAP, NO_RUN, Column, Table, to_styler
from figures.table import write as write_table

NAMES = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
_KEYS = ["method", "domain", "metric"]
_ABOUT = ["dataset", "protocol", "ranker"]
_COUNTS = ["mean", "sd", "seeds", "users", "runs"]


def numbers(
    metrics: pd.DataFrame,
    *,
    dataset: str,
    protocol: str,
    ranker: str | None = None,
    expected: Sequence[str] = (),
    domains: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per method, domain (and "mean") and metric of ``select.METRICS``, gaps included.

    Columns: method, label, family, color, order, domain, metric, mean and sd (0..1), seeds, users,
    runs (folders, joined by ";"), dataset, protocol, ranker. ``metrics`` is the frame of
    ``fedecider.results.metrics``. ``expected`` methods are a gap where no run holds them. sd is the
    sample standard deviation over seeds. The mean over domains is left out for a method that lacks
    a domain. Raises ValueError as :func:`figures.select.scores` does.
    """
    ranker = select.ranker_of(metrics, dataset, protocol) if ranker is None else ranker
    rows = select.scores(metrics, dataset, protocol, ranker)
    if domains is None:
        domains = sorted(set(rows["domain"]))
    rows = rows[rows["domain"].isin(domains)]
    known = select.methods(metrics, names=[*expected, *rows["method"]])
    groups = [*domains, select.MEAN]
    index = pd.MultiIndex.from_product([known.index, groups, select.METRICS], names=_KEYS)
    out = aggregate.by_domain(rows, domains).set_index(_KEYS).reindex(index).reset_index()
    out = out.astype({"mean": float, "sd": float})
    out[["seeds", "users"]] = out[["seeds", "users"]].fillna(0).astype(int)
    out["runs"] = out["runs"].astype(object).where(out["runs"].notna(), "")
    out = select.describe(out[[*_KEYS, *_COUNTS]], known)
    return out.assign(dataset=dataset, protocol=protocol, ranker=ranker)


def table(
    numbers: pd.DataFrame,
    *,
    dataset: str,
    names: Sequence[str] = NAMES,
    notes: Sequence[str] = (),
    digits: int = 2,
    width: int = 8,
) -> Table:
    """Methods as rows, the seeds, and the metrics ``names`` under their domains as columns.

    ``notes`` follow those on methods that were not run and on test users that differ. ``width`` is
    the largest number of metrics side by side; domains are never cut. Raises ValueError for an
    unknown metric.
    """
    unknown = [name for name in names if name not in select.METRICS]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown; expected some of {select.METRICS}")
    known = select.methods(numbers)
    protocol, ranker = (numbers[name].iloc[0] if len(numbers) else "" for name in _ABOUT[1:])
    values = numbers.set_index(["domain", "metric", "method"])
    rows: dict[str, list] = {
        "method": list(known["label"]),
        "seeds": [_seeds(numbers[numbers["method"] == method]) for method in known.index],
    }
    columns = [Column("method", "Method", align="l"), Column("seeds", "Seeds")]
    domains = [domain for domain in dict.fromkeys(numbers["domain"]) if domain != select.MEAN]
    for domain in [select.MEAN, *domains] if len(numbers) else []:
        for metric in names:
            name, label = f"{domain} {metric}", style.metric_label(metric)
            group, number_format = style.domain_label(domain), f".{digits}f"
            for part, column in (("mean", name), ("sd", f"{name} sd")):
                rows[column] = [values.at[(domain, metric, m), part] for m in known.index]
            columns.append(
                Column(name, label, number_format, 100.0, f"{name} sd", group, best="max")
            )
    spread = "mean ± sample standard deviation over seeds"
    spread = spread if numbers["sd"].notna().any() else "one seed"
    how = f", {select.protocol_label(protocol)} (ranker: {ranker})" if len(numbers) else ""
    return Table(
        label="-".join(filter(None, (dataset, protocol, ranker))),
        caption=f"{style.dataset_label(dataset)}{how}, in %; {spread}; best value of a column in "
        "bold.",
        columns=tuple(columns),
        rows=pd.DataFrame(rows),
        notes=(*_gaps(numbers), *notes),
        width=width,
        sources="",  # named row by row in the CSV file
        numbers=numbers,
    )


def tables(
    metrics: pd.DataFrame,
    ranks: pd.DataFrame,
    compared: pd.DataFrame,
    *,
    dataset: str,
    names: Sequence[str] = NAMES,
    expected: Sequence[str] = (),
) -> dict[str, Table]:
    """All tables of one data set by name ("<protocol>_<ranker>"), as the frames hold them.

    ``ranks`` is the frame of ``fedecider.results.ranks``, from which it is checked that all methods
    ranked for the same users; ``compared`` that of ``fedecider.results.compare``, from which a note
    tells how far the method is from the best of the others, read off the same test users. Without a
    run there is one table, named "", that says so.
    """
    out = {}
    for protocol, ranker in select.rankers(metrics, dataset):
        about = {"dataset": dataset, "protocol": protocol, "ranker": ranker}
        rows = numbers(metrics, expected=expected, **about)
        notes = [*other_users(ranks, rows), *best_others(rows, compared)]
        out[f"{protocol}_{ranker}"] = table(rows, dataset=dataset, names=names, notes=notes)
    if not out:
        none = numbers(metrics[:0], dataset=dataset, protocol="catalogue", expected=expected)
        out[""] = table(none, dataset=dataset, names=names)
    return out


def write(made: dict[str, Table], folder: str | Path, name: str) -> list[Styler]:
    """Write :func:`tables` as ``<folder>/<name>_<its name>.*``; the tables for a notebook."""
    for part, table in made.items():
        write_table(table, folder, "_".join(filter(None, (name, part.replace(" ", "_")))))
    return [to_styler(table) for table in made.values()]


def best_others(numbers: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """A sentence about the best other method, and one about the best other federated one."""
    rows, known = _matching(compared, numbers), select.methods(numbers)
    notes = []
    for metric, of_metric in rows.groupby("metric"):
        means = numbers[(numbers["domain"] == select.MEAN) & (numbers["metric"] == metric)]
        means, of_metric = means.set_index("method")["mean"], of_metric.set_index("against")
        federated = select.federated(known, list(of_metric.index))
        for kind, among in (("other", of_metric.index), ("other federated", federated)):
            best = select.best(means, among)
            if best is None:
                continue
            row = of_metric.loc[best]
            change, low, high = (
                style.number(100 * row[name], 1, sign=True)
                for name in ("difference", "low", "high")
            )
            notes.append(
                f"{known['label'].get(row['method'], row['method'])} against the best {kind} "
                f"method, {known.at[best, 'label']}: {change} points of "
                f"{style.metric_label(metric)} (95 %: {low} to {high}; p = {row['p']:.2g}, paired "
                f"bootstrap over {row['users']} users)."
            )
    return notes


def other_users(ranks: pd.DataFrame, numbers: pd.DataFrame) -> list[str]:
    """A sentence for each domain in which some method ranked for other users than the first."""
    columns = ("dataset", "method", "family", "seed", "domain", "protocol", "ranker", "user_id")
    select.require(ranks, columns, "ranks")
    kept, notes = _matching(ranks, numbers), []
    for domain in dict.fromkeys(numbers["domain"]):
        by_run = kept[kept["domain"] == domain].groupby(["method", "seed"])["user_id"]
        users = {key: frozenset(ids) for key, ids in by_run}
        if len(set(users.values())) > 1:
            shared = len(frozenset.intersection(*users.values()))
            every = len(frozenset.union(*users.values()))
            notes.append(
                f"{style.domain_label(domain)}: not all methods ranked for the same users "
                f"({shared} of {every} users are shared); the column is no fair comparison."
            )
    return notes


def _matching(frame: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Rows of the numbers' data set, protocol and ranker, and of what ranks by itself."""
    if numbers.empty:
        return frame[:0]
    dataset, protocol, ranker = numbers[_ABOUT].iloc[0]
    by = frame["ranker"] == ranker
    if "family" in frame:
        by |= frame["family"] == select.NO_MODEL
    return frame[(frame["dataset"] == dataset) & (frame["protocol"] == protocol) & by]


def _gaps(numbers: pd.DataFrame) -> list[str]:
    """Sentences on methods that were not run, and on domains whose numbers of users differ."""
    ran = numbers[numbers["seeds"] > 0]
    if ran.empty:
        return [NO_RUN]
    known = select.methods(numbers)["label"]
    without = [label for method, label in known.items() if method not in set(ran["method"])]
    notes = [f"Not run: {', '.join(without)}."] if without else []
    for domain, rows in ran[ran["domain"] != select.MEAN].groupby("domain", sort=False):
        users = rows.groupby("label", sort=False)["users"].max()
        if users.nunique() > 1:
            each = ", ".join(f"{label} {count}" for label, count in users.items())
            notes.append(f"{style.domain_label(domain)}: test users differ ({each}).")
    return notes


def _seeds(rows: pd.DataFrame) -> str:
    """How many seeds a row's numbers are over: "3", "1–3", a dash where seeds mean nothing."""
    seeds = rows.loc[rows["seeds"] > 0, "seeds"]
    if seeds.empty or (rows["family"] == select.NO_MODEL).any():
        return GAP
    low, high = seeds.min(), seeds.max()
    return f"{low}" if low == high else f"{low}–{high}"
