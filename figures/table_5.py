"""Table 5: what travels, per client and round, and until a client's best model.

Bytes are those of the encoded payloads, headers included (fedecider/wire.py).
"""

from collections.abc import Sequence

import pandas as pd

from figures import select, style, sweeps
from figures.table import NO_RUN, Column, Table

FIELDS = ("payload_dtype", "truncate")
_KIB = 2**-10
_COLUMNS = ("dataset", "method", "seed", "run", "round", "client", "valid_loss")
_VALUES = ("bytes_up", "bytes_down", "best_round", "best_bytes")


def traffic(rounds: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """One row per run (index): bytes_up, bytes_down per client and round, best_round, best_bytes.

    ``rounds`` is the frame of ``fedecider.results.rounds``. A client's best round has its lowest
    validation loss, the first among equals; best_bytes is what it sent and received until then.
    All are means over clients, the first two over all rounds before (a method may alternate).
    """
    select.require(rounds, (*_COLUMNS, "bytes_up", "bytes_down"), "rounds")
    rows = rounds[rounds["dataset"] == dataset].dropna(subset="valid_loss")
    numbers = ["round", "valid_loss", "bytes_up", "bytes_down"]
    rows = rows.astype(dict.fromkeys(numbers, float)).sort_values(["run", "client", "round"])
    rows = rows.reset_index(drop=True)
    clients = rows.groupby(["run", "client"])
    best = rows.loc[clients["valid_loss"].idxmin()].set_index(["run", "client"])["round"]
    ends = pd.MultiIndex.from_frame(rows[["run", "client"]]).map(best)
    until = rows[rows["round"] <= ends].groupby(["run", "client"])[["bytes_up", "bytes_down"]]
    out = clients[["bytes_up", "bytes_down"]].mean()
    out = out.assign(best_round=best, best_bytes=until.sum().sum(axis=1))
    return out.groupby("run")[list(_VALUES)].mean()


def numbers(
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    expected: Sequence[str] = (),
    swept: str = "fedecider",
    fields: Sequence[str] = FIELDS,
    base: str = "fedavg",
) -> pd.DataFrame:
    """One row per method that ran in rounds, then per value of the sweeps of ``swept``.

    Columns: block, setting, method, base, each column of :func:`traffic` with "_sd", seeds, runs,
    bytes_up_ratio, bytes_down_ratio, against. The frames are those of ``fedecider.results``, of the
    main runs and sweeps/ together. ``expected`` methods are a gap where they have no run. The
    ratios are to ``base`` (``against`` is its label), for sweeps to its base run among them, else a
    gap: runs of other sizes move other amounts.
    """
    values = traffic(rounds, dataset)
    ran = rounds[(rounds["dataset"] == dataset) & rounds["run"].isin(values.index)]
    main = ran[~sweeps.of_sweeps(ran["run"])]
    known = select.methods(rounds, names=[*expected, *main["method"]])
    blocks = [sweeps.of_methods(main, dataset, known)]
    blocks += [sweeps.of_field(configs, dataset, swept, field) for field in fields]
    rows = sweeps.attach(pd.concat(blocks, ignore_index=True), values)
    out = sweeps.over_seeds(rows, _VALUES)
    of_base = sweeps.swept(configs, dataset, base, fields[0])
    bases = of_base[of_base["base"].astype(bool)]["run"]
    of_main = values[values.index.isin(main[main["method"] == base]["run"])].mean()
    of_sweeps = values[values.index.isin(bases)].mean()
    for way in ("bytes_up", "bytes_down"):
        against = sweeps.of_sweeps(out["runs"]).map({True: of_sweeps[way], False: of_main[way]})
        out[f"{way}_ratio"] = [*map(sweeps.ratio, out[way], against)]
    return out.assign(against=select.label(rounds, base))


def table(numbers: pd.DataFrame, *, dataset: str) -> Table:
    """Methods, then the sweeps around their base."""
    name = f"× {numbers['against'].iloc[0]}"
    return Table(
        label=f"communication-{dataset}",
        caption=f"{style.dataset_label(dataset)}: bytes of the payloads, mean over clients; up and "
        "down: per client and round, mean over rounds; until the best model: all that a client "
        "sends and receives until the round with its lowest validation loss; ± sample standard "
        "deviation over seeds. Further blocks: FeDecider with coarser payloads.",
        columns=(
            Column("block", "Varied", align="l"),
            Column("setting", "Setting", align="l"),
            Column("seeds", "Seeds"),
            Column("bytes_up", "KiB", ",.1f", _KIB, group="Up"),
            Column("bytes_up_ratio", name, ".2f", group="Up"),
            Column("bytes_down", "KiB", ",.1f", _KIB, group="Down"),
            Column("bytes_down_ratio", name, ".2f", group="Down"),
            Column("best_round", "round", ".1f", 1, "best_round_sd", "Until the best model"),
            Column("best_bytes", "KiB", ",.1f", _KIB, "best_bytes_sd", "Until the best model"),
        ),
        rows=numbers,
        notes=() if numbers["runs"].any() else (NO_RUN,),
        block="block",
    )
