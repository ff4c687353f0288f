"""Table 7: backbones, from the sweep over them and the base runs of the same methods.

A name such as smollm2-135m@10 is that model cut to its first 10 blocks.
"""

from collections.abc import Sequence

import pandas as pd

from figures import select, style, sweeps
from figures.table import GAP, NO_RUN, Column, Table

_METRICS = ("hit@10", "ndcg@10")
_VALUES = (*_METRICS, "loss", "seconds")


def seconds_per_round(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """seconds by run (index): training of all clients, one after the other; mean over rounds."""
    select.require(rounds, ("dataset", "run", "round", "seconds"), "rounds")
    rows = rounds[rounds["dataset"] == dataset].astype({"seconds": float})
    return rows.groupby(["run", "round"])[["seconds"]].sum().groupby("run").mean()


def numbers(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    protocol: str = "sampled",
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per backbone and method, the base's backbone first.

    Columns: block (the backbone), setting (the method's label), method, hit@10, ndcg@10 (0..1, mean
    over domains), loss (a client's lowest validation loss, nats per token, mean over clients),
    seconds (per round), each with "_sd", seeds, runs. The frames are those of
    ``fedecider.results``, of sweeps/. ``methods`` default to those that were swept over backbones;
    one that a backbone lacks is a gap. Losses of backbones with different tokenizers cannot be
    compared.
    """
    known = select.methods(configs, names=methods)
    swept = {name: sweeps.swept(configs, dataset, name, "model") for name in known.index}
    if methods is None:
        known = known[[not swept[name]["base"].all() for name in known.index]]
    parts = [swept[name].assign(method=name) for name in known.index]
    parts = parts or [pd.DataFrame(columns=["run", "seed", "value", "base", "method"])]
    runs = pd.concat(parts, ignore_index=True).sort_values("base", ascending=False, kind="stable")
    rows = []
    for backbone in dict.fromkeys(runs["value"]) or [GAP]:
        of = runs[runs["value"] == backbone]
        block = sweeps.marked(backbone_label(backbone), of["base"].any())
        for method, label in known["label"].items() if len(known) else [("", GAP)]:
            rows += sweeps.entries((block, label, method, False), of[of["method"] == method])
    table = pd.DataFrame(rows, columns=[*sweeps.KEYS, "run", "seed"], dtype=object)
    for values in (
        sweeps.scores(metrics, dataset, protocol, _METRICS),
        sweeps.losses(rounds, dataset),
        seconds_per_round(rounds, dataset),
    ):
        table = sweeps.attach(table, values)
    return sweeps.over_seeds(table, _VALUES).drop(columns="base")


def table(numbers: pd.DataFrame, *, dataset: str, protocol: str = "sampled") -> Table:
    """One block per backbone, one row per method."""
    return Table(
        label=f"backbones-{dataset}",
        caption=f"{style.dataset_label(dataset)}: backbones, "
        f"{select.protocol_label(protocol)}, mean over domains; loss: "
        "lowest validation loss, mean over clients; per round: training seconds of all clients; "
        "± sample standard deviation over seeds; best value of a backbone in bold.",
        columns=(
            Column("block", "Backbone", align="l"),
            Column("setting", "Method", align="l"),
            Column("seeds", "Seeds"),
            Column("hit@10", "Hit@10, %", ".2f", 100, "hit@10_sd", best="max"),
            Column("ndcg@10", "NDCG@10, %", ".2f", 100, "ndcg@10_sd", best="max"),
            Column("loss", "Loss, nats per token", ".4f", 1, "loss_sd", best="min"),
            Column("seconds", "s per round", ".1f", 1, "seconds_sd"),
        ),
        rows=numbers,
        notes=() if numbers["runs"].any() else (NO_RUN,),
        block="block",
    )


def backbone_label(backbone: str) -> str:
    """``smollm2-135m@10`` -> ``smollm2-135m, first 10 blocks``; a folder by its name."""
    name, at, blocks = sweeps.value_label(backbone).partition("@")
    return f"{name}, first {blocks} blocks" if at else name
