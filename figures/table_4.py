"""Table 4: ablations of FeDecider, and its settings one by one.

The first block holds the main runs of the method and of its ablations; each further block a sweep,
in which runs differ from the base by one setting. Ranks in the whole catalogue and ranks among
1 + 99 candidates never share a table (see README), so each protocol has one of its own.
"""

from collections.abc import Sequence

import pandas as pd

from figures import select, style, sweeps
from figures.table import NO_RUN, Column, Table

FIELDS = ("norm", "alpha_scope", "alpha_init", "alpha_sign", "alpha_warmup")
_METRICS = ("hit@10", "ndcg@10")
_LOSS = "Best validation loss"


def numbers(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    protocol: str,
    method: str = "fedecider",
    fields: Sequence[str] = FIELDS,
) -> pd.DataFrame:
    """One row per ablation and per value of a swept setting.

    Columns: block, setting, method, base, per ranker of the protocol "<ranker> hit@10",
    "<ranker> ndcg@10" and "<ranker> difference" (0..1), loss and "loss difference" (nats per
    token), each with "_sd", seeds, runs. The frames are those of ``fedecider.results``, of runs/
    and sweeps/ together; ``fields`` are the swept settings. Means over domains (of the lowest
    validation loss: over clients), then mean and sample standard deviation over seeds; differences
    to the block's base are taken seed by seed. Raises ValueError as :func:`figures.select.scores`
    does.
    """
    known = select.methods(metrics, rounds, configs)
    names = [method, *known.index[known["family"] == select.ABLATION]]
    keys = ["dataset", "method", "seed", "run"]
    runs = pd.concat([metrics[keys], rounds[keys]])
    parts = select.methods(metrics, rounds, configs, names=names)
    blocks = [sweeps.of_methods(runs, dataset, parts, block="Parts", base=method)]
    blocks += [sweeps.of_field(configs, dataset, method, field) for field in fields]
    rows, columns = pd.concat(blocks, ignore_index=True), []
    of_protocol = [r for p, r in select.rankers(metrics, dataset) if p == protocol]
    for ranker in of_protocol or [""]:
        values = sweeps.scores(metrics, dataset, protocol, _METRICS, ranker)
        values = values.rename(columns=lambda metric, ranker=ranker: f"{ranker} {metric}")
        rows = sweeps.attach(rows, values)
        columns += [*values.columns, f"{ranker} difference"]
        rows[columns[-1]] = sweeps.against_base(rows, f"{ranker} ndcg@10")
    rows = sweeps.attach(rows, sweeps.losses(rounds, dataset))
    rows["loss difference"] = sweeps.against_base(rows, "loss")
    return sweeps.over_seeds(rows, [*columns, "loss", "loss difference"])


def table(numbers: pd.DataFrame, *, dataset: str, protocol: str) -> Table:
    """A block for the ablations and one per setting, with the best value of a block in bold."""
    method = numbers["setting"].iloc[0].removesuffix(" (base)")
    names = [name for name in numbers.columns[len(sweeps.KEYS) : -2] if not name.endswith("_sd")]
    return Table(
        label=f"ablations-{dataset}-{protocol}",
        caption=f"{style.dataset_label(dataset)}: ablations and settings of {method}, "
        f"{select.protocol_label(protocol)}, mean over domains; "
        "± sample standard deviation over seeds; Δ: difference from the block's base, seed by "
        "seed; best value of a block in bold. First block: main runs; the others: sweeps of one "
        "setting around their base.",
        columns=(
            Column("block", "Varied", align="l"),
            Column("setting", "Setting", align="l"),
            Column("seeds", "Seeds"),
            *(_column(name) for name in names),
        ),
        rows=numbers,
        notes=() if numbers["runs"].any() else (NO_RUN,),
        block="block",
        width=8,
    )


def _column(name: str) -> Column:
    spread = f"{name}_sd"
    if name == "loss":
        return Column(name, "nats per token", ".4f", 1, spread, _LOSS, best="min")
    if name == "loss difference":
        return Column(name, "Δ", "+.4f", 1, spread, _LOSS)
    ranker, _, metric = name.rpartition(" ")
    if metric == "difference":
        return Column(name, "Δ NDCG@10, points", "+.2f", 100, spread, ranker)
    return Column(name, f"{style.metric_label(metric)}, %", ".2f", 100, spread, ranker, best="max")
