"""Payloads: equal in, equal out; everything unfit is refused with its name."""

import pytest
import torch
from safetensors.torch import save

from fedecider import wire
from fedecider.direction import LowRank, combine, direction, norm
from fedecider.wire import PayloadError, PayloadSpec, encode, read_metrics

SHAPES = {"m.q": (4, 5), "m.v": (3, 5)}


def decode(payload, sender="a", shapes=SHAPES, **expected):
    return wire.decode(payload, sender, PayloadSpec(shapes, **expected))


def factors(seed=0, rank=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(d_out, rank, generator=generator),
            torch.randn(rank, d_in, generator=generator),
        )
        for name, (d_out, d_in) in SHAPES.items()
    }


def test_round_trip_and_equal_bytes():
    sent = factors()
    payload = encode(sent)
    got = decode(payload)
    for name in sent:
        assert torch.equal(got[name].A, sent[name].A) and torch.equal(got[name].B, sent[name].B)
    assert payload == encode(dict(reversed(sent.items())))
    assert encode({}) and decode(encode({})) == {}


def test_absent_modules_and_other_ranks_are_fine():
    only = {"m.v": factors(rank=1)["m.v"]}
    assert list(decode(encode(only))) == ["m.v"]


def test_directions_must_be_of_unit_norm():
    sent = {name: direction(pair) for name, pair in factors().items()}
    decode(encode(sent), unit="frobenius")
    with pytest.raises(PayloadError, match="m.q of mallory is no direction"):
        decode(encode(factors()), "mallory", unit="frobenius")


def test_a_shrunken_direction_passes_only_where_truncation_is_set():
    sent = {name: direction(pair).scaled(0.9) for name, pair in factors().items()}
    with pytest.raises(PayloadError, match="frobenius norm is 0.9, not 1"):
        decode(encode(sent), unit="frobenius")
    assert decode(encode(sent), unit="frobenius", whole=False)


def test_metrics_travel_with_the_factors():
    payload = encode(factors(), {"examples": 17, "loss": 2.5})
    assert read_metrics(payload, "a") == {"examples": 17, "loss": 2.5}
    assert decode(payload).keys() == SHAPES.keys()
    assert read_metrics(encode(factors()), "a") == {}
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(PayloadError, match="payload of a tells examples"):
            read_metrics(encode(factors(), {"examples": bad}), "a")
    with pytest.raises(PayloadError, match="payload of a has a header that cannot be read"):
        read_metrics(b"torn", "a")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("part", ["A", "B"])
def test_one_part_alone_travels_and_the_other_never_does(part, dtype):
    other = {"A": "B", "B": "A"}[part]
    half = {name: pair._replace(**{other: None}) for name, pair in factors().items()}
    payload = encode(half, dtype=dtype)
    assert f".{other}".encode() not in payload
    got = decode(payload, dtype=dtype, parts=part)
    for name, pair in factors().items():
        assert getattr(got[name], other) is None
        assert torch.allclose(getattr(got[name], part), getattr(pair, part), atol=0.03)
    with pytest.raises(PayloadError, match=f"lacks m.q.{other}"):
        decode(payload, dtype=dtype)
    with pytest.raises(PayloadError, match="stray tensor|scales of a must"):
        decode(encode(factors(), dtype=dtype), dtype=dtype, parts=part)
    huge = {name: pair._replace(**{part: getattr(pair, part) * 1e9}) for name, pair in half.items()}
    with pytest.raises(PayloadError, match="at most 1e.06 expected"):
        decode(encode(huge), parts=part)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 4e-3), ("int8", 2e-2)])
