"""What travels between client and server: validated safetensors payloads, their bytes counted.

Nothing else crosses. A payload is a flat dict of named tensors, `<module>.A` and `<module>.B` or
one of the two; a module without an update is absent. They travel as float32 or bfloat16, or as int8
with one scale per row of A and column of B (one per singular vector, in canonical form),
`<module>.scales` (parts, r). A method may send scalars along (a number of training targets, say) in
the payload's header.

What a payload must be; `decode` refuses any other with `PayloadError`, and raises nothing else:

- Header: JSON as safetensors writes it, byte for byte (no other spacing, padding or escapes), no
  key twice, not longer than the modules' names need, nothing but dtype, shape and offsets of
  tensors.
- Metrics: all that the method declares and no others. A count is an integer of 1 to its bound in
  ASCII digits, a positive number is written as Python's repr writes a float, above 0 and at most
  its bound.
- Tensors: those of adapted modules, and no others; every part that the method shares; of the dtype
  of the run and of the module's shape; rank 1 up to the largest expected. Where LoRAs are averaged
  or stacked (`complete`) every module is there, at exactly the rank of the run.
- Values: finite, and each factor's Frobenius norm is at most `LARGEST_FACTOR`, so that no product
  of two factors, of one client or of two, overflows float32 in anybody's forward pass. int8 steps
  lie in -127..127, their scales are not negative.
- A direction is not zero; its norm is 1 but for rounding ("column": that of each column is 1, or 0
  where nothing changed). Rounding to int8 may shrink it to 0.75 and never lifts it above 1.01.
  Truncation to k of r singular directions keeps at least sqrt(k / r) of it (of its largest column).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedecider.config import PayloadDtype
from fedecider.direction import LowRank, NormKind, norm

# Largest Frobenius norm of a factor. No trained one comes near it (64 for a 2048 x 16 factor whose
# entries are all 0.35), and products of two stay far from where float32 overflows.
LARGEST_FACTOR = 1e4
# How far rounding may take the norm of a direction below and above 1.
_SLACK = {"float32": (1e-3, 1e-3), "bfloat16": (1e-2, 1e-2), "int8": (0.25, 1e-2)}
_ZERO_COLUMN = 1e-6  # a column without a direction, after rounding
_ENTRY = 130  # longest entry of a tensor in the header, beside its name
_COUNT = re.compile("[1-9][0-9]{0,17}")


class PayloadError(ValueError):
    """A payload that must not be used; the message names sender, tensor and what was expected.

    `sender` is the client that the payload came from.
    """

    def __init__(self, message: str, sender: str = ""):
        super().__init__(message)
        self.sender = sender


class Metric(NamedTuple):
    """A scalar in a payload's header: an integer from 1, or a number above 0; at most `most`."""

    kind: Literal["count", "positive"]
    most: float


@dataclass(frozen=True)
class PayloadSpec:
    """What a payload must be.

    `shapes` gives (d_out, d_in) of every module that may occur, `rank` the rank of the run's LoRA
    and so the largest that is expected, `parts` which of A and B (the other is None); `unit` names
    the norm kind in which each module must be a direction, cut to `truncate` singular directions;
    `complete` asks for every module at exactly `rank`; `metrics` are the scalars that must come
    along.
    """

    shapes: Mapping[str, tuple[int, int]]
    dtype: PayloadDtype = "float32"
    rank: int | None = None
    parts: str = "AB"
    unit: NormKind | None = None
    truncate: int | None = None
    complete: bool = False
    metrics: Mapping[str, Metric] = field(default_factory=dict)


def encode(
    factors: Mapping[str, LowRank],
    metrics: Mapping[str, float] | None = None,
    dtype: PayloadDtype = "float32",
    unit: NormKind | None = None,
) -> bytes:
    """Factors per module to bytes; equal factors give equal bytes.

    A part of a pair that is None stays at home. `metrics` are scalars that go along by name. `unit`
    says that the modules are directions of that kind: int8 then rounds none to a norm above 1.01.
    Raises ValueError for an unknown dtype.
    """
    if dtype not in get_args(PayloadDtype):
        known = ", ".join(get_args(PayloadDtype))
        raise ValueError(f"payload dtype must be one of {known}, got {dtype!r}")
    tensors: dict[str, Tensor] = {}
    for name in sorted(factors):
        parts = {
            part: tensor.detach().to("cpu", torch.float32)
            for part, tensor in zip("BA", factors[name], strict=True)
            if tensor is not None
        }
        if dtype == "int8":
            parts |= _quantised(parts, unit)
        else:
            parts = {part: tensor.to(getattr(torch, dtype)) for part, tensor in parts.items()}
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    header = {key: repr(value) for key, value in sorted((metrics or {}).items())}
    return save(tensors, header or None)


