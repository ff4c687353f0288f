"""Inner products of all clients' updates, layer by layer, in a few batched matmuls.

What a server that compares updates needs (norms, cosines), for n clients and L layers:

    G[l, i, j] = <dW_i, dW_j>_F of layer l = sum of (B_i^T B_j) * (A_i A_j^T) over r x r entries.

With the clients' factors side by side, B (d_out, n r) and A (n r, d_in), both products of a layer
are one matmul each, and layers of equal shape are one batch. Cost O(L n^2 r^2 (d_out + d_in)); a
dense server pays O(L n r d_out d_in) to form the updates and O(L n^2 d_out d_in) to compare them.
The algebra is that of `direction.inner` (method, section 2), which works pair by pair in float64
and is safe for any scale; here the factors' own precision is kept, at least float32.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedecider.direction import LowRank


def gram(updates: Sequence[Mapping[str, LowRank]]) -> dict[str, Tensor]:
    """Inner products (n, n) of n clients' updates for every module that occurs, at least float32.

    Ranks may differ; a module that a client lacks counts as zero. Raises ValueError for no clients
    and for factors of one module that do not fit each other.
    """
    if not updates:
        raise ValueError("inner products need at least one client")
    layers: dict[tuple, list[str]] = {}
    for name in sorted(set().union(*updates)):
        layers.setdefault(_signature(name, updates), []).append(name)
    products = {}
    for (*_, ranks), names in layers.items():
        owner = torch.tensor([i for i, rank in enumerate(ranks) for _ in range(rank)])
        # One matrix of each kind per layer: the payload is copied once, shape by shape.
        B = _products([[u[name].B.T for u in updates if name in u] for name in names])
        A = _products([[u[name].A for u in updates if name in u] for name in names])
        owner = owner.to(B.device)
        for name, entries in zip(names, B.mul_(A), strict=True):
            rows = entries.new_zeros(len(updates), len(owner)).index_add_(0, owner, entries)
            whole = entries.new_zeros(len(updates), len(updates)).index_add_(1, owner, rows)
            products[name] = whole
    return {name: products[name] for name in sorted(products)}


def norms(products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Frobenius norm (n,) of each client's update of every module, from `gram`."""
    return {name: entry.diagonal().clamp(min=0).sqrt() for name, entry in products.items()}


def cosines(products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cosine (n, n) between the clients' updates of every module; nan where one is zero."""
    angles = {}
    for name, entry in products.items():
        size = entry.diagonal().clamp(min=0).sqrt()
        angles[name] = entry / (size[:, None] * size)
    return angles


def _signature(name: str, updates: Sequence[Mapping[str, LowRank]]) -> tuple:
    """(d_out, d_in, rank of each client): layers that share it are one batch."""
    pairs = [update.get(name) for update in updates]
    ranks = tuple(0 if pair is None else pair.A.shape[0] for pair in pairs)
    present = [pair for pair in pairs if pair is not None]
    shapes = {(pair.B.shape[0], pair.A.shape[1]) for pair in present}
    if len(shapes) > 1 or any(pair.B.shape[1] != pair.A.shape[0] for pair in present):
        shapes_told = ", ".join(f"{tuple(p.B.shape)} {tuple(p.A.shape)}" for p in present)
        raise ValueError(f"the clients' factors of {name} do not fit each other: {shapes_told}")
    return (*shapes.pop(), ranks)


def _products(rows: list[list[Tensor]]) -> Tensor:
    """Products (L, R, R) of all rows of each layer with each other, R = sum of ranks."""
    side = torch.stack([torch.cat(factors) for factors in rows])
    side = side.to(torch.promote_types(side.dtype, torch.float32))
    return torch.bmm(side, side.transpose(1, 2))
