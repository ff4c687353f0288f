"""What all tests share: no windows, and one cache for the packaged weights."""

import os
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# The dense copy of the packaged weights takes seconds to make, so tests use the repository's.
os.environ.setdefault("FEDECIDER_CACHE", str(Path(__file__).resolve().parents[1] / ".cache"))
# Matrices this small gain nothing from threads, and lose much on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone():
    """The tiny model; one per test file."""
    from fedecider.engine.backbone import load

    return load("tiny", "cpu", "float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three prepared domains."""
    from toy import write_domains

    return write_domains(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """Domains with unlike numbers of users, and of training titles per user."""
    from toy import write_domain

    folder = tmp_path_factory.mktemp("unlike")
    write_domain(folder / "books", 0, users=12, history=8)
    write_domain(folder / "comics", 1, users=4, history=10)
    write_domain(folder / "games", 2, users=6, history=5)
    return folder
