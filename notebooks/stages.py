"""One step of a reproduction: what it reads, runs and writes, and whether it is up to date.

A stage is up to date if it finished under the same key and its outputs are there. The key is its
parameters, the content of its inputs, and the code that it calls. Keys are compared entry by entry,
so that a rerun can say what changed. Two small files a stage are kept in ``<results>/stages``:
``<stage>.started.json`` while it runs (so that an interrupted one is known and may go on from where
it was) and ``<stage>.json`` once it has finished.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fedecider.runs import write_json
from notebooks.closure import PACKAGES, called, source_digest

# What later stages read of a run folder; checkpoints and adapters are large and not read.
_TABLES = (".json", ".jsonl", ".csv", ".parquet")


class StageError(Exception):
    """A stage cannot run or failed; the message is for the user."""


@dataclass(frozen=True)
class Stage:
    """One notebook with parameters (or, without a notebook, one function of the driver).

    inputs, outputs: glob patterns relative to the results folder; every output pattern must match
    a file once the stage is done. sources: the user's own files or folders, known by names, sizes
    and times of change, since they may be hundreds of gigabytes. clears: folders relative to
    results that belong to one key, and are removed when the stage starts under another.
    """

    name: str
    notebook: str | None = None
    call: Callable[[Path], None] | None = None
    written_in: Path | None = None  # the file of call
    parameters: dict = field(default_factory=dict)
    unkeyed: dict = field(default_factory=dict)  # parameters that only say where things are
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    clears: tuple[str, ...] = ()
    chosen: dict[str, str] = field(default_factory=dict)  # see closure.called
    packages: tuple[str, ...] = PACKAGES  # whose code counts
    needs: tuple[str, ...] = ()  # names of the stages that write the inputs
    in_report: bool = False
    seconds: float = 30.0  # expected, until a run has been measured


def key(stage: Stage, results: Path, root: Path) -> dict[str, dict[str, str]]:
    """{"parameters": ..., "inputs": ..., "code": ...}, each a flat table of strings."""
    parameters = {name: json.dumps(value, sort_keys=True) for name, value in _flat(stage)}
    inputs = {
        path.relative_to(results).as_posix(): _content(path)
        for path in _matches(results, stage.inputs)
    }
    for source in stage.sources:
        inputs |= _fingerprint(source)
    if stage.notebook:
        path = root / "notebooks" / f"{stage.notebook}.ipynb"
        if not path.is_file():
            raise StageError(f"{path} is missing")
        code = called(root, path, stage.chosen, stage.in_report, stage.packages)
    else:
        code = {f"notebooks/{stage.written_in.name}": source_digest(stage.written_in)}
    return {"parameters": parameters, "inputs": inputs, "code": code}


def why(stage: Stage, results: Path, current: dict) -> str | None:
    """None if the stage is up to date, else the reason to run it, for the user."""
    if _started(stage, results).exists():
        if read(_started(stage, results)).get("key") == current:
            return "goes on from where it was stopped"
        return "parameters, inputs or code changed since it was stopped"
    stamp = read(stamp_path(stage, results))
    if not stamp:
        return "first run"
    reasons = []
    for part, words in (("parameters", "parameter"), ("inputs", "input"), ("code", "code")):
        names = _changed(stamp["key"].get(part, {}), current[part])
        if names:
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            reasons.append(f"{words} changed: {', '.join(names[:2])}{more}")
    if reasons:
        return "; ".join(reasons)
    for name, size in stamp["outputs"].items():
        path = results / name
        if not path.is_file():
            return f"output missing: {name}"
        if path.stat().st_size != size:
            return f"output changed: {name}"
    return None


def begin(stage: Stage, results: Path, current: dict) -> None:
    """Clear what belongs to another key and note that the stage has started."""
    before = read(_started(stage, results)) or read(stamp_path(stage, results))
    # Without a stamp too: what is there was made by hand, perhaps from other data or code.
    if before.get("key") != current:
        for name in stage.clears:
            shutil.rmtree(results / name, ignore_errors=True)
    note = {"key": current, "seconds": before.get("seconds")}
    write_json(_started(stage, results), note)
    stamp_path(stage, results).unlink(missing_ok=True)


def finish(stage: Stage, results: Path, current: dict, seconds: float) -> None:
    """Stamp a stage that ran to its end; StageError if an output is not there."""
    for pattern in stage.outputs:
        if not _matches(results, (pattern,)):
            raise StageError(f"{stage.name} ended without writing {results / pattern}")
    sizes = {
        path.relative_to(results).as_posix(): path.stat().st_size
        for path in _matches(results, stage.outputs)
    }
    stamp = {"key": current, "outputs": sizes, "seconds": round(seconds, 1)}
    write_json(stamp_path(stage, results), stamp)
    _started(stage, results).unlink(missing_ok=True)


def expected_seconds(stage: Stage, results: Path) -> float:
    """How long the stage took last time, else what its kind usually takes."""
    for path in (_started(stage, results), stamp_path(stage, results)):
        seconds = read(path).get("seconds")
        if seconds:
            return seconds
    return stage.seconds


def read(path: Path) -> dict:
    """A stamp, {} if there is none or it cannot be read (then the stage runs again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def stamp_path(stage: Stage, results: Path) -> Path:
    return results / "stages" / f"{stage.name}.json"


def _started(stage: Stage, results: Path) -> Path:
    return results / "stages" / f"{stage.name}.started.json"


def _flat(stage: Stage):
    """Parameters with nested tables opened, so that a reason can name the one that changed."""
    for name, value in stage.parameters.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", entry) for inner, entry in value.items())
        else:
            yield name, value


def _matches(results: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in results.glob(pattern) if path.is_file()}
    return sorted(p for p in found if p.parts[-1][0] != "." and _counts(p.relative_to(results)))


def _counts(path: Path) -> bool:
    return path.parts[0] != "runs" or path.suffix in _TABLES


def _fingerprint(source: Path) -> dict[str, str]:
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    return {
        f"{source.name}/{p.relative_to(source).as_posix()}": (
            f"{p.stat().st_size} bytes of {p.stat().st_mtime_ns}"
        )
        for p in files
    }


def _content(path: Path) -> str:
    stat = path.stat()
    return _hashed(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _hashed(path: Path, _changed: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def _changed(before: dict, now: dict) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
