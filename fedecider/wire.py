"""What travels between client and server: validated safetensors payloads, their bytes counted.

Nothing else crosses. A payload is a flat dict of named float32 tensors, `<module>.A` and
`<module>.B`; a module without an update is absent.
"""

import json
from collections.abc import Mapping

import torch
from safetensors.torch import load, save

from fedecider.direction import LowRank, norm

_UNIT_TOLERANCE = 1e-3


class PayloadError(ValueError):
    """A payload that must not be used; the message names sender, tensor and what was expected."""


def encode(factors: Mapping[str, LowRank], examples: int | None = None) -> bytes:
    """Factors per module to bytes; equal factors give equal bytes.

    `examples`, the number of training targets, goes along where a method weights by it.
    """
    tensors = {}
    for name in sorted(factors):
        for part in ("A", "B"):
            tensor = getattr(factors[name], part).detach().to("cpu", torch.float32)
            tensors[f"{name}.{part}"] = tensor.contiguous()
    return save(tensors, None if examples is None else {"examples": str(examples)})


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
) -> dict[str, LowRank]:
    """Bytes to factors per module, or PayloadError.

    `shapes` gives (d_out, d_in) of every module that may occur; `unit` names the norm kind of which
    each must be a direction: its norm ("column": its largest) is 1, or less if it is not `whole`
    but truncated.
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
        pair = LowRank(*(tensors.pop(f"{name}.{part}", None) for part in ("B", "A")))
        for part, tensor in pair._asdict().items():
            if tensor is None:
                raise PayloadError(f"payload of {sender} lacks {name}.{part}")
            if tensor.dtype != torch.float32:
                raise PayloadError(f"{name}.{part} of {sender} is {tensor.dtype}, not float32")
            if not torch.isfinite(tensor).all():
                raise PayloadError(f"{name}.{part} of {sender} is not finite")
        d_out, d_in = shapes[name]
        fits = pair.B.ndim == pair.A.ndim == 2 and pair.B.shape[1] == pair.A.shape[0]
        if not fits or pair.B.shape[0] != d_out or pair.A.shape[1] != d_in:
            raise PayloadError(
                f"{name} of {sender} has B {tuple(pair.B.shape)} and A {tuple(pair.A.shape)}, "
                f"expected ({d_out}, r) and (r, {d_in})"
            )
        if unit is not None:
            size = norm(pair, unit).max().item()
            if size > 1 + _UNIT_TOLERANCE or (whole and size < 1 - _UNIT_TOLERANCE):
                raise PayloadError(
                    f"{name} of {sender} is no direction: its {unit} norm is {size:.4g}, not 1"
                )
        factors[name] = pair
    if tensors:
        raise PayloadError(f"payload of {sender} has the stray tensor {sorted(tensors)[0]!r}")
    return factors
