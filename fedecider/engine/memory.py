"""Resident memory of this process, in MiB; nan where the system does not tell."""

import contextlib
import math
import re
from pathlib import Path


def peak() -> float:
    """Largest resident memory so far, or since `forget_peak`.

    Not getrusage's, which on Linux starts with what the parent held when it made this process.
    """
    return _status("VmHWM")


def resident() -> float:
    """Resident memory now."""
    return _status("VmRSS")


def forget_peak() -> float:
    """Let the peak start again from what is held now, where the system can; that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident()


def _status(name: str) -> float:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else math.nan
