"""Choice of a method's own settings on validation: the same number of tries for every method.

A try is a federation without ranking; its value is the mean over clients of the best validation
loss. The test split is not read.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedecider import federation, integrity, runs
from fedecider.config import RunConfig
from fedecider.engine.backbone import Backbone
from fedecider.wire import PayloadError


def search(
    base: RunConfig,
    tries: Sequence[Mapping[str, Any]],
    folder: Path,
    backbone: Backbone | None = None,
) -> pd.DataFrame:
    """Run every try, settings by their plain names over `base`; write the best into chosen.json.

    Returns one row per try: its settings, loss (nats per token; infinite where the run diverged)
    and run (its folder below `folder`). The first of equals is chosen. Interrupted, the same call
    goes on. Raises ValueError without tries, and if every one diverged.
    """
    if not tries:
        raise ValueError(f"a search for {base.method} needs at least one try")
    rows = []
    for index, settings in enumerate(tries):
        run = folder / f"try-{index}"
        values = {**base.flat(), **settings, "folder": run, "rankers": []}
        try:
            federation.run(RunConfig.of(**values), backbone)
            loss = best_loss(run)
            loss = loss if math.isfinite(loss) else math.inf
        except (FloatingPointError, PayloadError):  # too few clients were left
            loss = math.inf
        rows.append({**settings, "loss": loss, "run": run.name})
    table = pd.DataFrame(rows)
    if not math.isfinite(table["loss"].min()):
        raise ValueError(f"every try of {base.method} diverged: {tries}")
    best = tries[int(table["loss"].argmin())]
    tried = [{**row, "loss": row["loss"] if math.isfinite(row["loss"]) else None} for row in rows]
    integrity.write_sealed(folder / "chosen.json", {"settings": dict(best), "tried": tried})
    return table


def best_loss(run: Path) -> float:
    """Mean over clients of the best validation loss of a run."""
    rounds = runs.read_csv(run / "rounds.csv", "rounds")
    return float(rounds.groupby("client")["valid_loss"].min().mean(skipna=False))


def chosen(path: Path | str) -> dict[str, Any]:
    """The settings that a search has chosen, from its chosen.json.

    Raises `integrity.DamagedError` if it is missing or not what was written.
    """
    return integrity.read_chosen(Path(path))["settings"]
