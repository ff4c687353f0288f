"""Hidden states below the first adapted block: the same for all methods, rounds, epochs and seeds.

Where LoRA sits on the top K blocks only, everything below is a fixed function of the tokens. It is
computed once and kept in a file named by its content (model, precision, block, tokens), which
is mapped into memory afterwards. With LoRA on all blocks these states are the token embeddings,
and nothing is kept.

A file ends with the digest of its rows, checked when it is first opened in a process.
"""

import contextlib
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.engine import files
from fedecider.engine.backbone import Backbone
from fedecider.engine.packing import PackedBatch, PromptTree, pack
from fedecider.engine.weights import cache_folder

# Part of every key: raise it when the arithmetic of `compute_states` changes, be it in the last
# digit.
_ARITHMETIC = 3
FORWARD_TOKENS = 2048  # per forward: large enough for full matmul speed, small enough for the cache


class HiddenStateCache:
    """States of many trees below block `first`, kept on disk; `batch` packs them into a row."""

    def __init__(
        self,
        backbone: Backbone,
        trees: Sequence[PromptTree],
        first: int,
        label: str = "hidden states",
    ):
        """Computes what is not stored yet, under a progress bar with this label."""
        self.backbone, self.trees, self.first = backbone, list(trees), first
        self.sizes = [tree.size for tree in self.trees]
        self._ends = list(accumulate(self.sizes))
        self._stored = self._read(label) if first and self.sizes else None

    def __len__(self) -> int:
        return len(self.trees)

    def batch(self, indices: Sequence[int]) -> PackedBatch:
        """The trees with these indices as one packed row, with its states (T, width)."""
        return PackedBatch([self.trees[index] for index in indices], self.states(indices))

    def states(self, indices: Sequence[int]) -> Tensor:
        """States (T, width) of the trees with these indices, in the order of their packed row."""
        if self._stored is None:
            ids = [token for index in indices for token in self.trees[index].ids]
            return self.backbone.embed(torch.tensor(ids, dtype=torch.long))[0]
        parts = [
            self._stored[self._ends[index] - self.sizes[index] : self._ends[index]]
            for index in indices
        ]
        return torch.cat(parts)

    def _read(self, label: str) -> Tensor:
        def compute() -> Iterator[Tensor]:
            with progress_bar(sum(self.sizes), label) as bar:
                for indices in pack(self.sizes, FORWARD_TOKENS):
                    states = compute_states(
                        self.backbone, [self.trees[index] for index in indices], self.first
                    )
                    yield states
                    bar.update(len(states))

        key = content_key(self.backbone, self.trees, self.first, "all tokens")
        shape = (sum(self.sizes), self.backbone.width)
        return stored_rows(key, shape, self.backbone.dtype, compute)


class ConcatCache(HiddenStateCache):
    """Several caches of one model behind each other as one; nothing is copied."""

    def __init__(self, caches: Sequence[HiddenStateCache]):
        self.backbone, self.first = caches[0].backbone, caches[0].first
        self.trees = [tree for cache in caches for tree in cache.trees]
        self.sizes = [size for cache in caches for size in cache.sizes]
        self._owners = [(cache, index) for cache in caches for index in range(len(cache))]

    def states(self, indices: Sequence[int]) -> Tensor:
        """States (T, width) of the trees with these indices, in the order of their packed row."""
        owners = [self._owners[index] for index in indices]
        return torch.cat([cache.states([index]) for cache, index in owners])


@torch.no_grad()
def compute_states(backbone: Backbone, trees: Sequence[PromptTree], first: int) -> Tensor:
    """States of one packed row of trees below block `first`, (T, width); nothing is stored."""
    batch = PackedBatch(trees)
    return backbone.blocks(backbone.embed(batch.ids), batch.positions, batch, last=first)[0]


def progress_bar(tokens: int, label: str) -> tqdm:
    """Bar over the tokens of a computation whose result is kept."""
    return tqdm(total=tokens, desc=label, unit="tok", leave=False, mininterval=1)