def _quantised(parts: Mapping[str, Tensor], unit: NormKind | None) -> dict[str, Tensor]:
    """Parts in steps of -127..127, and the scales: one per column of B and row of A."""
    steps, scales = {}, []
    for part, tensor in parts.items():
        dim = "BA".index(part)
        scale = tensor.abs().amax(dim) / 127
        unscaled = tensor / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(dim)
        steps[part] = unscaled.round().to(torch.int8)
        scales.append(scale)
    if unit is not None:
        rounded = LowRank(steps["B"] * scales[0], steps["A"] * scales[1][:, None])
        size = norm(rounded, unit).max()
        if size > 1 + _SLACK["int8"][1]:
            scales[0] = (scales[0] / size).to(torch.float32)
    return {**steps, "scales": torch.stack(scales)}


def read_metrics(payload: bytes, sender: str, spec: PayloadSpec) -> dict[str, float]:
    """The scalars in a payload's header by name, as `spec` declares them, or PayloadError."""
    return _metrics(_read_header(payload, sender, spec), sender, spec)


def decode(payload: bytes, sender: str, spec: PayloadSpec) -> dict[str, LowRank]:
    """Bytes to float32 factors per module, or PayloadError if they are not what `spec` says."""
    header = _read_header(payload, sender, spec)
    _metrics(header, sender, spec)
    try:
        tensors = load(payload)
    except Exception as error:
        message = f"payload of {sender} is no safetensors file: {error}"
        raise PayloadError(message, sender) from error
    factors = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        if name not in spec.shapes:
            raise PayloadError(f"payload of {sender} names {name!r}, not an adapted module", sender)
        pair = _pop_pair(tensors, name, sender, spec)
        factors[name] = pair if spec.unit is None else _direction(pair, name, sender, spec)
    if tensors:
        stray = sorted(tensors)[0]
        raise PayloadError(f"payload of {sender} has the stray tensor {stray!r}", sender)
    if spec.complete and len(factors) < len(spec.shapes):
        absent = sorted(spec.shapes.keys() - factors)[0]
        raise PayloadError(f"payload of {sender} needs every module, {absent} is absent", sender)
    return factors


