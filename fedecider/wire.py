"""What travels between client and server: validated safetensors payloads, their bytes counted.

Nothing else crosses. A payload is a flat dict of named tensors, `<module>.A` and `<module>.B` or
one of the two; a module without an update is absent. They travel as float32 or bfloat16, or as int8
with one scale a row of A and a column of B (a singular vector each, in canonical form),
`<module>.scales` (parts, r). A method may send single numbers along (of training targets, say) in
the payload's header.
"""

import json
import math
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
LARGEST_NORM = 1e6


class PayloadError(ValueError):
    """A payload that must not be used; the message names sender, tensor and what was expected."""


def encode(
    factors: Mapping[str, LowRank],
    numbers: Mapping[str, float] | None = None,
    precision: Precision = "float32",
) -> bytes:
    """Factors per module to bytes; equal factors give equal bytes.

    A part of a pair that is None stays at home. `numbers` go along by name. Raises ValueError for
    an unknown precision.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision must be one of {known}, got {precision!r}")
    tensors = {}
    for name in sorted(factors):
        scales = []
        for part, dim in (("B", 0), ("A", 1)):
            tensor = getattr(factors[name], part)
            if tensor is None:
                continue
            tensor = tensor.detach().to("cpu", torch.float32)
            if precision == "int8":
                tensor, scale = _quantised(tensor, dim)
                scales.append(scale)
            else:
                tensor = tensor.to(getattr(torch, precision))
            tensors[f"{name}.{part}"] = tensor.contiguous()
        if scales:
            tensors[f"{name}.scales"] = torch.stack(scales)
    header = {key: repr(value) for key, value in sorted((numbers or {}).items())}
    return save(tensors, header or None)


def _quantised(tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Rounded to -127..127 in units of one scale a vector along `dim`, and the scales (r,)."""
    scale = tensor.abs().amax(dim) / 127
    steps = tensor / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(dim)
    return steps.round().to(torch.int8), scale


def number(payload: bytes, sender: str, name: str) -> float:
    """The number of that name in a payload, finite and positive, or PayloadError."""
    try:
        length = int.from_bytes(payload[:8], "little")
        value = float(json.loads(payload[8 : 8 + length])["__metadata__"][name])
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadError(f"payload of {sender} does not tell its {name}") from error
    if not (math.isfinite(value) and value > 0):
        raise PayloadError(f"payload of {sender} tells {name} {value:g}, expected more than 0")
    return value


def decode(
    payload: bytes,
    shapes: Mapping[str, tuple[int, int]],
    sender: str,
    unit: str | None = None,
    whole: bool = True,
    precision: Precision = "float32",
    rank: int | None = None,
    parts: str = "AB",
) -> dict[str, LowRank]:
    """Bytes to float32 factors per module, or PayloadError.

    `shapes` gives (d_out, d_in) of every module that may occur, `rank` the largest rank that is
    expected, `parts` which of A and B (the other is None); `unit` names the norm kind of which each
    must be a direction: its norm ("column": its largest) is 1, or less if it is not `whole` but
    truncated.
    """
    try:
        tensors = load(payload)
    except Exception as error:
        raise PayloadError(f"payload of {sender} is no safetensors file: {error}") from error
    names = sorted({key.rpartition(".")[0] for key in tensors})
    factors = {}
    for name in names:
        if name not in shapes:
            raise PayloadError(f"payload of {sender} names {name!r}, not an adapted module")
        pair = _taken(tensors, name, sender, shapes[name], precision, rank, parts)
        if any(part is None for part in pair):
            size = max(torch.linalg.matrix_norm(part).item() for part in pair if part is not None)
        else:
            size = norm(pair, unit or "frobenius").max().item()
        if size > LARGEST_NORM:
            raise PayloadError(
                f"{name} of {sender} has norm {size:.4g}, at most {LARGEST_NORM:g} expected"
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


def _taken(
    tensors: dict[str, Tensor],
    name: str,
    sender: str,
    shape: tuple[int, int],
    precision: Precision,
    rank: int | None,
    parts: str,
) -> LowRank:
    """A module's factors out of the payload's tensors, each checked, in float32."""
    expected = getattr(torch, precision)
    found: dict[str, Tensor | None] = {"B": None, "A": None}
    for part in (one for one in ("B", "A") if one in parts):
        tensor = found[part] = tensors.pop(f"{name}.{part}", None)
        if tensor is None:
            raise PayloadError(f"payload of {sender} lacks {name}.{part}")
        if tensor.dtype != expected:
            raise PayloadError(f"{name}.{part} of {sender} is {tensor.dtype}, not {precision}")
        if not torch.isfinite(tensor).all():
            raise PayloadError(f"{name}.{part} of {sender} is not finite")
    (d_out, d_in), (B, A) = shape, found.values()
    fits = all(part is None or part.ndim == 2 for part in (B, A))
    fits = fits and (B is None or B.shape[0] == d_out) and (A is None or A.shape[1] == d_in)
    if not fits or (B is not None and A is not None and B.shape[1] != A.shape[0]):
        given = " and ".join(f"{k} {tuple(v.shape)}" for k, v in found.items() if v is not None)
        raise PayloadError(f"{name} of {sender} has {given}, expected ({d_out}, r) and (r, {d_in})")
    size = A.shape[0] if A is not None else B.shape[1]
    if rank is not None and size > rank:
        raise PayloadError(f"{name} of {sender} has rank {size}, at most {rank} expected")
    if precision == "int8":
        scales = _scales(tensors.pop(f"{name}.scales", None), len(parts), size, name, sender)
        B = None if B is None else B * scales[0]
        A = None if A is None else A * scales[-1][:, None]
    return LowRank(*(None if part is None else part.to(torch.float32) for part in (B, A)))


def _scales(scales: Tensor | None, parts: int, rank: int, name: str, sender: str) -> Tensor:
    """The scales of an int8 payload, a row for B and a row for A, whichever travel."""
    if scales is None:
        raise PayloadError(f"payload of {sender} lacks {name}.scales")
    fits = scales.dtype == torch.float32 and scales.shape == (parts, rank)
    if not fits or not (torch.isfinite(scales).all() and (scales >= 0).all()):
        raise PayloadError(
            f"{name}.scales of {sender} must be ({parts}, {rank}) float32, finite and not negative"
        )
    return scales
