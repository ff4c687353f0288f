"""Payloads: equal in, equal out; everything unfit is refused with its name."""

import pytest
import torch
from safetensors.torch import save

from fedecider.direction import LowRank, combine, direction, norm
from fedecider.wire import PayloadError, decode, encode, number

SHAPES = {"m.q": (4, 5), "m.v": (3, 5)}


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
    got = decode(payload, SHAPES, "a")
    for name in sent:
        assert torch.equal(got[name].A, sent[name].A) and torch.equal(got[name].B, sent[name].B)
    assert payload == encode(dict(reversed(sent.items())))
    assert encode({}) and decode(encode({}), SHAPES, "a") == {}


def test_absent_modules_and_other_ranks_are_fine():
    only = {"m.v": factors(rank=1)["m.v"]}
    assert list(decode(encode(only), SHAPES, "a")) == ["m.v"]


def test_directions_must_be_of_unit_norm():
    sent = {name: direction(pair) for name, pair in factors().items()}
    decode(encode(sent), SHAPES, "a", "frobenius")
    with pytest.raises(PayloadError, match="m.q of mallory is no direction"):
        decode(encode(factors()), SHAPES, "mallory", "frobenius")


def test_a_shrunken_direction_passes_only_where_truncation_is_set():
    sent = {name: direction(pair).scaled(0.9) for name, pair in factors().items()}
    with pytest.raises(PayloadError, match="frobenius norm is 0.9, not 1"):
        decode(encode(sent), SHAPES, "a", "frobenius")
    assert decode(encode(sent), SHAPES, "a", "frobenius", whole=False)


def test_single_numbers_travel_with_the_factors():
    payload = encode(factors(), {"examples": 17, "loss": 2.5})
    assert number(payload, "a", "examples") == 17 and number(payload, "a", "loss") == 2.5
    with pytest.raises(PayloadError, match="payload of a does not tell its examples"):
        number(encode(factors()), "a", "examples")
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(PayloadError, match="payload of a tells examples"):
            number(encode(factors(), {"examples": bad}), "a", "examples")
    with pytest.raises(PayloadError, match="does not tell"):
        number(b"torn", "a", "examples")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("part", ["A", "B"])
def test_one_part_alone_travels_and_the_other_never_does(part, precision):
    other = {"A": "B", "B": "A"}[part]
    half = {name: pair._replace(**{other: None}) for name, pair in factors().items()}
    payload = encode(half, precision=precision)
    assert f".{other}".encode() not in payload
    got = decode(payload, SHAPES, "a", precision=precision, parts=part)
    for name, pair in factors().items():
        assert getattr(got[name], other) is None
        assert torch.allclose(getattr(got[name], part), getattr(pair, part), atol=0.03)
    with pytest.raises(PayloadError, match=f"lacks m.q.{other}"):
        decode(payload, SHAPES, "a", precision=precision)
    with pytest.raises(PayloadError, match="stray tensor|scales of a must"):
        decode(encode(factors(), precision=precision), SHAPES, "a", precision=precision, parts=part)
    huge = {name: pair._replace(**{part: getattr(pair, part) * 1e9}) for name, pair in half.items()}
    with pytest.raises(PayloadError, match="at most 1e.06 expected"):
        decode(encode(huge), SHAPES, "a", parts=part)


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 4e-3), ("int8", 2e-2)])
def test_coarser_payloads_are_smaller_and_near(precision, error):
    generator = torch.Generator().manual_seed(1)
    shapes = {"m.q": (300, 200)}
    pair = LowRank(
        torch.randn(300, 8, generator=generator) * torch.logspace(0, -6, 8),
        torch.randn(8, 200, generator=generator),
    )
    sent = {"m.q": direction(pair)}
    payload = encode(sent, precision=precision)
    got = decode(payload, shapes, "a", "frobenius", precision=precision)["m.q"]
    assert got.A.dtype == got.B.dtype == torch.float32
    assert norm(combine([got, sent["m.q"].to(torch.float32)], [1, -1])) < error
    assert len(payload) < len(encode(sent)) * {"bfloat16": 0.53, "int8": 0.29}[precision]
    with pytest.raises(PayloadError, match=f"{precision}, not float32"):
        decode(payload, shapes, "a")


def test_int8_keeps_the_norm_of_a_direction_with_one_large_entry():
    long = torch.ones(1, 8192)
    long[0, 0] = 260.0
    sent = {"m.q": direction(LowRank(long.T, long))}
    payload = encode(sent, precision="int8")
    got = decode(payload, {"m.q": (8192, 8192)}, "a", "frobenius", precision="int8")["m.q"]
    assert norm(got) == pytest.approx(1, abs=1e-5)


def test_int8_restores_zeros_and_needs_its_scales():
    sent = {"m.q": LowRank(torch.zeros(4, 2), torch.ones(2, 5))}
    got = decode(encode(sent, precision="int8"), SHAPES, "a", precision="int8")["m.q"]
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
            decode(save(tensors), SHAPES, "a", precision="int8")


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8, got 'float16'"):
        encode(factors(), precision="float16")


def test_ranks_and_norms_beyond_reason_are_refused():
    payload = encode(factors(rank=3))
    assert decode(payload, SHAPES, "a", rank=3)
    with pytest.raises(PayloadError, match="m.q of a has rank 3, at most 2 expected"):
        decode(payload, SHAPES, "a", rank=2)
    large = {"m.q": LowRank(torch.full((4, 1), 2e30), torch.ones(1, 5))}
    with pytest.raises(PayloadError, match="m.q of a has norm .*e.30, at most 1e.06 expected"):
        decode(encode(large), SHAPES, "a")


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
        decode(bent(change), SHAPES, "a")


def test_torn_payloads_are_refused():
    with pytest.raises(PayloadError, match="of a is no safetensors file"):
        decode(encode(factors())[:-3], SHAPES, "a")
