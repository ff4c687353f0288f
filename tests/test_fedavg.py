"""fedavg: the weighted mean of every client's factors, and averages of uploads."""

from pathlib import Path

import pytest
import torch
from toy import Rounds, config

from fedecider import wire
from fedecider.direction import LowRank
from fedecider.methods import METHODS, Upload
from fedecider.methods.fedavg import average


def uploads(**factors):
    return {client: Upload(modules) for client, modules in factors.items()}


def test_averages_are_weighted_sums_and_absent_parts_stay_absent():
    def pair(value, half=False):
        A = None if half else torch.full((1, 2), -value)
        return {"m": LowRank(torch.full((2, 1), value), A)}

    two = uploads(a=pair(1.0), b=pair(5.0))
    mean = average(two, {"a": 0.75, "b": 0.25})["m"]
    assert mean.B.unique().item() == 2.0 and mean.A.unique().item() == -2.0
    by_module = average(two, {"a": {"m": 0.5}, "b": {"m": 0.5}})["m"]
    assert by_module.B.unique().item() == 3.0
    assert average(uploads(a=pair(1.0, True)), {"a": 1.0})["m"].A is None
    with pytest.raises(wire.PayloadError, match="one rank: the clients' factors of m differ"):
        wide = {"m": LowRank(torch.ones(2, 2), torch.ones(2, 2))}
        average(uploads(a=pair(1.0), b=wide), {"a": 0.5, "b": 0.5})
    with pytest.raises(wire.PayloadError, match="every module of a, n is absent"):
        more = pair(1.0) | {"n": pair(1.0)["m"]}
        average(uploads(a=pair(1.0), b=more), {"a": 0.5, "b": 0.5})


def test_fedavg_is_the_weighted_mean_of_every_client(backbone, unlike, tmp_path, monkeypatch):
    sent = {}
    plain = wire.decode

    def spy(payload, sender, spec):
        factors = plain(payload, sender, spec)
        sent.setdefault(sender, factors)
        return factors

    monkeypatch.setattr(wire, "decode", spy)
    sizes = {"books": 12 * 5, "comics": 4 * 7, "games": 6 * 2}  # every title but the first
    with Rounds(unlike, tmp_path, backbone, "fedavg") as run:
        run.round(1)
        assert {client.name for client in run.clients} == set(sizes) <= set(sent)
        total = sum(sizes.values())
        for client in run.clients:
            assert sorted(client.model.factors) == run.adapter.names
            for name, pair in client.model.factors.items():
                for part in ("A", "B"):
                    uploads = {c: getattr(sent[c][name], part) for c in sizes}
                    mean = sum(sizes[c] / total * uploads[c] for c in sizes)
                    assert torch.allclose(getattr(pair, part), mean, atol=1e-7)
                    # Traps: one client only; an upload equal to the download after training;
                    # every client counted alike.
                    assert all(not torch.allclose(mean, uploads[c], atol=1e-7) for c in sizes)
                    alike = sum(uploads.values()) / len(sizes)
                    assert not torch.allclose(mean, alike, atol=1e-5)


def test_fedavg_weights_follow_the_number_of_targets():
    sent = {
        client: Upload(
            {"m": LowRank(torch.full((2, 1), value), torch.full((1, 2), -value))},
            {"examples": count},
        )
        for client, value, count in (("a", 1.0, 3), ("b", 5.0, 1))
    }
    down = METHODS["fedavg"](config(Path("d"), Path("f"), "fedavg")).aggregate(sent, 1)
    assert down["a"]["global"]["m"].B.unique().item() == pytest.approx(2.0)
    assert down["b"]["global"]["m"].A.unique().item() == pytest.approx(-2.0)
