"""A run folder: what a run writes. What is read of it stands in results.py.

config.json         every setting, as validated, digests of the data and of the model, and the
                    method's label, family, colour and order; written with the first finished round
events.jsonl        one JSON line per event: start, left out (a client of a round, and why), client,
                    round, evaluated, finished
rounds.csv          one row per client and round: losses, bytes up and down, seconds of training,
                    norm of the update as trained, steps, peak memory (MiB) while it trained; no
                    training loss and no norm of a client that was left out of the round
alphas.csv          one row per round, client, source and module
geometry.csv        one row per round, module and pair of clients: norm and cosine of their updates
checkpoint/         state after the last finished round (tensors and numbers)
adapters/<client>/  the chosen model's own LoRA as PEFT saves it; mixture.safetensors beside it, and
                    what both are in README.md
ranks.parquet       rank of every test user by every ranker
metrics.csv         the same, averaged
result.json         versions, commit, choices and digests of the other files; written last: a run
                    that has it, and every file that it names, is finished
.lock               held by the process that writes the folder
"""

import contextlib
import json
import os
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pandas as pd

from fedecider.config import from_stored
from fedecider.engine.files import atomic, writing
from fedecider.metrics import summarise

__all__ = ["COLUMNS", "TABLES", "Events", "StoredConfig", "atomic", "commit", "method_info"]
__all__ += ["metrics_of", "now", "read_config", "read_csv", "versions", "write_csv", "write_json"]

# Columns of a run's tables. Data set, method and seed are the run's, in its config.json.
COLUMNS = {
    "metrics": ["domain", "protocol", "ranker", "metric", "value", "users"],
    "ranks": ["domain", "protocol", "ranker", "user_id", "rank"],
    "rounds": ["round", "client", "train_loss", "valid_loss", "bytes_up", "bytes_down"]
    + ["seconds", "update_norm", "steps", "memory"],
    "alphas": ["round", "client", "source", "layer", "alpha"],
    "geometry": ["round", "layer", "client", "other", "cosine", "norm"],
}
TABLES = ("rounds", "alphas", "geometry")  # those that grow by the round
_WORDS = {"domain", "protocol", "ranker", "metric", "client", "source", "layer", "other", "method"}


def write_json(path: Path, content: Any) -> None:
    """Content as sorted, indented JSON, atomically."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A frame as CSV, atomically; floats round-trip."""
    with atomic(path) as beside:
        frame.to_csv(beside, index=False)


def read_csv(source: Path | TextIO, kind: str) -> pd.DataFrame:
    """A table of a run folder; a client may be called NA."""
    numbers = {column: ["", "nan"] for column in COLUMNS[kind] if column not in _WORDS}
    return pd.read_csv(source, keep_default_na=False, na_values=numbers)


def versions() -> dict[str, str]:
    """Versions of what decides a number; of a checkout also its commit, see :func:`commit`."""
    installed = {}
    for package in ("fedecider", "torch", "transformers", "peft", "numpy", "pandas"):
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    code = commit(Path(__file__).resolve().parents[1])
    return {**installed, "commit": code} if code else installed


def commit(checkout: Path) -> str | None:
    """The commit of a git checkout, with "-dirty" where tracked files differ from it; None outside.

    Only for the folder that holds .git itself: a package installed below somebody else's
    repository is not of that repository's commit.
    """
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a repository that it refuses
        return None
    return done.stdout.strip() or None


class Events:
    """Appends events to a JSON-lines file; each line is whole or absent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, **content: Any) -> None:
        """One line, flushed to disk before this returns."""
        line = json.dumps({"event": kind, **content}, sort_keys=True) + "\n"
        with writing(self.path), self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All events; a line torn by a kill (the last) or by damage is left out."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # neither JSON nor text
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict) and "event" in event]

    def keep_rounds(self, last: int) -> None:
        """Drop what came after round `last`: it is done again."""
        kept = [event for event in self.read() if event.get("round", 0) <= last]
        kept = [event for event in kept if event["event"] not in ("evaluated", "finished")]
        with atomic(self.path) as beside:
            beside.write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in kept))


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Ranks of one run to one row per domain, method, protocol, ranker and metric."""
    rows: list[tuple[Any, ...]] = []
    keys = ["domain", "method", "protocol", "ranker"]
    for key, group in ranks.groupby(keys, sort=True):
        for metric, value in summarise(group["rank"].to_numpy()).items():
            rows.append((*key, metric, value, len(group)))
    return pd.DataFrame(rows, columns=[*keys, "metric", "value", "users"])


class StoredConfig(NamedTuple):
    """What a run folder's config.json tells."""

    config: dict[str, Any]  # in groups
    data_digest: str  # "" where the folder is older than digests
    method_info: dict[str, Any]  # label, family, color, order; empty in folders of before
    read: dict[str, str] = {}  # digests of all that was read, by their entries


def read_config(folder: Path) -> StoredConfig:
    """The configuration of a run folder, a flat one of before the groups mapped.

    Raises ValueError, naming the file, if it is missing or damaged, and for an unknown entry.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: put it back, or delete {folder}")
    try:
        stored = json.loads(path.read_bytes())
        info = stored.pop("method_info", {})
        read = {name: stored.pop(name) for name in list(stored) if name.endswith("_digest")}
        return StoredConfig(from_stored(stored), read.get("data_digest") or "", info, read)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def method_info(method: Any) -> dict[str, Any]:
    """What figures and tables need to know of a method, from its class."""
    return {name: getattr(method, name) for name in ("label", "family", "color", "order")}


def now() -> str:
    """The time of an event, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
