"""Files that are whole or absent, and known again by a digest.

A writer holds a lock on its unfinished file until that is renamed. The system drops the lock when
the writer dies, so an unfinished file without one is left over.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# By errno: what a user can do about a file that could not be written.
_ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs that hold files open",
    errno.EROFS: "make the folder writable or name another one",
    errno.EACCES: "make the folder writable or name another one",
    errno.EPERM: "make the folder writable or name another one",
    errno.EEXIST: "a file is in the way: move it or name another folder",
    errno.ENOTDIR: "a file is in the way: move it or name another folder",
    errno.EIO: "the disk may be failing: name a folder on another one",
}
# What `atomic` and libraries that write beside a file leave behind when they are killed.
UNFINISHED = re.compile(r"\..+-[a-z0-9_]{8}|\.tmp\w*")
DIGEST_BYTES = 16


class WriteError(OSError):
    """A file could not be written: one sentence with the path and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the disk while `path` is written into a WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        told = WriteError(
            f"{path} cannot be written ({os.strerror(error.errno)}): {_ADVICE[error.errno]}; "
            "what was written before is kept, and the same call goes on from there"
        )
        told.errno = error.errno
        raise told from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; synced and renamed to it if all went well, else deleted.

    Raises WriteError if the disk refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = _begin(path)
        try:
            yield unfinished
            unfinished.chmod(0o644)
            sync(unfinished)
            unfinished.replace(path)
            sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)
            os.close(handle)


def _begin(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked by this process: the handle that holds the lock, the file.

    Between its making and its locking somebody may have cleared it away as left over.
    """
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try_lock(handle)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)


def try_lock(handle: int) -> bool | None:
    """Whether this process now holds the lock; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, names: re.Pattern[str] = UNFINISHED) -> None:
    """Delete what killed writers left right in a folder; what a living one holds stays."""
    with contextlib.suppress(OSError):  # no such folder, or not ours: nothing to clear
        for path in folder.iterdir():
            if names.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    _remove_unheld(path)


def _remove_unheld(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        if try_lock(handle):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(handle)


_digests: dict[Path, tuple[tuple[int, int, int], str]] = {}


def mark(path: Path) -> tuple[int, int, int]:
    """What changes with a file's content: size, time of the last change, number on the disk."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def digest(path: Path) -> str:
    """Digest of a file's content, computed once per process as long as its `mark` stays."""
    current = mark(path)
    before = _digests.get(path)
    if before is None or before[0] != current:
        with path.open("rb") as file:
            content_hash = hashlib.file_digest(file, hasher)
        before = _digests[path] = (current, content_hash.hexdigest())
    return before[1]


def hasher() -> hashlib.blake2b:
    """The hash of all digests of files."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)
