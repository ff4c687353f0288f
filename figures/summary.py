"""The results of a gallery on one page: the text that the README shows between two marks.

Means over domains, one table per data set; FeDecider against local and against the best other
federated method, by the paired bootstrap of ``fedecider.results.compare``. Which of the others is
best is read off the same test users, which makes the comparison harder for FeDecider, not easier.
"""

import pandas as pd

from figures import aggregate, select, style
from figures.table import GAP, markdown_lines

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_METRIC = "ndcg@10"
_ABOUT = ["method", *select.METHOD, "seeds", "loss", "loss_sd"]


def numbers(metrics: pd.DataFrame, rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """One row per method: seeds, and mean and sd over seeds of the loss and each ranker's NDCG@10.

    Columns: method, label, family, color, order, seeds, loss, loss_sd, then per ranker of the frame
    "<protocol> <ranker>" and "<protocol> <ranker> sd"; NDCG in %, a mean over domains.
    """
    columns, seeds = {}, {}
    losses = aggregate.best_loss(rounds, dataset).groupby("method")["value"]
    columns["loss"], columns["loss_sd"] = losses.mean(), losses.std()
    for protocol, ranker in select.rankers(metrics, dataset):
        rows = select.scores(metrics, dataset, protocol, ranker)
        mean = aggregate.by_domain(rows[rows["metric"] == _METRIC])
        mean = mean[mean["domain"] == select.MEAN].set_index("method")
        name = f"{protocol} {ranker}"
        columns[name], columns[f"{name} sd"] = 100 * mean["mean"], 100 * mean["sd"]
        seeds |= mean["seeds"].to_dict()
    table = pd.DataFrame(columns)
    table.insert(0, "seeds", pd.Series(seeds, dtype=float))
    known = select.methods(metrics, rounds, names=list(table.index))
    table = table.reindex(known.index).rename_axis("method").reset_index()
    return select.describe(table, known)


def table(numbers: pd.DataFrame, dataset: str) -> list[str]:
    """Markdown of :func:`numbers`, the best of a column bold."""
    ranked = [c for c in numbers.columns if c not in _ABOUT and not c.endswith(" sd")]
    labels = ["validation loss", *(_label(name).removeprefix("whole ") for name in ranked)]
    heads, rows = [style.dataset_label(dataset), "seeds", *labels], []
    best = {"loss": round(numbers["loss"].min(), 3)}
    best |= {name: round(numbers[name].max(), 1) for name in ranked}
    for row in numbers.to_dict("records"):
        # What was not trained has no seed of its own.
        cells = [row["label"], GAP if pd.isna(row["loss"]) else f"{row['seeds']:.0f}"]
        for name, largest in best.items():
            value, digits = row[name], 3 if name == "loss" else 1
            sd = row["loss_sd" if name == "loss" else f"{name} sd"]
            if pd.isna(value):
                cells.append(GAP)
                continue
            text = f"{value:.{digits}f}"
            text = f"**{text}**" if round(value, digits) == largest else text
            cells.append(text if pd.isna(sd) else f"{text} ± {sd:.{digits}f}")
        rows.append(cells)
    return markdown_lines(heads, rows, "l" + "r" * (len(heads) - 1))


def against(compared: pd.DataFrame, numbers: pd.DataFrame, baseline: str = "local") -> list[str]:
    """The method of ``compared`` against a baseline and the best federated other, per ranker."""
    label = numbers.set_index("method")["label"]
    method = compared["method"].iloc[0]
    heads = [f"{label.get(method, method)}, NDCG@10", "against", "users", "difference", "95 %", "p"]
    out = []
    by_method = numbers.set_index("method")
    ranked = [c for c in numbers.columns if c not in _ABOUT and not c.endswith(" sd")]
    for name in ranked:
        protocol, ranker = name.split(" ", 1)
        rows = compared[(compared["protocol"] == protocol) & (compared["ranker"] == ranker)]
        others = select.federated(by_method, list(rows["against"]))
        best = select.best(by_method[name], others)
        for other in (baseline, best):
            for row in rows[rows["against"] == other].itertuples():
                low, high = (style.number(100 * x, 1, sign=True) for x in (row.low, row.high))
                known = "best federated: " if other == best else ""
                difference = style.number(100 * row.difference, 1, sign=True)
                cells = [_label(name), f"{known}{label[other]}", str(row.users), difference]
                out.append([*cells, f"{low} to {high}", f"{row.p:.2g}"])
    return markdown_lines(heads, out, "llrrlr")


def page(metrics: pd.DataFrame, rounds: pd.DataFrame, compared: pd.DataFrame) -> str:
    """The whole text, between the marks; "No finished run." without one."""
    lines = [BEGIN, ""]
    for dataset in sorted(set(metrics["dataset"])):
        rows = numbers(metrics, rounds, dataset)
        lines += [*table(rows, dataset), ""]
        of_dataset = compared[compared["dataset"] == dataset]
        if len(of_dataset):
            lines += [*against(of_dataset, rows), ""]
    if len(lines) == 2:
        lines += ["No finished run.", ""]
    return "\n".join([*lines, END]) + "\n"


def _label(name: str) -> str:
    """``sampled likelihood`` -> ``1 + 99, likelihood``."""
    protocol, ranker = name.split(" ", 1)
    short = select.protocol_label(protocol).removesuffix(" sampled candidates")
    return f"{short}, {ranker}"
