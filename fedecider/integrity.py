"""What a run folder holds is what was written: digests, and what to do about a damaged file.

result.json names the digests of all files that results are read from, checkpoint/state.json those
of the state between rounds; each carries its own digest too, as a search's chosen.json does. An
adapter folder, which may travel alone, names those of its tensors in adapter_config.json. A folder
of before digests has none and is read unchecked.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedecider.engine import files
from fedecider.runs import TABLES, read_csv, write_json

OUTCOME = ("ranks.parquet", "metrics.csv")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "mixture.safetensors")
_SEAL = "digest"


class DamagedError(ValueError):
    """A file is not what was written: one sentence with the file and what to do."""


# Small JSON files that carry their own digest


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """JSON with its own digest as one more entry, atomically."""
    write_json(path, {**content, _SEAL: _seal(content)})


def read_sealed(path: Path, advice: str) -> dict[str, Any]:
    """What `write_sealed` wrote; DamagedError, which ends with the advice, if it is not that."""
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop(_SEAL, None)
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged (it is no JSON table): {advice}") from error
    if seal not in (None, _seal(content)):
        raise DamagedError(f"{path} is damaged (its digest is another): {advice}")
    return content


def _seal(content: dict[str, Any]) -> str:
    content_hash = files.hasher()
    content_hash.update(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())
    return content_hash.hexdigest()


# A finished run


def digests(folder: Path) -> dict[str, str]:
    """Digests of the files of a run that results are read from, by path below the folder."""
    return {path.relative_to(folder).as_posix(): files.digest(path) for path in _files_of(folder)}


def _files_of(folder: Path) -> Iterator[Path]:
    tables = (f"{name}.csv" for name in TABLES)
    for name in ("config.json", *OUTCOME, *tables):
        if (folder / name).exists():
            yield folder / name
    for name in _ADAPTER:
        yield from sorted(folder.glob(f"adapters/*/{name}"))


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run folder; DamagedError if it is not what was written."""
    advice = f"delete it and run again, {_again(folder)}"
    return read_sealed(folder / "result.json", advice)


def check(folder: Path, name: str) -> None:
    """DamagedError unless a finished run's file is the one of its result.json, or has no digest."""
    stored = read_result(folder).get("files", {})
    if name in stored and not _is(folder / name, stored[name]):
        raise DamagedError(_told(folder, name))


def check_all(folder: Path) -> None:
    """The same of every file that the result.json names."""
    for name in read_result(folder).get("files", {}):
        check(folder, name)


def check_config(folder: Path) -> None:
    """DamagedError unless config.json is the one that the run's result, or else its state, names.

    A result or state that is damaged itself tells nothing: it is made anew, or told of later.
    """
    digest, name = None, "config.json"
    with contextlib.suppress(DamagedError):
        if (folder / "result.json").exists():
            digest = read_result(folder).get("files", {}).get(name)
        elif state := read_state(folder):
            digest = state.files.get(name)
    if digest and not _is(folder / name, digest):
        raise DamagedError(
            f"{folder / name} is damaged (its digest is another): put it back, or delete {folder} "
            "and run again, from round 1"
        )


def is_finished(folder: Path) -> bool:
    """Whether a run has a result, and every file that the result names is there and whole."""
    if not (folder / "result.json").exists():
        return False
    try:
        check_all(folder)
    except DamagedError:
        return False
    return True


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and files.digest(path) == digest


def _told(folder: Path, name: str) -> str:
    path = folder / name
    state = "damaged (its digest is not that in result.json)" if path.exists() else "missing"
    if name == "config.json":
        advice = f"put it back, or delete {folder} and run again, from round 1"
    elif Path(name).stem in TABLES and (folder / "checkpoint").exists():
        advice = f"delete {folder / 'checkpoint'} and run again, from round 1"
    else:
        advice = f"run again, {_again(folder)}"
    return f"{path} is {state}: {advice}"


def _again(folder: Path) -> str:
    """From which round a run goes on that has to rank again."""
    try:
        last = read_state(folder)
    except DamagedError:
        last = None
    return f"which goes on behind round {last.round}" if last else "from its start"


# A search, and an adapter folder, which may lie elsewhere than its run


