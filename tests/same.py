"""Every number of a finished run, to be compared with ==."""

import json
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

TABLES = ("metrics.csv", "rounds.csv", "alphas.csv", "geometry.csv")


def numbers(folder: Path) -> dict:
    """By file; the seconds and the memory, which are not reproducible, left out."""
    kept = {"choices": json.loads((folder / "result.json").read_text())["choices"]}
    for name in TABLES:
        table = pd.read_csv(folder / name, dtype=str)
        kept[name] = table.drop(columns=["seconds", "memory"], errors="ignore").to_csv()
    kept["ranks"] = pd.read_parquet(folder / "ranks.parquet").to_csv()
    for path in sorted(folder.glob("adapters/*/*.safetensors")):
        tensors = load_file(path).items()
        kept[f"{path.parent.name} {path.name}"] = {k: v.numpy().tobytes() for k, v in tensors}
    kept["config"] = {
        name: value
        for name, value in json.loads((folder / "config.json").read_text()).items()
        if name != "folder"
    }
    return kept