# Files of rows, named by content


def content_key(backbone: Backbone, trees: Sequence[PromptTree], first: int, content: str) -> str:
    """Names a file by what it holds: model, precision, block, tokens, and what is kept of them."""
    digest = hashlib.sha256(f"{_ARITHMETIC} {backbone.identity} {first} {content}".encode())
    for tree in trees:
        lengths = [len(tree.prompt), *map(len, tree.continuations)]
        digest.update(np.array([len(lengths), *lengths], dtype=np.int64).tobytes())
        for tokens in (tree.prompt, *tree.continuations):
            digest.update(np.array(tokens, dtype=np.int32).tobytes())
    return digest.hexdigest()[:32]


def stored_rows(
    key: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    compute: Callable[[], Iterator[Tensor]],
) -> Tensor:
    """The tensor of this key and shape, mapped from its file.

    Where there is no such file, or a damaged one, `compute` yields the rows, in blocks. The file
    appears under its name only when it is whole. Where the cache cannot be written the rows are
    kept in memory alone, with a warning.
    """
    folder = _folder()
    path = folder / f"{key}.{str(dtype).removeprefix('torch.')}"
    values = shape[0] * shape[1]
    try:
        if not _is_whole(path, values * dtype.itemsize):
            with files.atomic(path) as beside, beside.open("wb") as file:
                content_hash = files.hasher()
                for rows in compute():
                    content = rows.cpu().contiguous().view(torch.uint8).numpy().tobytes()
                    content_hash.update(content)
                    file.write(content)
                file.write(content_hash.digest())
            _checked[path] = files.mark(path)
        _touch(path)
        return torch.from_file(str(path), size=values, dtype=dtype).view(shape)
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        warnings.warn(f"{path} is of no use here ({reason}): not stored", stacklevel=2)
        return torch.cat([rows.cpu() for rows in compute()]).view(shape)


_checked: dict[Path, tuple[int, int, int]] = {}


def _is_whole(path: Path, size: int) -> bool:
    """Whether a file holds `size` bytes of rows and, behind them, their digest.

    A file of before digests holds the rows alone, and is trusted. False where there is no file;
    a damaged one is named in a warning. Raises OSError for one that may not be read.
    """
    if not path.exists():
        return False
    current = files.mark(path)
    if _checked.get(path) == current:
        return True
    content_hash = files.hasher()
    with path.open("rb") as file:
        left = size
        while block := file.read(min(left, 2**20)):
            content_hash.update(block)
            left -= len(block)
        stored = file.read()
    if left or stored not in (b"", content_hash.digest()):
        warnings.warn(f"{path} is damaged and computed anew", stacklevel=2)
        return False
    _checked[path] = current
    return True


def _touch(path: Path) -> None:
    """Note the use, so that `prune` drops what was used longest ago; an hour is near enough."""
    if time.time() - path.stat().st_mtime > 3600:
        with contextlib.suppress(OSError):  # another user's
            os.utime(path)
            _checked[path] = files.mark(path)


def prune(limit: int = 20 * 2**30) -> int:
    """Delete the files used longest ago until at most `limit` bytes are left; bytes freed."""
    stored = []
    for file in _folder().glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another process may prune as well
            status = file.stat()
            stored.append((status.st_mtime_ns, status.st_size, file))
    excess, freed = sum(size for _, size, _ in stored) - limit, 0
    for _, size, file in sorted(stored):
        if freed >= excess:
            break
        with contextlib.suppress(OSError):  # another user's
            file.unlink(missing_ok=True)
            freed += size
    return freed


def remove_unfinished() -> None:
    """Delete what killed writers of stored states left, of this version or an older one."""
    older = re.compile(rf"\.[a-z0-9_]{{8}}|{files.UNFINISHED.pattern}")
    files.remove_unfinished(_folder(), older)


def _folder() -> Path:
    return cache_folder() / "states"