def _read_header(payload: bytes, sender: str, spec: PayloadSpec) -> dict[str, Any]:
    """The JSON header, written exactly as safetensors writes it."""
    length = int.from_bytes(payload[:8], "little")
    longest = 1024 + sum(3 * (len(name) + _ENTRY) for name in spec.shapes)
    try:
        if not 0 < length <= min(longest, len(payload) - 8):
            raise ValueError(f"it has {length} bytes")
        text = payload[8 : 8 + length]
        header = json.loads(text.decode(), object_pairs_hook=_unique)
        plain = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if not isinstance(header, dict) or text != plain.ljust(-(-len(plain) // 8) * 8):
            raise ValueError("it is not written as safetensors writes it")
        for name, entry in header.items():
            known = name == "__metadata__" or set(entry) == {"dtype", "shape", "data_offsets"}
            if not (isinstance(entry, dict) and known):
                raise ValueError(f"unknown entries under {name!r}")
    except (ValueError, TypeError, RecursionError) as error:
        message = f"payload of {sender} has a header that cannot be read: {error}"
        raise PayloadError(message, sender) from error
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError if a key occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _metrics(header: Mapping[str, Any], sender: str, spec: PayloadSpec) -> dict[str, float]:
    """The declared scalars of a header, each held against its kind and bound."""
    texts = header.get("__metadata__", {})
    for name, metric in spec.metrics.items():
        if name not in texts:
            raise PayloadError(f"payload of {sender} does not tell its {name}", sender)
        if not _is_canonical(texts[name], metric):
            what = "an integer" if metric.kind == "count" else "a number above 0,"
            raise PayloadError(
                f"payload of {sender} tells {name} {str(texts[name])[:40]}, "
                f"expected {what} of at most {metric.most:.12g}",
                sender,
            )
    unasked = sorted(texts.keys() - spec.metrics)
    if unasked or ("__metadata__" in header and not texts):
        names = ", ".join(unasked)[:40] or "nothing"
        raise PayloadError(f"payload of {sender} tells {names}, which nobody asked for", sender)
    return {name: float(texts[name]) for name in spec.metrics}


def _is_canonical(text: Any, metric: Metric) -> bool:
    """Whether a metric is written as it must be and lies in its bounds."""
    if not isinstance(text, str):
        return False
    if metric.kind == "count":
        return _COUNT.fullmatch(text) is not None and int(text) <= metric.most
    try:
        value = float(text)
    except ValueError:
        return False
    return repr(value) == text and 0 < value <= metric.most


def _direction(pair: LowRank, name: str, sender: str, spec: PayloadSpec) -> LowRank:
    """The pair, if it is a direction but for rounding and truncation."""
    sizes = norm(pair, spec.unit or "frobenius")
    size, (below, above) = sizes.max().item(), _SLACK[spec.dtype]
    kept, rank = spec.truncate or pair.rank + 1, spec.rank or math.inf
    # Fewer singular directions than truncation keeps are all that there were.
    cut = spec.unit != "spectral" and pair.rank == kept < rank
    least = math.sqrt(kept / rank) if cut else 1.0
    if not 0 < size <= 1 + above or size < least * (1 - below):
        expected = f"{least:.4g} to 1" if cut else "1"
        raise PayloadError(
            f"{name} of {sender} is no direction: its {spec.unit} norm is {size:.4g}, "
            f"not {expected}",
            sender,
        )
    if spec.unit == "column" and not cut:
        short = (sizes > _ZERO_COLUMN) & (sizes < 1 - below)
        if short.any():
            at = int(short.int().argmax())
            raise PayloadError(
                f"{name} of {sender} is no direction: column {at} has norm {sizes[at]:.4g}, "
                "neither 1 nor 0",
                sender,
            )
    if spec.dtype == "int8" and spec.unit != "column" and spec.truncate is None:
        return pair.scaled(1 / size)  # small entries round to 0; a direction has norm 1 again
    return pair


def _pop_pair(tensors: dict[str, Tensor], name: str, sender: str, spec: PayloadSpec) -> LowRank:
    """A module's factors out of the payload's tensors, each checked, in float32."""
    parts: dict[str, Tensor | None] = {"B": None, "A": None}
    for part in (part for part in ("B", "A") if part in spec.parts):
        tensor = parts[part] = tensors.pop(f"{name}.{part}", None)
        if tensor is None:
            raise PayloadError(f"payload of {sender} lacks {name}.{part}", sender)
        if tensor.dtype != getattr(torch, spec.dtype):
            message = f"{name}.{part} of {sender} is {tensor.dtype}, not {spec.dtype}"
            raise PayloadError(message, sender)
        if spec.dtype == "int8" and (tensor == -128).any():
            raise PayloadError(f"{name}.{part} of {sender} has steps beyond -127..127", sender)
    (d_out, d_in), B, A = spec.shapes[name], parts["B"], parts["A"]
    fits = all(part is None or part.ndim == 2 for part in (B, A))
    fits = fits and (B is None or B.shape[0] == d_out) and (A is None or A.shape[1] == d_in)
    if not fits or (B is not None and A is not None and B.shape[1] != A.shape[0]):
        shapes = " and ".join(f"{k} {tuple(v.shape)}" for k, v in parts.items() if v is not None)
        message = f"{name} of {sender} has {shapes}, expected ({d_out}, r) and (r, {d_in})"
        raise PayloadError(message, sender)
    rank = A.shape[0] if A is not None else B.shape[1] if B is not None else 0
    _refuse_rank(rank, name, sender, spec)
    if spec.dtype == "int8":
        scales = tensors.pop(f"{name}.scales", None)
        scales = _checked_scales(scales, len(spec.parts), rank, name, sender)
        B = None if B is None else B * scales[0]
        A = None if A is None else A * scales[-1][:, None]
    plain = {"B": B, "A": A}
    for part, tensor in plain.items():
        if tensor is not None:
            plain[part] = _sane(tensor.to(torch.float32), f"{name}.{part} of {sender}", sender)
    # A part that stays at home is None; LowRank's type is that of whole pairs.
    return LowRank(plain["B"], plain["A"])  # type: ignore[arg-type]


def _refuse_rank(rank: int, name: str, sender: str, spec: PayloadSpec) -> None:
    """PayloadError for a rank that no client of this run sends."""
    most = spec.rank
    if spec.unit is not None and spec.truncate is not None:
        most = min(spec.truncate, most or spec.truncate)
    if rank < 1:
        raise PayloadError(f"{name} of {sender} has rank 0, at least 1 expected", sender)
    if most is not None and (rank > most or (spec.complete and rank < most)):
        allowed = f"at most {most}" if rank > most else f"exactly {most}"
        raise PayloadError(f"{name} of {sender} has rank {rank}, {allowed} expected", sender)


def _sane(factor: Tensor, what: str, sender: str) -> Tensor:
    """The factor, if its norm is one that a factor can have."""
    # nan, inf and what overflows fail this comparison too.
    if torch.linalg.vector_norm(factor).item() <= LARGEST_FACTOR:
        return factor
    size = torch.linalg.vector_norm(factor, dtype=torch.float64).item()
    if not math.isfinite(size):
        raise PayloadError(f"{what} is not finite", sender)
    raise PayloadError(f"{what} has norm {size:.4g}, at most {LARGEST_FACTOR:g} expected", sender)


def _checked_scales(scales: Tensor | None, parts: int, rank: int, name: str, sender: str) -> Tensor:
    """The scales of an int8 payload, a row for B and a row for A, whichever travel."""
    if scales is None:
        raise PayloadError(f"payload of {sender} lacks {name}.scales", sender)
    fits = scales.dtype == torch.float32 and scales.shape == (parts, rank)
    if not fits or not (torch.isfinite(scales).all() and (scales >= 0).all()):
        expected = f"({parts}, {rank}) float32, finite and not negative"
        raise PayloadError(f"{name}.scales of {sender} must be {expected}", sender)
    return scales