def read_chosen(path: Path) -> dict[str, Any]:
    """chosen.json of a search: settings, tried; DamagedError if it is not what was written."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing: run the search first")
    advice = "delete it and run the search again, which keeps its finished tries"
    content = read_sealed(path, advice)
    if not {"settings", "tried"} <= content.keys():
        raise DamagedError(f"{path} is damaged (it lacks settings or tried): {advice}")
    return content


def check_adapter(folder: Path) -> None:
    """DamagedError unless an adapter's tensors are those that its adapter_config.json names."""
    advice = "copy it anew from its run, or run again, which writes the adapters anew"
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise DamagedError(f"{path} is missing: {advice}")
    try:
        entries = (json.loads(path.read_bytes())["auto_mapping"] or {}).get("fedecider", {})
        stored = dict(entries.get("files", {}))  # none in a folder of before digests
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {advice}") from error
    for name, digest in stored.items():
        if not _is(folder / name, digest):
            state = "damaged (its digest is another)" if (folder / name).exists() else "missing"
            raise DamagedError(f"{folder / name} is {state}: {advice}")


# Between rounds


class State(NamedTuple):
    """checkpoint/state.json: the last finished round, numbers by client, and digests."""

    round: int
    clients: dict[str, dict[str, Any]]
    tensors: str  # name of the file
    files: dict[str, Any]  # path below the folder -> digest, or (bytes, digest) of a table's start


def _start_over(folder: Path) -> str:
    return f"delete {folder / 'checkpoint'} and run again, from round 1"


def write_state(folder: Path, round: int, clients: dict[str, dict[str, Any]], file: str) -> None:
    """Note the last finished round; `file` in checkpoint/ and the tables are already there."""
    stored: dict[str, Any] = {f"checkpoint/{file}": files.digest(folder / "checkpoint" / file)}
    for name in TABLES:
        path = folder / f"{name}.csv"
        if path.exists():
            stored[path.name] = [path.stat().st_size, files.digest(path)]
    if (folder / "config.json").exists():
        stored["config.json"] = files.digest(folder / "config.json")
    state = {"round": round, "clients": clients, "tensors": file, "files": stored}
    write_sealed(folder / "checkpoint" / "state.json", state)


def read_state(folder: Path) -> State | None:
    """The state of the last finished round, None where there is none.

    Raises DamagedError if it is not what was written, or a file that it names is not.
    """
    path = folder / "checkpoint" / "state.json"
    if not path.exists():
        return None
    content = read_sealed(path, _start_over(folder))
    try:
        state = State(content["round"], content["clients"], content["tensors"], {})
    except KeyError as error:
        raise DamagedError(
            f"{path} is damaged (it lacks {error}): {_start_over(folder)}"
        ) from error
    return state._replace(files=content.get("files", {}))


def check_state(folder: Path, state: State) -> None:
    """DamagedError unless tensors and configuration are those of the state.

    The tables are checked as they are read, see `table_start`.
    """
    for name in {f"checkpoint/{state.tensors}": None, **state.files}:
        path, digest = folder / name, state.files.get(name)
        if Path(name).stem in TABLES or digest and _is(path, digest):
            continue
        if digest or not path.exists():
            kind = "damaged (its digest is not that in state.json)" if path.exists() else "missing"
            again = _start_over(folder)
            if name == "config.json":
                again = f"put it back, or delete {folder} and run again, from round 1"
            raise DamagedError(f"{path} is {kind}: {again}")


def table_start(folder: Path, state: State, name: str) -> str:
    """A table's text as it was after the state's round; what came behind it is left out.

    Raises DamagedError if it is not what was written.
    """
    path = folder / f"{name}.csv"
    if path.name not in state.files:  # a folder of before digests
        frame = read_csv(path, name)
        return frame[frame["round"] <= state.round].to_csv(index=False)
    size, digest = state.files[path.name]
    content = path.read_bytes()[:size] if path.exists() else b""
    content_hash = files.hasher()
    content_hash.update(content)
    if content_hash.hexdigest() != digest:
        kind = "damaged (its digest is not that in state.json)" if path.exists() else "missing"
        raise DamagedError(f"{path} is {kind}: {_start_over(folder)}")
    return content.decode()
