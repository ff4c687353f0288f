"""Memory in MiB: a GPU's own counters, else this process' resident memory.

Resident memory is nan where the system does not tell. It is read from /proc and not by getrusage,
whose peak starts on Linux with what the parent held when it made this process.
"""

import contextlib
import math
import re
from pathlib import Path

import torch


def resident_memory() -> float:
    """Resident memory of this process now, MiB."""
    return _status("VmRSS")


def peak_memory(device: torch.device | None = None) -> float:
    """Largest memory so far, or since `reset_peak`, MiB: of a CUDA device, else of this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status("VmHWM")


def reset_peak(device: torch.device | None = None) -> float:
    """Let the peak start again from what is held now, where the system can; that, MiB."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_memory()


def _status(name: str) -> float:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(match[1]) / 1024 if match else math.nan
