"""The results of a gallery on one page: the text that the README shows between two marks.

Means over domains, one table a data set; FeDecider against local and against the best other
federated method, by the paired bootstrap of ``fedecider.runs.compare``. Which of the others is best
is read off the same test users, which makes the comparison harder for FeDecider, not easier.
"""

import pandas as pd

from figures import frames, per_run, style
from figures.small_table import GAP

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_RANKERS = (("catalogue", "grounding"), ("catalogue", "trie"), ("sampled", "likelihood"))
_METRIC = "ndcg@10"


def numbers(metrics: pd.DataFrame, rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """One row a method: seeds, and mean and sd over seeds of the loss and of each ranker's NDCG@10.

    Columns: method, seeds, loss, loss_sd, <ranker>, <ranker>_sd; NDCG in %, a mean over domains.
    """
    columns, seeds = {}, {}
    losses = per_run.best_loss(rounds, dataset).groupby("method")["value"]
    columns["loss"], columns["loss_sd"] = losses.mean(), losses.std()
    for protocol, ranker in _RANKERS:
        rows = frames.scores(metrics, dataset, protocol, ranker)
        rows = rows[rows["metric"] == _METRIC]
        mean = frames.summary(rows)
        mean = mean[mean["domain"] == frames.MEAN].set_index("method")
        columns[ranker], columns[f"{ranker}_sd"] = 100 * mean["mean"], 100 * mean["sd"]
        seeds |= mean["seeds"].to_dict()
    table = pd.DataFrame(columns)
    table.insert(0, "seeds", pd.Series(seeds))
    return table.reindex(frames.ordered(table.index)).rename_axis("method").reset_index()


def table(found: pd.DataFrame, dataset: str) -> list[str]:
    """Markdown of :func:`numbers`, the best of a column bold."""
    heads = ["loss", *(ranker for _, ranker in _RANKERS)]
    labels = ["validation loss", "catalogue, grounding", "catalogue, trie", "1 + 99, likelihood"]
    lines = [f"| {style.dataset_label(dataset)} | seeds | " + " | ".join(labels) + " |"]
    lines.append("|---|---:" + "|---:" * len(heads) + "|")
    digits = {head: 3 if head == "loss" else 1 for head in heads}
    best = {h: round(found[h].min() if h == "loss" else found[h].max(), digits[h]) for h in heads}
    for row in found.to_dict("records"):
        plain = row["method"] in ("zero-shot", *frames.NO_MODEL)
        cells = [style.method_label(row["method"]), GAP if plain else f"{row['seeds']:.0f}"]
        for head in heads:
            value, sd = row[head], row[f"{head}_sd"]
            if pd.isna(value):
                cells.append(GAP)
                continue
            text = f"{value:.{digits[head]}f}"
            text = f"**{text}**" if round(value, digits[head]) == best[head] else text
            cells.append(text if pd.isna(sd) else f"{text} ± {sd:.{digits[head]}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def against(compared: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """FeDecider against local and the best other federated method, a line a ranker."""
    lines = ["| FeDecider, NDCG@10 | against | users | difference | 95 % | p |"]
    lines.append("|---|---|---:|---:|---|---:|")
    by_method = found.set_index("method")
    for protocol, ranker in _RANKERS:
        rows = compared[(compared["protocol"] == protocol) & (compared["ranker"] == ranker)]
        others = [method for method in frames.FEDERATED if method in set(rows["against"])]
        best = frames.best(by_method[ranker], others)
        for other in ("local", best):
            for row in rows[rows["against"] == other].itertuples():
                label = f"{frames.PROTOCOL_LABELS[protocol].split(' sampled')[0]}, {ranker}"
                low, high = (style.number(100 * x, 1, sign=True) for x in (row.low, row.high))
                known = "best federated: " if other == best else ""
                lines.append(
                    f"| {label} | {known}{style.method_label(other)} | {row.users} "
                    f"| {style.number(100 * row.difference, 1, sign=True)} | {low} to {high} "
                    f"| {row.p:.2g} |"
                )
    return lines


def page(metrics: pd.DataFrame, rounds: pd.DataFrame, compared: pd.DataFrame) -> str:
    """The whole text, between the marks; "No finished run." without one."""
    lines = [BEGIN, ""]
    for dataset in sorted(set(metrics["dataset"])):
        found = numbers(metrics, rounds, dataset)
        lines += [*table(found, dataset), ""]
        mine = compared[compared["dataset"] == dataset]
        if len(mine):
            lines += [*against(mine, found), ""]
    if len(lines) == 2:
        lines += ["No finished run.", ""]
    return "\n".join([*lines, END]) + "\n"
