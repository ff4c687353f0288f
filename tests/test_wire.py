"""Payloads: equal in, equal out; everything unfit is refused with its name."""

import pytest
import torch
from safetensors.torch import save

from fedecider.direction import LowRank, direction
from fedecider.wire import PayloadError, decode, encode, examples

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


def test_the_number_of_examples_travels_with_the_factors():
    assert examples(encode(factors(), 17), "a") == 17
    with pytest.raises(PayloadError, match="payload of a does not tell its number of examples"):
        examples(encode(factors()), "a")
    with pytest.raises(PayloadError, match="tells 0 examples"):
        examples(encode(factors(), 0), "a")
    with pytest.raises(PayloadError, match="does not tell"):
        examples(b"torn", "a")


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
