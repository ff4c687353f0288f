"""A run folder: what a run writes. What is read of it stands in results.py.

config.json         every setting, as validated, a digest of the data, and the method's label,
                    family, colour and order
events.jsonl        one JSON line per event: start, left out (a client of a round, and why), client,
                    round, evaluated, finished
rounds.csv          one row per client and round: losses, bytes up and down, seconds of training,
                    norm of the update as trained, steps, peak memory (MiB) while it trained; no
                    training loss and no norm of a client that was left out of the round
alphas.csv          one row per round, client, source and module
geometry.csv        one row per round, module and pair of clients: norm and cosine of their updates
checkpoint/         state after the last finished round (tensors and numbers)
adapters/<client>/  the chosen model's own LoRA as PEFT saves it; mixture.safetensors beside it
ranks.parquet       rank of every test user by every ranker
metrics.csv         the same, averaged
result.json         versions, commit and choices; written last: a run that has it is finished
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedecider.config import flattened, from_stored
from fedecider.metrics import summarise

# Columns of a run's tables. Data set, method and seed are the run's, in its config.json.
COLUMNS = {
    "metrics": ["domain", "protocol", "ranker", "metric", "value", "users"],
    "ranks": ["domain", "protocol", "ranker", "user_id", "rank"],
    "rounds": ["round", "client", "train_loss", "valid_loss", "bytes_up", "bytes_down"]
    + ["seconds", "update_norm", "steps", "memory"],
    "alphas": ["round", "client", "source", "layer", "alpha"],
    "geometry": ["round", "layer", "client", "other", "cosine", "norm"],
}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it if all went well, deleted if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(beside)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Content as sorted, indented JSON, atomically."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A frame as CSV, atomically; floats round-trip."""
    with atomic(path) as beside:
        frame.to_csv(beside, index=False)


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
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All events; a line torn by a kill (the last) is left out."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

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


def read_config(folder: Path) -> StoredConfig:
    """The configuration of a run folder, a flat one of before the groups mapped.

    Raises ValueError, naming the file, for an entry that is unknown.
    """
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    digest, info = stored.pop("data_digest", ""), stored.pop("method_info", {})
    try:
        return StoredConfig(from_stored(stored), digest, info)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def method_info(method: Any) -> dict[str, Any]:
    """What figures and tables need to know of a method, from its class."""
    return {name: getattr(method, name) for name in ("label", "family", "color", "order")}


def now() -> str:
    """The time of an event, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# Settings that may change between a start and a resumption without changing a number.
_MAY_DIFFER = ("folder", "prepared", "min_clients")


def claim(
    folder: Path,
    config: dict[str, Any],
    digest: str | None = None,
    info: dict[str, Any] | None = None,
) -> None:
    """Take a run folder for this configuration, or find that it is its own already.

    Written into config.json once the digest of the data is known. Raises ValueError if the folder
    is of a run with other settings or other data.
    """
    path = folder / "config.json"
    if not path.exists():
        if digest is not None:
            write_json(path, {**config, "data_digest": digest, "method_info": info or {}})
        return
    stored = read_config(folder)
    before, now = flattened(stored.config), flattened(config)
    differ = [
        f"{name} = {before.get(name)!r}, not {now.get(name)!r}"
        for name in {**now, **before}
        if name not in _MAY_DIFFER and before.get(name) != now.get(name)
    ]
    if not differ and digest is not None and stored.data_digest != digest:
        kind = "other" if stored.data_digest else "unknown"  # older folders do not tell
        differ = [f"{kind} data (data_digest = {stored.data_digest!r}, not {digest!r})"]
    if differ:
        raise ValueError(
            f"{path} is of a run with {differ[0]}: name another folder or delete this one"
        )
