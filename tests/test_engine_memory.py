"""Memory of this process, and of a GPU by its own counters."""

import math

import pytest
import torch

from fedecider.engine.memory import peak_memory, reset_peak, resident_memory


def test_the_peak_of_this_process_remembers_what_is_gone():
    if math.isnan(resident_memory()):
        pytest.skip("the system does not tell the memory of a process")
    before = reset_peak()
    block = torch.ones(64 * 2**20 // 4)  # 64 MiB
    assert resident_memory() > before + 32
    del block
    assert peak_memory() > before + 32
    assert peak_memory(torch.device("cpu")) == peak_memory()


def test_a_gpu_is_asked_for_its_own(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    device = torch.device("cuda", 0)
    assert peak_memory(device) == 3 and calls == []
    assert reset_peak(device) == 2 and calls == [device]
