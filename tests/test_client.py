"""A client by itself: what it hands out and takes in, and which state it keeps as its best."""

import math

import pytest
import torch
from toy import Rounds, dense

from fedecider import client as client_module
from fedecider import wire
from fedecider.direction import LowRank, direction


def test_a_client_hands_out_bytes_and_nothing_of_it_is_shared(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "fedavg") as run:
        one, other = run.clients[:2]
        assert one.model is not other.model and one.method is not other.method
        up = one.local_update(1)
        assert isinstance(up, bytes) and up
        # The other's model is as it was, though both were loaded into the same adapter.
        for name, pair in other.model.factors.items():
            assert torch.equal(pair.B, run.adapter.initial[name].B)
            assert torch.equal(pair.A, run.adapter.initial[name].A)
        assert any(pair.B.any() for pair in one.model.factors.values())


def test_a_method_that_sends_nothing_gives_an_empty_payload(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "local") as run:
        client = run.clients[0]
        assert client.local_update(1) == b""
        before = client.model.factors
        client.receive(1, {})
        assert client.model.factors is before and client.pending_directions == {}


def test_an_unfit_download_is_refused_with_its_source(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "fedecider") as run:
        client = run.clients[0]
        own = {name: LowRank(p.B + 1.0, p.A) for name, p in run.adapter.initial.items()}
        fit = wire.encode({name: direction(pair) for name, pair in own.items()})
        with pytest.raises(wire.PayloadError, match="of comics is no direction"):
            client.receive(1, {"comics": wire.encode(own), "games": fit})
        assert client.pending_directions == {}  # nothing of the download was taken
        client.receive(1, {"games": fit})
        assert list(client.pending_directions) == ["games"]


def test_the_first_of_equally_good_rounds_is_kept(data, backbone, tmp_path, monkeypatch):
    losses = iter([2.0, 1.5, 1.5, 1.7])
    monkeypatch.setattr(client_module, "validation_loss", lambda *args: next(losses))
    with Rounds(data, tmp_path, backbone, "local") as run:
        client = run.clients[0]
        kept = []
        for number in range(1, 5):
            client.local_update(number)
            client.validate(number)
            kept.append((client.best.loss, client.best.round))
            if number == 2:
                best = client.model.factors
    assert kept == [(2.0, 1), (1.5, 2), (1.5, 2), (1.5, 2)]
    assert client.best.model.factors is best and client.model.factors is not best


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_useless_validation_loss_names_client_round_and_rate(
    loss, data, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(client_module, "validation_loss", lambda *args: loss)
    with Rounds(data, tmp_path, backbone, "local", lr=0.25) as run:
        said = f"validation loss of comics is {loss} after round 3: the learning rate 0.25 may"
        with pytest.raises(FloatingPointError, match=said):
            run.clients[1].validate(3)


def test_an_update_of_a_norm_beyond_reason_is_divergence(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "local") as run:
        client = run.clients[2]
        client.local_update(1)
        size = client.update_norm()
        whole = [dense(pair) * run.adapter.gamma for pair in client.model.factors.values()]
        assert size == pytest.approx(math.sqrt(sum(w.square().sum().item() for w in whole)))
        large = 2 * wire.LARGEST_NORM / size
        client.model.factors = {n: p.scaled(large) for n, p in client.model.factors.items()}
        with pytest.raises(FloatingPointError, match="update's norm of games is inf after round 1"):
            client.refuse_diverged(1)


def test_alphas_are_told_per_module_and_source(data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, "fedecider", alpha_scope="client") as run:
        run.round(1)
        assert all(client.alphas() == [] for client in run.clients)
        run.round(2)
        for client in run.clients:
            rows = client.alphas()
            sources = sorted({"books", "comics", "games"} - {client.name})
            assert [(row["layer"], row["source"]) for row in rows] == [
                (layer, source) for layer in run.adapter.names for source in sources
            ]
            told = {row["source"]: row["alpha"] for row in rows}
            weights = dict(zip(sources, client.model.alpha[0].tolist(), strict=True))
            assert told == weights and all(row["client"] == client.name for row in rows)
