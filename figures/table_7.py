"""Table 7: backbones, from the sweep over them and the base runs of the same methods.

A name such as smollm2-135m@10 is that model cut to its first 10 blocks.
"""

from collections.abc import Sequence

import pandas as pd

from figures import frames, per_run, setting_rows, style
from figures.small_table import GAP, NO_RUN, Column, Table

_METRICS = ("hit@10", "ndcg@10")
_VALUES = (*_METRICS, "loss", "seconds")


def seconds_a_round(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """seconds by run (index): training of all clients, one after the other; mean over rounds."""
    frames.require(rounds, ("dataset", "run", "round", "seconds"), "rounds")
    rows = rounds[rounds["dataset"] == dataset].astype({"seconds": float})
    return rows.groupby(["run", "round"])[["seconds"]].sum().groupby("run").mean()


def backbones(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    methods: Sequence[str] = ("local", "fedavg", "fedecider"),
) -> Table:
    """The table of one data set: a block a backbone, the base's first, a row a method.

    The frames are those of ``fedecider.runs``, of sweeps/. Ranks are those among 1 + 99
    candidates, mean over domains; the validation loss is a client's lowest, mean over clients.
    Losses of backbones with different tokenizers cannot be compared. A method that a backbone lacks
    is a gap.
    """
    found = []
    for method in methods:
        swept = per_run.swept(configs, dataset, method, "backbone")
        found.append(swept.assign(method=method))
    swept = pd.concat(found, ignore_index=True).sort_values("base", ascending=False, kind="stable")
    rows = []
    for backbone in dict.fromkeys(swept["value"]) or [GAP]:
        of = swept[swept["value"] == backbone]
        block = setting_rows.marked(backbone_label(backbone), of["base"].any())
        for method in methods:
            key = (block, style.method_label(method), method, False)
            rows += setting_rows.entries(key, of[of["method"] == method])
    table = pd.DataFrame(rows, columns=[*setting_rows.KEYS, "run", "seed"], dtype=object)
    for values in (
        setting_rows.scores(metrics, dataset, "sampled", _METRICS, "likelihood"),
        setting_rows.losses(rounds, dataset),
        seconds_a_round(rounds, dataset),
    ):
        table = setting_rows.attach(table, values)
    out = setting_rows.over_seeds(table, _VALUES)
    return Table(
        label=f"backbones-{dataset}",
        caption=f"{style.dataset_label(dataset)}: backbones, "
        f"{frames.PROTOCOL_LABELS['sampled']} (ranker: likelihood), mean over domains; loss: "
        "lowest validation loss, mean over clients; a round: training seconds of all clients; "
        "± sample standard deviation over seeds; best value of a backbone in bold.",
        columns=(
            Column("block", "Backbone", align="l"),
            Column("setting", "Method", align="l"),
            Column("seeds", "Seeds"),
            Column("hit@10", "Hit@10, %", ".2f", 100, "hit@10_sd", best="max"),
            Column("ndcg@10", "NDCG@10, %", ".2f", 100, "ndcg@10_sd", best="max"),
            Column("loss", "Loss, nats a token", ".4f", 1, "loss_sd", best="min"),
            Column("seconds", "s a round", ".1f", 1, "seconds_sd"),
        ),
        rows=out.drop(columns="base"),
        notes=() if out["runs"].any() else (NO_RUN,),
        block="block",
    )


def backbone_label(backbone: str) -> str:
    """``smollm2-135m@10`` -> ``smollm2-135m, first 10 blocks``; a folder by its name."""
    name, at, blocks = setting_rows.value_label(backbone).partition("@")
    return f"{name}, first {blocks} blocks" if at else name
