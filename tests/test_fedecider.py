"""fedecider and its ablations: whose directions are received, and how alpha begins and goes on."""

import pandas as pd
import pytest
import torch
from toy import Rounds, cloned, config, dense

from fedecider import client as client_module
from fedecider import federation, results
from fedecider.direction import cosine, direction, norm
from fedecider.mixture import ClientModel


@pytest.mark.parametrize("send", ["direction", "update"])
@pytest.mark.parametrize("kind", ["frobenius", "column", "spectral"])
def test_fedecider_receives_the_others_directions_unaveraged(send, kind, backbone, data, tmp_path):
    with Rounds(data, tmp_path, backbone, "fedecider", send=send, norm=kind) as run:
        run.round(1)
        assert all(not c.model.peer_directions for c in run.clients)  # round 1 has none yet
        names = sorted(client.name for client in run.clients)
        for client in run.clients:
            assert sorted(client.pending_directions) == [n for n in names if n != client.name]
        for sender in run.clients:
            own = run.adapter.updates(sender.model.factors)
            for receiver in run.clients:
                if receiver is sender:
                    continue
                received = receiver.pending_directions[sender.name]
                assert sorted(received) == run.adapter.names
                for name, pair in received.items():
                    size = norm(own[name], kind)
                    expected = own[name].B.double() @ own[name].A.double() / size
                    assert (dense(pair) - expected).abs().max() < 1e-5
                    assert norm(pair, kind).max() == pytest.approx(1, abs=1e-5)


def test_first_round_is_local_and_later_rounds_learn_alpha(backbone, data, tmp_path):
    local = results.rounds(federation.run(config(data, tmp_path / "local", "local"), backbone))
    folder = federation.run(config(data, tmp_path / "ours"), backbone)
    ours = results.rounds(folder)
    first = local["round"] == 1
    pd.testing.assert_series_equal(local[first]["valid_loss"], ours[first]["valid_loss"])
    assert (local[~first]["valid_loss"] != ours[~first]["valid_loss"]).all()
    alphas = results.alphas(folder)
    assert set(alphas["round"]) == {2}
    assert (alphas["client"] != alphas["source"]).all()
    assert (alphas["alpha"] != 0).all()
    assert len(alphas) == 6 * 2  # pairs of clients, modules


def test_alpha_with_rate_and_start_zero_is_local(backbone, data, tmp_path):
    local = federation.run(config(data, tmp_path / "local", "local", rounds=3), backbone)
    still = federation.run(config(data, tmp_path / "still", alpha_lr=0.0, rounds=3), backbone)
    columns = ["train_loss", "valid_loss"]
    pd.testing.assert_frame_equal(
        results.rounds(local)[columns], results.rounds(still)[columns], check_exact=True
    )


def test_alpha_warm_up_leaves_the_own_lora_alone(backbone, data, tmp_path):
    settings = {"alpha_warmup": 10**6, "alpha_init": 0.1}
    with Rounds(data, tmp_path, backbone, "fedecider", **settings) as run:
        run.round(1)
        before = {c.name: dict(c.model.factors) for c in run.clients}
        run.round(2)
        for client in run.clients:
            for name, pair in client.model.factors.items():
                assert torch.equal(pair.A, before[client.name][name].A)
                assert torch.equal(pair.B, before[client.name][name].B)
            assert client.model.alpha.std() > 0


@pytest.mark.parametrize("alpha_lr", [0.0, 0.05])
def test_alpha_stays_from_round_to_round(alpha_lr, backbone, data, tmp_path, monkeypatch):
    """Round 3 goes on from round 2's weights, on round 2's directions; it does not start again."""
    begun, plain = {}, client_module.fit

    def spy(data, model, *args, **options):
        begun[data.name] = cloned(model)
        return plain(data, model, *args, **options)

    monkeypatch.setattr(client_module, "fit", spy)
    settings = {"rounds": 3, "alpha_lr": alpha_lr, "alpha_init": 0.5, "lr": 0.02}
    with Rounds(data, tmp_path, backbone, "fedecider", **settings) as run:
        run.round(1)
        run.round(2)
        before = {client.name: cloned(client.model) for client in run.clients}
        waiting = {client.name: client.pending_directions for client in run.clients}
        run.round(3)
    for client in run.clients:
        old, start = before[client.name].alpha, begun[client.name]
        assert (old != 0).all()
        assert start.alpha is not None and torch.equal(start.alpha, old)
        # Without a rate the weights are still those of round 2, though the own update, whose norm
        # they were taken from, has changed.
        assert torch.equal(client.model.alpha, old) == (alpha_lr == 0)
        sources = sorted(start.peer_directions)
        assert sources == sorted(waiting[client.name]) == sorted(client.pending_directions)
        for source, factors in start.peer_directions.items():
            assert sorted(factors) == run.adapter.names
            for name, pair in factors.items():
                assert torch.equal(pair.B, waiting[client.name][source][name].B)
                older = before[client.name].peer_directions[source][name]
                assert not torch.equal(pair.B, older.B)


