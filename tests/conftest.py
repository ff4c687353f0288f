"""What all tests share: no windows, and one cache for the packaged weights."""

import os
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
# The dense copy of the packaged weights takes seconds to make, so tests use the repository's.
os.environ.setdefault("FEDECIDER_CACHE", str(Path(__file__).resolve().parents[1] / ".cache"))
# Matrices this small gain nothing from threads, and lose much on a busy machine.
torch.set_num_threads(1)
