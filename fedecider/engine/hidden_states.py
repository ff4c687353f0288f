"""Hidden states below the first adapted block: the same for all methods, rounds, epochs and seeds.

Where LoRA sits on the top K blocks only, everything below is a fixed function of the tokens. It is
computed once and kept in a file named by its content (model, precision, block, tokens), which
is mapped into memory afterwards. With LoRA on all blocks the trunk is the embedding and nothing
is kept.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.backbone import Backbone, cache_folder
from fedecider.sequences import Forest, Tree, pack

# Part of every key: raise it when the arithmetic of `compute` changes, be it in the last digit.
_COMPUTED = 3
_BUDGET = 2048  # tokens a forward; large enough for full matmul speed, small enough for the cache


class Trunk:
    """States (tokens, width) of many trees; `trunk[i]` is tree i's, `cat` joins several."""

    def __init__(self, backbone: Backbone, trees: Sequence[Tree], first: int, label: str = "trunk"):
        self.backbone, self.trees, self.first = backbone, list(trees), first
        sizes = [tree.size for tree in self.trees]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self._states = (
            _stored_states(backbone, self.trees, first, label) if first and sizes else None
        )

    def __len__(self) -> int:
        return len(self.trees)

    def forest(self, indices: Sequence[int]) -> Forest:
        """The given trees as one packed row."""
        return Forest(self.trees[index] for index in indices)

    def cat(self, indices: Sequence[int], forest: Forest) -> Tensor:
        """Their states, (T, width), in the order of the forest's row."""
        if self._states is None:
            return self.backbone.embed(forest.ids)[0]
        parts = [
            self._states[self.ends[index] - self.trees[index].size : self.ends[index]]
            for index in indices
        ]
        return torch.cat(parts)


class Joined(Trunk):
    """Several trunks of one model as one; nothing is copied."""

    def __init__(self, trunks: Sequence[Trunk]):
        self.backbone, self.first = trunks[0].backbone, trunks[0].first
        self.trees = [tree for trunk in trunks for tree in trunk.trees]
        self._owner = [(trunk, index) for trunk in trunks for index in range(len(trunk))]

    def cat(self, indices: Sequence[int], forest: Forest) -> Tensor:
        """States of the given trees, (T, width)."""
        parts = []
        for index, tree in zip(indices, forest.trees, strict=True):
            trunk, place = self._owner[index]
            parts.append(trunk.cat([place], Forest([tree])))
        return torch.cat(parts)


def states_key(backbone: Backbone, trees: list[Tree], first: int, kept: str) -> str:
    """Names states by their content: model, precision, block, tokens, and what is kept of them."""
    digest = hashlib.sha256(f"{_COMPUTED} {backbone.identity} {first} {kept}".encode())
    for tree in trees:
        lengths = [len(tree.prompt), *map(len, tree.branches)]
        digest.update(np.array([len(lengths), *lengths], dtype=np.int64).tobytes())
        for piece in (tree.prompt, *tree.branches):
            digest.update(np.array(piece, dtype=np.int32).tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def compute(backbone: Backbone, trees: Sequence[Tree], first: int) -> Tensor:
    """States of one packed row of trees below block `first`, (T, width), uncached."""
    forest = Forest(trees)
    return backbone.blocks(backbone.embed(forest.ids), forest.positions, forest, last=first)[0]


def stored(key: str, shape: tuple[int, int], dtype: torch.dtype, make) -> Tensor:
    """The tensor of this key, mapped from its file; `make` yields its rows where there is none."""
    folder = cache_folder() / "trunk"
    path = folder / f"{key}.{str(dtype).removeprefix('torch.')}"
    total = shape[0] * shape[1]
    if not path.exists() or path.stat().st_size != total * dtype.itemsize:
        folder.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                for rows in make():
                    file.write(rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            Path(beside).replace(path)
        finally:
            Path(beside).unlink(missing_ok=True)
    os.utime(path)  # so that `prune` drops what was used longest ago
    return torch.from_file(str(path), size=total, dtype=dtype).view(shape)


def _stored_states(backbone: Backbone, trees: list[Tree], first: int, label: str) -> Tensor:
    total = sum(tree.size for tree in trees)

    def make():
        with _bar(trees, label) as bar:
            for indices in pack([tree.size for tree in trees], _BUDGET):
                part = [trees[index] for index in indices]
                yield compute(backbone, part, first)
                bar.update(sum(tree.size for tree in part))

    key = states_key(backbone, trees, first, "all tokens")
    return stored(key, (total, backbone.width), backbone.dtype, make)


def _bar(trees: list[Tree], label: str) -> tqdm:
    total = sum(tree.size for tree in trees)
    return tqdm(total=total, desc=label, unit="tok", leave=False, mininterval=1)


def prune(limit: int = 20 * 2**30) -> int:
    """Delete the files used longest ago until at most `limit` bytes are left; bytes freed."""
    files = []
    for file in (cache_folder() / "trunk").glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another process may prune as well
            status = file.stat()
            files.append((status.st_mtime_ns, status.st_size, file))
    excess, freed = sum(size for _, size, _ in files) - limit, 0
    for _, size, file in sorted(files):
        if freed >= excess:
            break
        freed += size
        file.unlink(missing_ok=True)
    return freed
