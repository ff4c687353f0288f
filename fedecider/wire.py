"""What travels between client and server: validated safetensors payloads, their bytes counted.

Nothing else crosses. A payload is a flat dict of named tensors, `<module>.A` and `<module>.B` or
one of the two; a module without an update is absent. They travel as float32 or bfloat16, or as int8
with one scale per row of A and column of B (one per singular vector, in canonical form),
`<module>.scales` (parts, r). A method may send scalars along (a number of training targets, say) in
the payload's header.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedecider.config import PayloadDtype
from fedecider.direction import LowRank, NormKind, norm

# How far rounding may take the norm of a direction from 1.
_UNIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2, "int8": 0.25}
# No layer's update comes near it; a larger one would drown the frozen weights.
LARGEST_NORM = 1e6


class PayloadError(ValueError):
    """A payload that must not be used; the message names sender, tensor and what was expected."""


@dataclass(frozen=True)
class PayloadSpec:
    """What a payload must be.

    `shapes` gives (d_out, d_in) of every module that may occur, `rank` the largest rank that is
    expected, `parts` which of A and B (the other is None); `unit` names the norm kind in which each
    module must be a direction: its norm ("column": its largest) is 1, or less if it is not `whole`
    but truncated.
    """

    shapes: Mapping[str, tuple[int, int]]
    dtype: PayloadDtype = "float32"
    rank: int | None = None
    parts: str = "AB"
    unit: NormKind | None = None
    whole: bool = True


def encode(
    factors: Mapping[str, LowRank],
    metrics: Mapping[str, float] | None = None,
    dtype: PayloadDtype = "float32",
) -> bytes:
    """Factors per module to bytes; equal factors give equal bytes.

    A part of a pair that is None stays at home. `metrics` are scalars that go along by name. Raises
    ValueError for an unknown dtype.
    """
    if dtype not in get_args(PayloadDtype):
        known = ", ".join(get_args(PayloadDtype))
        raise ValueError(f"payload dtype must be one of {known}, got {dtype!r}")
    tensors = {}
    for name in sorted(factors):
        scales = []
        for part, dim in (("B", 0), ("A", 1)):
            tensor = getattr(factors[name], part)
            if tensor is None:
                continue
            tensor = tensor.detach().to("cpu", torch.float32)
            if dtype == "int8":
                tensor, scale = _quantised(tensor, dim)
                scales.append(scale)
            else:
                tensor = tensor.to(getattr(torch, dtype))
            tensors[f"{name}.{part}"] = tensor.contiguous()
        if scales:
            tensors[f"{name}.scales"] = torch.stack(scales)
    header = {key: repr(value) for key, value in sorted((metrics or {}).items())}
    return save(tensors, header or None)


def _quantised(tensor: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Rounded to -127..127 in units of one scale per vector along `dim`, and the scales (r,)."""
    scale = tensor.abs().amax(dim) / 127
    steps = tensor / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(dim)
    return steps.round().to(torch.int8), scale