def test_coarser_payloads_are_smaller_and_near(dtype, error):
    generator = torch.Generator().manual_seed(1)
    shapes = {"m.q": (300, 200)}
    pair = LowRank(
        torch.randn(300, 8, generator=generator) * torch.logspace(0, -6, 8),
        torch.randn(8, 200, generator=generator),
    )
    sent = {"m.q": direction(pair)}
    payload = encode(sent, dtype=dtype)
    got = decode(payload, shapes=shapes, unit="frobenius", dtype=dtype)["m.q"]
    assert got.A.dtype == got.B.dtype == torch.float32
    assert norm(combine([got, sent["m.q"].to(torch.float32)], [1, -1])) < error
    assert len(payload) < len(encode(sent)) * {"bfloat16": 0.53, "int8": 0.29}[dtype]
    with pytest.raises(PayloadError, match=f"{dtype}, not float32"):
        decode(payload, shapes=shapes)


def test_int8_keeps_the_norm_of_a_direction_with_one_large_entry():
    long = torch.ones(1, 8192)
    long[0, 0] = 260.0
    sent = {"m.q": direction(LowRank(long.T, long))}
    payload = encode(sent, dtype="int8")
    got = decode(payload, shapes={"m.q": (8192, 8192)}, unit="frobenius", dtype="int8")["m.q"]
    assert norm(got) == pytest.approx(1, abs=1e-5)


def test_int8_restores_zeros_and_needs_its_scales():
    sent = {"m.q": LowRank(torch.zeros(4, 2), torch.ones(2, 5))}
    got = decode(encode(sent, dtype="int8"), dtype="int8")["m.q"]
    assert not got.B.any() and torch.allclose(got.A, torch.ones(2, 5))
    plain = {"m.q.A": torch.zeros(2, 5, dtype=torch.int8)}
    plain["m.q.B"] = torch.zeros(4, 2, dtype=torch.int8)
    for scales, message in (
        (None, "lacks m.q.scales"),
        (torch.ones(2, 3), r"m.q.scales of a must be \(2, 2\) float32"),
        (-torch.ones(2, 2), "not negative"),
        (torch.full((2, 2), torch.inf), "finite"),
    ):
        tensors = plain if scales is None else plain | {"m.q.scales": scales}
        with pytest.raises(PayloadError, match=message):
            decode(save(tensors), dtype="int8")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8, got 'float16'"):
        encode(factors(), dtype="float16")


def test_ranks_and_norms_beyond_reason_are_refused():
    payload = encode(factors(rank=3))
    assert decode(payload, rank=3)
    with pytest.raises(PayloadError, match="m.q of a has rank 3, at most 2 expected"):
        decode(payload, rank=2)
    large = {"m.q": LowRank(torch.full((4, 1), 2e30), torch.ones(1, 5))}
    with pytest.raises(PayloadError, match="m.q of a has norm .*e.30, at most 1e.06 expected"):
        decode(encode(large))


def bent(change):
    tensors = {}
    for name, pair in factors().items():
        tensors |= {f"{name}.A": pair.A, f"{name}.B": pair.B}
    change(tensors)
    return save(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("m.q.B"), "lacks m.q.B"),
        (lambda t: t.update({"m.q.B": torch.zeros(9, 2)}), r"expected \(4, r\) and \(r, 5\)"),
        (lambda t: t.update({"m.q.A": torch.zeros(3, 5)}), r"B \(4, 2\) and A \(3, 5\)"),
        (lambda t: t.update({"m.q.A": t["m.q.A"].double()}), "float64, not float32"),
        (lambda t: t["m.v.B"].fill_(torch.nan), "m.v.B of a is not finite"),
        (lambda t: t.update({"m.k.A": torch.zeros(1)}), "'m.k', not an adapted module"),
        (lambda t: t.update({"m.q.C": torch.zeros(1)}), "stray tensor 'm.q.C'"),
    ],
)
def test_unfit_payloads_are_refused(change, message):
    with pytest.raises(PayloadError, match=message):
        decode(bent(change))


def test_torn_payloads_are_refused():
    with pytest.raises(PayloadError, match="of a is no safetensors file"):
        decode(encode(factors())[:-3])