@pytest.mark.parametrize("sign", ["free", "nonnegative"])
def test_alpha_keeps_its_sign_through_training(sign, backbone, data, tmp_path):
    """Against the client's own direction (harmful, definition 1) alpha falls, along it alpha rises.

    Freely it falls below zero; held nonnegative, it is zero.
    """
    settings = {"alpha_sign": sign, "alpha_warmup": 10**6, "batch_tokens": 64}
    with Rounds(data, tmp_path, backbone, "fedecider", **settings) as run:
        for client in run.clients:
            run.method.fit(client, 1)  # no directions yet, so no warm-up either
            along = {n: direction(u) for n, u in run.adapter.updates(client.model.factors).items()}
            against = {name: pair.scaled(-1.0) for name, pair in along.items()}
            client.model = ClientModel(
                dict(run.adapter.initial), {"along": along, "against": against}
            )
            assert run.method.fit(client, 2).steps > 1
            bad, good = client.model.alpha.T  # sources in sorted order
            assert (good > 0).all()
            assert (bad == 0).all() if sign == "nonnegative" else (bad < 0).all()


def test_noise_on_directions_keeps_them_unit_and_needs_the_client(data, backbone, tmp_path):
    received = {}
    for noise in (0.0, 0.5):
        folder = tmp_path / str(noise)
        with Rounds(data, folder, backbone, "fedecider", direction_noise=noise) as run:
            run.round(1)
            received[noise] = run.clients[0].pending_directions
        assert all(
            norm(pair).item() == pytest.approx(1, abs=1e-4)
            for factors in received[noise].values()
            for pair in factors.values()
        )
    for source, factors in received[0.0].items():
        for name, pair in factors.items():
            near = cosine(pair, received[0.5][source][name]).item()
            assert 0.6 < near < 0.99  # 1 / sqrt(1 + 0.25) = 0.89
    with pytest.raises(ValueError, match="needs send = direction"):
        config(data, tmp_path / "x", direction_noise=0.1, send="update")


def test_without_direction_the_raw_updates_are_received(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "fedecider-no-direction", alpha_init=0.25) as run:
        run.round(1)
        for sender in run.clients:
            own = run.adapter.updates(sender.model.factors)
            for receiver in run.clients:
                if receiver is not sender:
                    for name, pair in receiver.pending_directions[sender.name].items():
                        assert torch.allclose(dense(pair), dense(own[name]), atol=1e-6)
        assert any(norm(own[name]) < 0.9 or norm(own[name]) > 1.1 for name in own)
        client = run.clients[0]
        model = ClientModel(client.model.factors, client.pending_directions)
        assert (run.method.initial_alpha(model, run.adapter) == 0.25).all()


@pytest.mark.parametrize("method", ["fedecider-no-personalization", "fedecider-no-both"])
def test_without_personalization_the_weights_are_uniform_and_fixed(
    method, data, backbone, tmp_path
):
    with Rounds(data, tmp_path, backbone, method, uniform_weight=0.6) as run:
        for number in (1, 2, 3):
            run.round(number)
        for client in run.clients:
            assert torch.allclose(client.model.alpha, torch.tensor(0.3))
            received = client.model.peer_directions.values()
            sizes = {norm(p).item() for factors in received for p in factors.values()}
            unit = all(abs(size - 1) < 1e-4 for size in sizes)
            assert unit == (method == "fedecider-no-personalization")
        assert run.recorder.rows["alphas"] == []
