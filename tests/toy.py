"""Small prepared domains and a tiny backbone for tests; everything here is made up."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from data_prep import folders
from fedecider.config import RunConfig

_WORDS = ["dragon", "garden", "silver", "harbour", "moon", "paper", "winter", "engine", "cat"]


def write_domain(folder: Path, seed: int, users: int = 12, items: int = 30, history: int = 8):
    """A prepared domain in the format of data_prep, with random histories."""
    generator = np.random.default_rng(seed)
    ids = [f"i{number:03d}" for number in range(items)]
    titles = [f"{_WORDS[n % 9]} {_WORDS[(n // 9 + seed) % 9]} {n}" for n in range(items)]
    splits, candidates = [], []
    for number in range(users):
        user = f"u{number:02d}"
        chosen = generator.permutation(items)[:history]
        names = ["train"] * (history - 2) + ["valid", "test"]
        for place, (item, split) in enumerate(zip(chosen, names, strict=True)):
            splits.append((user, ids[item], place, split))
        unseen = sorted(set(range(items)) - set(chosen))
        for split, item in (("valid", chosen[-2]), ("test", chosen[-1])):
            drawn = generator.choice(unseen, 9, replace=False)
            candidates.append((user, split, ids[item], [ids[n] for n in drawn]))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"item_id": ids, "title": titles}).to_parquet(folder / "items.parquet")
    columns = ["user_id", "item_id", "position", "split"]
    pd.DataFrame(splits, columns=columns).to_parquet(folder / "splits.parquet")
    columns = ["user_id", "split", "item_id", "negatives"]
    pd.DataFrame(candidates, columns=columns).to_parquet(folder / "candidates.parquet")
    seal(folder.parent, [folder.name])


def seal(out: Path, added: Iterable[str] = ()) -> None:
    """Write the manifest of the domains in `out` anew, after a file was changed on purpose."""
    known = (folders.read_manifest(out) or {"domains": {}})["domains"]
    folders.write_manifest(out, sorted({*known, *(n for n in added if n[0] != ".")}))


def write_domains(folder: Path, names=("books", "comics", "games")) -> Path:
    """Several domains, each with its own seed."""
    for seed, name in enumerate(names):
        write_domain(folder / name, seed)
    return folder


def config(data: Path, folder: Path, method: str = "fedecider", **settings) -> RunConfig:
    """A run of a few seconds on the tiny model."""
    small = {
        "backbone": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "top_layers": 1,  # of 2: stored trunk states, as in every preset
        "rank": 2,
        "rounds": 2,
        "lr": 5e-3,
        "alpha_lr": 0.05,
        "batch_tokens": 128,
        "valid_users": 6,
        "test_users": 6,
        "beams": 2,
        "title_tokens": 6,
    }
    return RunConfig(
        data=data, folder=folder, dataset="toy", method=method, **{**small, **settings}
    )
