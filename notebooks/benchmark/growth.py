"""Memory, and growth along one axis: each measurement in a process of its own (see `child`)."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from notebooks.benchmark.bench import Bench

ROOT = Path(__file__).resolve().parents[2]


def in_child(part: str, *values: object) -> dict[str, Any]:
    """What one measurement of `notebooks.benchmark.child` gives in a fresh process.

    Raises RuntimeError, with the measurement and its error, if the process fails.
    """
    command = [sys.executable, "-m", "notebooks.benchmark.child", part, *map(str, values)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"the measurement {' '.join(command[3:])} failed: {last[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory(bench: Bench, clients: Sequence[int] = (1, 8)) -> pd.DataFrame:
    """Peak resident memory (MiB) of a federation of so many clients over one frozen model."""
    rows = [(count, in_child("clients", count, *bench.source)["peak"]) for count in clients]
    return pd.DataFrame(rows, columns=["clients", "peak_mib"])


def server_memory(clients: int = 8, rank: int = 16) -> dict[str, float]:
    """Payload and the further memory (MiB) that `gram` takes at the shapes of 1B."""
    return in_child("server", clients, rank)


def along(bench: Bench, axes: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Seconds and memory (MiB above the loaded model) along each axis, a process per point.

    Columns: axis, value, what, seconds, mib.
    """
    rows = []
    points = [(axis, value) for axis, values in axes.items() for value in values]
    for axis, value in tqdm(points, desc="growth", leave=False):
        for what, measured in in_child(f"growth-{axis}", value, *bench.source).items():
            rows.append((axis, value, what, measured["seconds"], measured["mib"]))
    return pd.DataFrame(rows, columns=["axis", "value", "what", "seconds", "mib"])
