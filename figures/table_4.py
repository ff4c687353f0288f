"""Table 4: ablations of FeDecider, and its settings one by one.

The first block holds the main runs of the method and of its three ablations; each further block a
sweep, in which runs differ from the base by one setting. Ranks in the whole catalogue and ranks
among 1 + 99 candidates never share a table (see README), so each protocol has one of its own.
"""

from collections.abc import Sequence

import pandas as pd

from figures import frames, setting_rows, style
from figures.small_table import NO_RUN, Column, Table

FIELDS = ("norm", "alpha_scope", "alpha_init", "alpha_sign", "alpha_warmup")
_PARTS = ("no-direction", "no-personalization", "no-both")
_RANKERS = {"sampled": ("likelihood",), "catalogue": ("grounding", "trie")}
_METRICS = {"sampled": ("hit@10", "ndcg@10"), "catalogue": ("ndcg@10",)}
_LOSS = "Best validation loss"


def ablations(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    protocol: str = "sampled",
    method: str = "fedecider",
    fields: Sequence[str] = FIELDS,
) -> Table:
    """The table of one data set under one protocol.

    The frames are those of ``fedecider.runs``, of runs/ and sweeps/ together; ``fields`` are the
    swept settings. Numbers are means over domains, then mean and sample standard deviation over
    seeds; differences are taken seed by seed. The "sampled" table also has the lowest validation
    loss (mean over clients). Raises ValueError for an unknown protocol and as
    :func:`figures.frames.scores` does.
    """
    if protocol not in _RANKERS:
        raise ValueError(f"protocol is {protocol!r}; expected one of {sorted(_RANKERS)}")
    blocks = [_parts(metrics, rounds, dataset, method)]
    blocks += [setting_rows.of_field(configs, dataset, method, field) for field in fields]
    rows = pd.concat(blocks, ignore_index=True)
    names = []
    for ranker in _RANKERS[protocol]:
        found = setting_rows.scores(metrics, dataset, protocol, _METRICS[protocol], ranker)
        found = found.rename(columns=lambda metric, ranker=ranker: f"{ranker} {metric}")
        rows = setting_rows.attach(rows, found)
        names += [*found.columns, f"{ranker} difference"]
        rows[names[-1]] = setting_rows.against_base(rows, f"{ranker} ndcg@10")
    if protocol == "sampled":
        rows = setting_rows.attach(rows, setting_rows.losses(rounds, dataset))
        rows["loss difference"] = setting_rows.against_base(rows, "loss")
        names += ["loss", "loss difference"]
    out = setting_rows.over_seeds(rows, names)
    return Table(
        label=f"ablations-{dataset}-{protocol}",
        caption=f"{style.dataset_label(dataset)}: ablations and settings of "
        f"{style.method_label(method)}, {frames.PROTOCOL_LABELS[protocol]}, mean over domains; "
        "± sample standard deviation over seeds; Δ: difference from the block's base, seed by "
        "seed; best value of a block in bold. First block: main runs; the others: sweeps of one "
        "setting around their base.",
        columns=(
            Column("block", "Varied", align="l"),
            Column("setting", "Setting", align="l"),
            Column("seeds", "Seeds"),
            *(_column(name) for name in names),
        ),
        rows=out,
        notes=() if out["runs"].any() else (NO_RUN,),
        block="block",
    )


def _parts(metrics: pd.DataFrame, rounds: pd.DataFrame, dataset: str, method: str) -> pd.DataFrame:
    keys = ["dataset", "method", "seed", "run"]
    frames.require(metrics, keys, "metrics")
    frames.require(rounds, keys, "rounds")
    found = pd.concat([metrics[keys], rounds[keys]])
    methods = [method, *(f"{method}-{part}" for part in _PARTS)]
    return setting_rows.of_methods(found, dataset, methods, block="Parts", base=method)


def _column(name: str) -> Column:
    spread = f"{name}_sd"
    if name == "loss":
        return Column(name, "nats a token", ".4f", 1, spread, _LOSS, best="min")
    if name == "loss difference":
        return Column(name, "Δ", "+.4f", 1, spread, _LOSS)
    ranker, _, metric = name.partition(" ")
    if metric == "difference":
        return Column(name, "Δ NDCG@10, points", "+.2f", 100, spread, ranker)
    return Column(name, f"{style.metric_label(metric)}, %", ".2f", 100, spread, ranker, best="max")
