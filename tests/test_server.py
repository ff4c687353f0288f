"""The server: bytes in, bytes out, and no payload that it must not use."""

from pathlib import Path

import pytest
import torch
from test_methods import UP
from toy import Rounds, config

from fedecider import wire
from fedecider.direction import LowRank, direction
from fedecider.methods import METHODS
from fedecider.server import Server
from fedecider.wire import PayloadError

SHAPES = {"m.q": (4, 5), "m.v": (3, 5)}


def server(method: str, **settings) -> Server:
    return Server(config(Path("d"), Path("f"), method, **settings), SHAPES)


def factors(seed: int, rank: int = 2) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(d_out, rank, generator=generator),
            torch.randn(rank, d_in, generator=generator),
        )
        for name, (d_out, d_in) in SHAPES.items()
    }


# The scalar that a method's server cannot do without.
NEEDED = {
    "fedavg": "examples",
    "fedprox": "examples",
    "ffa-lora": "examples",
    "flora": "examples",
    "fedsa-lora": "examples",
    "rolora": "examples",
    "feddpa": "examples",
    "fellrec": "loss",
}


@pytest.mark.parametrize("method", NEEDED)
def test_a_payload_without_the_methods_scalar_is_refused_with_its_client(method):
    at = server(method)
    parts = at.method.shared_factors(1)
    kept_home = dict.fromkeys(set("AB") - set(parts))
    sent = {n: p._replace(**kept_home) for n, p in factors(0).items()}
    whole = wire.encode(sent, {NEEDED[method]: 3 if NEEDED[method] == "examples" else 3.0})
    assert at.aggregate(1, {"books": whole, "comics": whole})
    for other in ({}, {"size": 3.0}):
        payloads = {"books": whole, "comics": wire.encode(sent, other)}
        with pytest.raises(PayloadError, match=f"of comics does not tell its {NEEDED[method]}"):
            at.aggregate(1, payloads)


def test_every_method_that_sends_a_scalar_is_looked_at(data, backbone, tmp_path):
    sends = {}
    for method in UP:  # those of section 5: a method of one's own breaks no test
        if METHODS[method].trains:
            with Rounds(data, tmp_path / method, backbone, method) as run:
                run.clients[0].fit(1)
                upload = run.method.upload(run.clients[0], 1)
                sends |= {method: next(iter(upload.metrics))} if upload and upload.metrics else {}
    assert sends == NEEDED


def test_an_unfit_payload_is_refused_with_its_client():
    fit = wire.encode(factors(0), {"examples": 1})
    for sent, said in (
        (wire.encode({"m.k": factors(0)["m.q"]}, {"examples": 1}), "names 'm.k'"),
        (wire.encode(factors(0, rank=3), {"examples": 1}), "has rank 3, at most 2 expected"),
        (fit[:-1], "no safetensors file"),
        (wire.encode(factors(0), {"examples": -1}), "tells examples -1"),
        (wire.encode(factors(0), {"examples": 1}, "bfloat16"), "bfloat16, not float32"),
        (wire.encode({"m.q": factors(0)["m.q"]}, {"examples": 1}), "m.v is absent"),
    ):
        with pytest.raises(PayloadError, match=said) as error:
            server("fedavg").aggregate(1, {"books": fit, "mallory": sent})
        assert "mallory" in str(error.value)


def test_updates_in_place_of_directions_are_refused():
    sent = {"books": wire.encode(factors(0)), "comics": wire.encode(factors(1))}
    with pytest.raises(PayloadError, match="of books is no direction"):
        server("fedecider").aggregate(1, sent)
    assert server("fedecider", send="update").aggregate(1, sent)


def test_clients_that_send_nothing_get_what_the_others_get():
    assert server("fedavg").aggregate(1, {"books": b"", "comics": b""}) == {}
    fit = wire.encode(factors(0), {"examples": 1})
    down = server("fedavg").aggregate(1, {"books": fit, "comics": b""})
    assert list(down) == ["books", "comics"] and down["books"] == down["comics"]
    assert list(server("lora-sim").aggregate(1, {"books": wire.encode(factors(0)), "x": b""})) == [
        "books"
    ]


def test_what_goes_to_several_clients_is_encoded_once(monkeypatch):
    encoded, plain = [], wire.encode

    def counted(sent, *args, **kwargs):
        encoded.append(sent)
        return plain(sent, *args, **kwargs)

    up = {
        client: wire.encode({n: direction(p) for n, p in factors(seed).items()})
        for seed, client in enumerate(("books", "comics", "games"))
    }
    monkeypatch.setattr(wire, "encode", counted)
    down = server("fedecider").aggregate(1, up)
    assert len(encoded) == 3
    assert {name: sorted(sources) for name, sources in down.items()} == {
        "books": ["comics", "games"],
        "comics": ["books", "games"],
        "games": ["books", "comics"],
    }
    # A direction in canonical form goes through the server unchanged.
    assert down["books"]["games"] is down["comics"]["games"]
    assert down["books"]["games"] == up["games"]
