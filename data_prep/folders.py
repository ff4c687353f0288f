"""Folders on disk: a data set is what its manifest says, written when all else is in place.

One process at a time writes a folder; what the disk refuses is told in one sentence.
"""

import difflib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from .names import is_name
from .reading import FormatError

MANIFEST = "manifest.json"
FILES = ("interactions.parquet", "items.parquet", "splits.parquet", "candidates.parquet")
# By errno: what a user can do about a folder that cannot be written.
_ADVICE = {
    errno.ENOSPC: "free space there or name another folder",
    errno.EDQUOT: "free space there or name another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs that hold files open",
    errno.EROFS: "make it writable or name another folder",
    errno.EACCES: "make it writable or name another folder",
    errno.EPERM: "make it writable or name another folder",
    errno.EEXIST: "a file is in the way: move it or name another folder",
    errno.ENOTDIR: "a file is in the way: move it or name another folder",
}


class WriteError(OSError):
    """A folder cannot be written: one sentence with the folder and what to do."""


class BusyError(RuntimeError):
    """Another preparation writes the folder."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns errors of the disk, and DuckDB's for want of it, into a WriteError on `folder`.

    An error that names a file elsewhere, such as a raw file that may not be read, stays what it is.
    """
    try:
        yield
    except WriteError:
        raise
    except duckdb.Error as error:
        if not is_of_disk(error):
            raise
        reason, number = str(error).splitlines()[0], _number(error)
        advice = "free space there, raise the setting memory or name another folder"
        raise _refused(folder, reason, number, advice) from error
    except OSError as error:
        number = error.errno or _number(error)
        limits = number in (errno.EMFILE, errno.ENFILE)
        if number not in _ADVICE or not limits and not _along(folder, error.filename):
            raise
        raise _refused(folder, str(error), number) from error


def is_of_disk(error: duckdb.Error) -> bool:
    """Whether DuckDB lacks disk or memory for its own files; it never reads the raw ones itself."""
    lacks = isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException)
    return lacks or _number(error) is not None


def _number(error: Exception) -> int | None:
    """The errno that a message without one tells."""
    return next((number for number in _ADVICE if os.strerror(number) in str(error)), None)


def _along(folder: Path, name: Any) -> bool:
    """Whether a file is in the folder or is one above it; so is what has no name."""
    if not isinstance(name, str | os.PathLike):
        return True
    path, folder = Path(os.path.abspath(name)), Path(os.path.abspath(folder))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _refused(folder: Path, reason: str, number: int | None, advice: str = "") -> WriteError:
    if number is not None:
        reason, advice = os.strerror(number), _ADVICE[number]
    error = WriteError(f"{folder} cannot be written ({reason}): {advice}")
    error.errno = number
    return error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if it is absent, for this process alone.

    Raises BusyError if another preparation holds it, and WriteError, also for what happens within.
    The lock is on the folder itself and goes with the process; a file system without locks has
    none.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"{folder} is being prepared by another process: wait until it is done, or "
                    "name another folder"
                ) from None
            except OSError:
                pass
            yield
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Delete a folder or a file, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of the data set in `out`; None if there is none.

    Raises FormatError if it is damaged.
    """
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sound = all(
            is_name(name) and isinstance(files, dict) for name, files in manifest["domains"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise FormatError(f"{path} is damaged: prepare the data set again")
    return manifest


def write_manifest(out: Path, domains: Iterable[str], **entries: Any) -> None:
    """Write out/manifest.json for these domains: the sha256 of each of their files, and entries."""
    listed = {
        name: {
            file.name: digest(file)
            for file in sorted((out / name).iterdir())
            if file.name in (*FILES, "meta.json")
        }
        for name in domains
    }
    write_json(out / MANIFEST, entries | {"domains": listed})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once: a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def install(out: Path, built: dict[str, Path]) -> Iterator[None]:
    """Rename what is built to out/<name>; within, the manifest is written.

    After it what an earlier preparation left in `out` is removed: the domains of its manifest that
    are not among the built ones, and hidden files and folders of stopped preparations. Nobody reads
    a folder that no manifest names, so the domains of a damaged one stay. If a rename or what is
    done within fails, all is as it was.
    """
    try:
        earlier = set((read_manifest(out) or {}).get("domains", {}))
    except FormatError:
        earlier = set()
    for path in built.values():
        for part in (*path.glob("*"), path):
            sync(part)
    moved: list[tuple[Path, Path]] = []
    try:
        for name, path in built.items():
            target, old = out / name, out / f".{name}.old"
            if target.exists() and target.is_dir() != path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            remove(old)
            if target.exists():
                target.rename(old)
                moved.append((old, target))
            path.rename(target)
            moved.append((target, path))
        sync(out)
        yield
    except BaseException:
        for now, before in reversed(moved):
            now.rename(before)
        raise
    for name in earlier - set(built):
        remove(out / name)
    for pattern in (".*.old", ".*.partial"):
        for path in out.glob(pattern):
            remove(path)
    sync(out)


def unprepared(folder: Path) -> FileNotFoundError:
    """The error for a folder without a prepared data set; it names the nearest that is."""
    return FileNotFoundError(f"no prepared data in {folder}: {nearest(folder)}")


def nearest(folder: Path, holding: str = MANIFEST) -> str:
    """A clause on the folder that may be meant: around it, or called much like it or one above it.

    Folders that hold a file of that name come first.
    """
    base = next(path for path in (folder, *folder.parents) if path.is_dir())
    if base == folder:
        around = [folder.parent, *_folders(folder)]
    else:
        _, *rest = folder.relative_to(base).parts
        around = [path.joinpath(*rest) for path in _folders(base)]
        around = [path for path in around if path.is_dir()] or _folders(base)
    prepared = [path for path in around if (path / holding).is_file()]
    names = sorted(map(str, prepared or (around if base != folder else [])))
    cutoff = 0.0 if prepared else 0.6
    close = difflib.get_close_matches(str(folder), names, n=1, cutoff=cutoff)
    if base == folder and not close:
        return "no folder around it has been prepared either"
    return f"the nearest folder that is there is {close[0] if close else os.path.abspath(base)}"


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and path.name[:1] != "."]
