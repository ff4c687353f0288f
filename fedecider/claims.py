"""Whose a run folder is, and that one process at a time writes it.

A folder belongs to a configuration once config.json stands beside a finished round or a result.
Until then a start may have failed for a wrong setting: the next one, of any settings, clears what
it left.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedecider.config import RunConfig, flattened
from fedecider.engine import files
from fedecider.engine.backbone import digest_of
from fedecider.engine.weights import split_depth
from fedecider.integrity import OUTCOME, DamagedError, check_config
from fedecider.methods import Method
from fedecider.methods.base import CollaborativeFilter
from fedecider.runs import TABLES, method_info, read_config, write_json

# Settings that may change between a start and a resumption without changing a number.
_MAY_DIFFER = ("folder", "prepared", "min_clients")
# Entries of config.json that say what was read, by the kind of it.
_READ = {"data_digest": "data", "interactions_digest": "interactions", "model_digest": "weights"}


class BusyError(RuntimeError):
    """Another process writes the run folder."""


class Claim:
    """A configuration's claim on its folder; `read` grows as data and model are read."""

    def __init__(self, config: RunConfig, method: Method):
        self.folder = config.folder
        self.config = config.stored() | {"settings": method.settings.model_dump(mode="json")}
        self.info = method_info(method)
        self.read: dict[str, str] = {}
        self._weights = "" if isinstance(method, CollaborativeFilter) else config.backbone.model

    def check(self, **read: str) -> None:
        """`read` are digests of what was read since, by their entries in config.json.

        Raises ValueError if the folder is of a run with other settings, other data or another
        model, and DamagedError if it holds a run without its configuration.
        """
        self.read |= {name: digest for name, digest in read.items() if digest}
        path = self.folder / "config.json"
        if not is_taken(self.folder):
            return
        if not path.exists():
            raise DamagedError(
                f"{path} is missing beside the state of a run: put it back, or delete {self.folder}"
            )
        check_config(self.folder)
        stored = read_config(self.folder)
        before, now = flattened(stored.config), flattened(self.config)
        differ = [
            f"{name} = {before.get(name, 'unknown')!r}, not {now.get(name, 'unknown')!r}"
            for name in {**now, **before}
            if name not in _MAY_DIFFER
            and (name in before, before.get(name)) != (name in now, now.get(name))
        ]
        if before.get("model") != now["model"] and self._same_model(before, now, stored.read):
            differ = [text for text in differ if not text.startswith("model = ")]
        for name, digest in self.read.items():
            if stored.read.get(name, "" if name == "data_digest" else digest) != digest:
                known = stored.read.get(name)
                kind = "other" if known else "unknown"  # older folders do not tell
                differ.append(f"{kind} {_READ[name]} ({name} = {known or ''!r}, not {digest!r})")
        if differ:
            raise ValueError(
                f"{path} is of a run with {differ[0]}: name another folder or delete this one"
            )

    def _same_model(self, before: dict[str, Any], now: dict[str, Any], read: dict) -> bool:
        """Whether the model is the same in another folder of a machine, cut to as many blocks."""
        if not self._weights or split_depth(before["model"])[1] != split_depth(now["model"])[1]:
            return False
        digest = digest_of(now["model"])
        return bool(digest) and digest == read.get("model_digest")

    def write(self) -> None:
        """config.json, unless it stands there; a finished round or the result has to follow."""
        path = self.folder / "config.json"
        if not path.exists():
            write_json(path, {**self.config, **self.read, "method_info": self.info})

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this process alone, cleared of what a failed or killed start left.

        Raises BusyError if another process holds it. The lock goes with the process.
        """
        with _locked(self.folder):
            self.check()
            if not is_taken(self.folder):
                _clear(self.folder)
            for folder in (self.folder, *self.folder.glob("*/"), *self.folder.glob("adapters/*/")):
                files.remove_unfinished(folder)
            yield


def is_taken(folder: Path) -> bool:
    """Whether a run has finished a round here, or the whole."""
    state = folder / "checkpoint" / "state.json"
    if state.exists() or (folder / "result.json").exists():
        return True
    # A first round may have been killed between its tensors and its state; a later one replaces it.
    return any(f.stem != "round-001" for f in folder.glob("checkpoint/round-*.safetensors"))


def _clear(folder: Path) -> None:
    for name in ("config.json", "events.jsonl", *OUTCOME, *(f"{name}.csv" for name in TABLES)):
        with files.writing(folder):
            (folder / name).unlink(missing_ok=True)
    for name in ("checkpoint", "adapters"):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / ".lock"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    """The handle of the locked file; it is deleted by who holds it, so it is looked at again."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if files.try_lock(handle) is False:
            owner = os.read(handle, 100).decode(errors="replace").strip()
            os.close(handle)
            raise BusyError(
                f"{path.parent} is being written by another process ({owner or 'unknown'}): wait "
                "until it is done, or name another folder"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()}".encode())
                return handle
        os.close(handle)
