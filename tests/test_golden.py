"""The golden run: every method's numbers are, bit for bit, those that are stored in tests/golden.

The other identity tests compare the code with itself; this one compares it with what it was. A
change that moves a digest on purpose stores the new ones (`python tests/test_golden.py`) and says
why in its commit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedecider.methods import METHODS

GOLDEN = Path(__file__).parent / "golden"
DATASETS = ("goodreads", "amazon")
sys.path.insert(0, str(GOLDEN))
import run as golden_run  # noqa: E402


def computed(dataset: str, folder: Path) -> dict:
    out = folder / f"{dataset}.json"
    command = [sys.executable, str(GOLDEN / "run.py"), dataset, str(out)]
    done = subprocess.run(
        command, env=os.environ | golden_run.ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def absent(before: dict, now: dict) -> set[str]:
    """Stored runs that are not computed any more; a method that is not stored is new, no fault."""
    return {name for kind in ("numbers", "digests") for name in before[kind].keys() - now[kind]}


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_stored_run_is_of_a_method_or_variant_that_there_is(dataset):
    before = json.loads((GOLDEN / f"{dataset}.json").read_text())
    runs = {*METHODS, *golden_run.VARIANTS} if dataset == "goodreads" else {*METHODS}
    assert before["numbers"].keys() == before["digests"].keys()
    now = {"numbers": runs, "digests": runs}
    assert absent(before, now) == set()
    assert absent(before, {**now, "digests": runs - {"fedavg"}}) == {"fedavg"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_numbers_are_those_of_before(dataset, tmp_path):
    before = json.loads((GOLDEN / f"{dataset}.json").read_text())
    now = computed(dataset, tmp_path)
    assert now["data"] == before["data"], "the prepared data differ, before any method ran"
    assert absent(before, now) == set()
    for name, stored in before["numbers"].items():
        assert now["numbers"][name]["ranks"] == stored["ranks"], name
        losses = np.array(now["numbers"][name]["losses"], dtype=float)
        np.testing.assert_allclose(losses, np.array(stored["losses"], dtype=float), rtol=1e-4)
    if now["probe"] != before["probe"]:
        pytest.skip("this processor rounds products otherwise; numbers agree to four digits")
    moved = [
        f"{name}: {kind}"
        for name, kinds in before["digests"].items()
        for kind, digest in kinds.items()
        if now["digests"][name].get(kind) != digest
    ]
    assert not moved, f"digests that moved: {moved}"


if __name__ == "__main__":
    for dataset in DATASETS:
        stored = computed(dataset, GOLDEN)
        (GOLDEN / f"{dataset}.json").write_text(json.dumps(stored, sort_keys=True) + "\n")