def read_metrics(payload: bytes, sender: str) -> dict[str, float]:
    """The scalars in a payload's header by name, each finite and positive, or PayloadError."""
    try:
        length = int.from_bytes(payload[:8], "little")
        header = json.loads(payload[8 : 8 + length]).get("__metadata__") or {}
        metrics = {name: float(value) for name, value in header.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PayloadError(f"payload of {sender} has a header that cannot be read") from error
    for name, value in metrics.items():
        if not (math.isfinite(value) and value > 0):
            raise PayloadError(f"payload of {sender} tells {name} {value:g}, expected more than 0")
    return metrics


def decode(payload: bytes, sender: str, spec: PayloadSpec) -> dict[str, LowRank]:
    """Bytes to float32 factors per module, or PayloadError if they are not what `spec` says."""
    try:
        tensors = load(payload)
    except Exception as error:
        raise PayloadError(f"payload of {sender} is no safetensors file: {error}") from error
    factors = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        if name not in spec.shapes:
            raise PayloadError(f"payload of {sender} names {name!r}, not an adapted module")
        pair = _pop_pair(tensors, name, sender, spec)
        if any(part is None for part in pair):
            size = max(torch.linalg.matrix_norm(part).item() for part in pair if part is not None)
        else:
            size = norm(pair, spec.unit or "frobenius").max().item()
        if size > LARGEST_NORM:
            raise PayloadError(
                f"{name} of {sender} has norm {size:.4g}, at most {LARGEST_NORM:g} expected"
            )
        slack = _UNIT_TOLERANCE[spec.dtype]
        if spec.unit is not None and (size > 1 + slack or (spec.whole and size < 1 - slack)):
            raise PayloadError(
                f"{name} of {sender} is no direction: its {spec.unit} norm is {size:.4g}, not 1"
            )
        if spec.dtype == "int8" and spec.unit in ("frobenius", "spectral") and spec.whole:
            pair = pair.scaled(1 / size)  # small entries round to 0; a direction has norm 1 again
        factors[name] = pair
    if tensors:
        raise PayloadError(f"payload of {sender} has the stray tensor {sorted(tensors)[0]!r}")
    return factors


def _pop_pair(tensors: dict[str, Tensor], name: str, sender: str, spec: PayloadSpec) -> LowRank:
    """A module's factors out of the payload's tensors, each checked, in float32."""
    parts: dict[str, Tensor | None] = {"B": None, "A": None}
    for part in (part for part in ("B", "A") if part in spec.parts):
        tensor = parts[part] = tensors.pop(f"{name}.{part}", None)
        if tensor is None:
            raise PayloadError(f"payload of {sender} lacks {name}.{part}")
        if tensor.dtype != getattr(torch, spec.dtype):
            raise PayloadError(f"{name}.{part} of {sender} is {tensor.dtype}, not {spec.dtype}")
        if not torch.isfinite(tensor).all():
            raise PayloadError(f"{name}.{part} of {sender} is not finite")
    (d_out, d_in), B, A = spec.shapes[name], parts["B"], parts["A"]
    fits = all(part is None or part.ndim == 2 for part in (B, A))
    fits = fits and (B is None or B.shape[0] == d_out) and (A is None or A.shape[1] == d_in)
    if not fits or (B is not None and A is not None and B.shape[1] != A.shape[0]):
        shapes = " and ".join(f"{k} {tuple(v.shape)}" for k, v in parts.items() if v is not None)
        raise PayloadError(
            f"{name} of {sender} has {shapes}, expected ({d_out}, r) and (r, {d_in})"
        )
    rank = A.shape[0] if A is not None else B.shape[1] if B is not None else 0
    if spec.rank is not None and rank > spec.rank:
        raise PayloadError(f"{name} of {sender} has rank {rank}, at most {spec.rank} expected")
    if spec.dtype == "int8":
        scales = tensors.pop(f"{name}.scales", None)
        scales = _checked_scales(scales, len(spec.parts), rank, name, sender)
        B = None if B is None else B * scales[0]
        A = None if A is None else A * scales[-1][:, None]
    # A part that stays at home is None; LowRank's type is that of whole pairs.
    return LowRank(*(None if part is None else part.to(torch.float32) for part in (B, A)))  # type: ignore[arg-type]


def _checked_scales(scales: Tensor | None, parts: int, rank: int, name: str, sender: str) -> Tensor:
    """The scales of an int8 payload, a row for B and a row for A, whichever travel."""
    if scales is None:
        raise PayloadError(f"payload of {sender} lacks {name}.scales")
    fits = scales.dtype == torch.float32 and scales.shape == (parts, rank)
    if not fits or not (torch.isfinite(scales).all() and (scales >= 0).all()):
        raise PayloadError(
            f"{name}.scales of {sender} must be ({parts}, {rank}) float32, finite and not negative"
        )
    return scales
