"""What travels between client and server: validated safetensors payloads, their bytes counted.

Nothing else crosses. A payload is a flat dict of named tensors, `<module>.A` and `<module>.B`; a
module without an update is absent. They travel as float32 or bfloat16, or as int8 with one scale a
row of A and a column of B (a singular vector each, in canonical form), `<module>.scales` (2, r).
"""

import json
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedecider.direction import LowRank, norm

Precision = Literal["float32", "bfloat16", "int8"]

# How far rounding may take the norm of a direction from 1.
_UNIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2, "int8": 0.25}
# No layer's update comes near it; a larger one would drown the frozen weights.
_LARGEST_NORM = 1e6


class PayloadError(ValueError):
    """A payload that must not be used; the message names sender, tensor and what was expected."""


def encode(
    factors: Mapping[str, LowRank], examples: int | None = None, precision: Precision = "float32"
) -> bytes:
    """Factors per module to bytes; equal factors give equal bytes.

    `examples`, the number of training targets, goes along where a method weights by it. Raises
    ValueError for an unknown precision.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision must be one of {known}, got {precision!r}")
    tensors = {}
    for name in sorted(factors):
        B, A = (tensor.detach().to("cpu", torch.float32) for tensor in factors[name])
        if precision == "int8":
            (B, b), (A, a) = _quantised(B, 0), _quantised(A, 1)
            tensors[f"{name}.scales"] = torch.stack([b, a])
        else:
            B, A = (tensor.to(getattr(torch, precision)) for tensor in (B, A))
        tensors |= {f"{name}.A": A.contiguous(), f"{name}.B": B.contiguous()}
    return save(tensors, None if examples is None else {"examples": str(examples)})


def _quantised(tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Rounded to -127..127 in units of one scale a vector along `dim`, and the scales (r,)."""
    scale = tensor.abs().amax(dim) / 127
    steps = tensor / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(dim)
    return steps.round().to(torch.int8), scale


def examples(payload: bytes, sender: str) -> int:
    """The number of training targets in a payload, or PayloadError."""
    try:
        length = int.from_bytes(payload[:8], "little")
        count = int(json.loads(payload[8 : 8 + length])["__metadata__"]["examples"])
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadError(f"payload of {sender} does not tell its number of examples") from error
    if count < 1:
        raise PayloadError(f"payload of {sender} tells {count} examples, expected at least 1")
    return count


def decode(
    payload: bytes,
    shapes: Mapping[str, tuple[int, int]],
    sender: str,
    unit: str | None = None,
    whole: bool = True,
    precision: Precision = "float32",
    rank: int | None = None,
) -> dict[str, LowRank]:
    """Bytes to float32 factors per module, or PayloadError.

    `shapes` gives (d_out, d_in) of every module that may occur, `rank` the largest rank that is
    expected; `unit` names the norm kind of which each must be a direction: its norm ("column": its
    largest) is 1, or less if it is not `whole` but truncated.
    """
    expected = getattr(torch, precision)
    try:
        tensors = load(payload)
    except Exception as error:
        raise PayloadError(f"payload of {sender} is no safetensors file: {error}") from error
    names = sorted({key.rpartition(".")[0] for key in tensors})
    factors = {}
    for name in names:
        if name not in shapes:
            raise PayloadError(f"payload of {sender} names {name!r}, not an adapted module")
        pair = LowRank(*(tensors.pop(f"{name}.{part}", None) for part in ("B", "A")))
        for part, tensor in pair._asdict().items():
            if tensor is None:
                raise PayloadError(f"payload of {sender} lacks {name}.{part}")
            if tensor.dtype != expected:
                raise PayloadError(f"{name}.{part} of {sender} is {tensor.dtype}, not {precision}")
            if not torch.isfinite(tensor).all():
                raise PayloadError(f"{name}.{part} of {sender} is not finite")
        d_out, d_in = shapes[name]
        fits = pair.B.ndim == pair.A.ndim == 2 and pair.B.shape[1] == pair.A.shape[0]
        if not fits or pair.B.shape[0] != d_out or pair.A.shape[1] != d_in:
            raise PayloadError(
                f"{name} of {sender} has B {tuple(pair.B.shape)} and A {tuple(pair.A.shape)}, "
                f"expected ({d_out}, r) and (r, {d_in})"
            )
        if rank is not None and pair.rank > rank:
            raise PayloadError(f"{name} of {sender} has rank {pair.rank}, at most {rank} expected")
        if precision == "int8":
            pair = _restored(pair, tensors.pop(f"{name}.scales", None), name, sender)
        pair = pair.to(torch.float32)
        size = norm(pair, unit or "frobenius").max().item()
        if size > _LARGEST_NORM:
            raise PayloadError(
                f"{name} of {sender} has norm {size:.4g}, at most {_LARGEST_NORM:g} expected"
            )
        slack = _UNIT_TOLERANCE[precision]
        if unit is not None and (size > 1 + slack or (whole and size < 1 - slack)):
            raise PayloadError(
                f"{name} of {sender} is no direction: its {unit} norm is {size:.4g}, not 1"
            )
        if precision == "int8" and unit in ("frobenius", "spectral") and whole:
            pair = pair.scaled(1 / size)  # small entries round to 0; a direction has norm 1 again
        factors[name] = pair
    if tensors:
        raise PayloadError(f"payload of {sender} has the stray tensor {sorted(tensors)[0]!r}")
    return factors


def _restored(pair: LowRank, scales: Tensor | None, name: str, sender: str) -> LowRank:
    """Factors of an int8 payload times their scales."""
    if scales is None:
        raise PayloadError(f"payload of {sender} lacks {name}.scales")
    fits = scales.dtype == torch.float32 and scales.shape == (2, pair.rank)
    if not fits or not (torch.isfinite(scales).all() and (scales >= 0).all()):
        raise PayloadError(
            f"{name}.scales of {sender} must be (2, {pair.rank}) float32, finite and not negative"
        )
    return LowRank(pair.B * scales[0], pair.A * scales[1][:, None])
