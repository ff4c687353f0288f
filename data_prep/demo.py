"""Generated data for a notebook that is opened before anything was prepared."""

from pathlib import Path

import data_prep

from .folders import nearest

DEMO = Path("../results/demo")  # the notebooks' default; they run in their own folder


def prepared_or_generated(results: str | Path, dataset: str) -> Path:
    """The folder <results>/data/<dataset>; where the demo's is absent, planted data are made there.

    Raises FileNotFoundError in any other results folder: a mistyped name must not train on
    generated data. The error names the nearest folder that is there.
    """
    results = Path(results)
    prepared = results / "data" / dataset
    if not prepared.is_dir():
        if results != DEMO:
            raise FileNotFoundError(
                f"no prepared data in {prepared}: run the notebook 01_prepare for it, or correct "
                f"the name; {nearest(prepared)}"
            )
        print(f"no prepared data in {prepared}: preparing generated data there")
        data_prep.prepare(dataset, results / "dumps", prepared, kind="planted")
    return prepared
