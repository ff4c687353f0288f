"""Every method of section 5 by its formula: what clients hold after a round, on small tensors."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from test_federation import Bar, make
from toy import config

from fedecider import federation, runs, wire
from fedecider.client import ClientModel, token_losses, validation_loss
from fedecider.direction import LowRank, cosine, norm
from fedecider.methods import METHODS
from fedecider.methods.fedavg import average
from fedecider.methods.fellrec import attention


class Spy:
    """What every client had trained in a round, and what it holds after the exchange."""

    def __init__(self, run, monkeypatch):
        self.trained = {}
        exchange = run._exchange

        def seen(number):
            self.trained = {c.name: copy.copy(c.model) for c in run.clients}
            return exchange(number)

        monkeypatch.setattr(run, "_exchange", seen)


def rounds(run, count, monkeypatch):
    """Run rounds 1 to count; yields (number, models before, models as trained, models after)."""
    spy = Spy(run, monkeypatch)
    for number in range(1, count + 1):
        before = {c.name: copy.copy(c.model) for c in run.clients}
        run._round(number, Bar())
        yield number, before, spy.trained, {c.name: c.model for c in run.clients}


def dense(pair):
    return pair.B.double() @ pair.A.double()


def titles(run):
    sizes = {client.name: client.data.training.titles for client in run.clients}
    assert len(set(sizes.values())) == len(sizes)
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def test_averages_are_weighted_sums_and_absent_parts_stay_absent():
    def pair(value, half=False):
        A = None if half else torch.full((1, 2), -value)
        return {"m": LowRank(torch.full((2, 1), value), A)}

    mean = average({"a": pair(1.0), "b": pair(5.0)}, {"a": 0.75, "b": 0.25})["m"]
    assert mean.B.unique().item() == 2.0 and mean.A.unique().item() == -2.0
    by_module = average({"a": pair(1.0), "b": pair(5.0)}, {"a": {"m": 0.5}, "b": {"m": 0.5}})["m"]
    assert by_module.B.unique().item() == 3.0
    assert average({"a": pair(1.0, True)}, {"a": 1.0})["m"].A is None
    with pytest.raises(wire.PayloadError, match="one rank: the clients' factors of m differ"):
        wide = {"m": LowRank(torch.ones(2, 2), torch.ones(2, 2))}
        average({"a": pair(1.0), "b": wide}, {"a": 0.5, "b": 0.5})
    with pytest.raises(wire.PayloadError, match="every module of a, n is absent"):
        average({"a": pair(1.0), "b": pair(1.0) | {"n": pair(1.0)["m"]}}, {"a": 0.5, "b": 0.5})


def test_fedprox_without_weight_is_fedavg_and_with_it_stays_nearer(data, backbone, tmp_path):
    found = {}
    for label, method, mu in (("avg", "fedavg", 0), ("zero", "fedprox", 0), ("far", "fedprox", 50)):
        settings = config(data, tmp_path / label, method, fedprox_mu=mu, rankers=[])
        found[label] = runs.rounds(federation.run(settings, backbone))
    same = [c for c in found["avg"] if c not in ("method", "run", "seconds", "memory")]
    pd.testing.assert_frame_equal(found["avg"][same], found["zero"][same], check_exact=True)
    assert (found["far"]["update_norm"] < found["avg"]["update_norm"]).all()


def test_fedprox_penalty_is_its_formula(data, backbone, tmp_path):
    run = make(data, tmp_path, backbone, "fedprox", fedprox_mu=0.3)
    with run.adapter:
        client = run.clients[0]
        run.adapter.load(client.model.factors)
        assert run.method.penalty(client, run.adapter).item() == 0
        moved = {n: LowRank(p.B + 0.5, p.A - 0.25) for n, p in client.model.factors.items()}
        run.adapter.load(moved)
        count = [(p.B.numel(), p.A.numel()) for p in moved.values()]
        expected = 0.15 * sum(b * 0.25 + a * 0.0625 for b, a in count)
        assert run.method.penalty(client, run.adapter).item() == pytest.approx(expected, rel=1e-5)


def test_ffa_lora_never_changes_A_and_averages_B(unlike, backbone, tmp_path, monkeypatch):
    run = make(unlike, tmp_path, backbone, "ffa-lora")
    with run.adapter:
        share = titles(run)
        for _, before, trained, after in rounds(run, 2, monkeypatch):
            for name in run.adapter.names:
                mean = sum(share[c] * trained[c].factors[name].B for c in share)
                updates = sum(share[c] * dense(trained[c].factors[name]) for c in share)
                for client in share:
                    assert torch.equal(after[client].factors[name].A, run.adapter.initial[name].A)
                    assert torch.allclose(after[client].factors[name].B, mean, atol=1e-7)
                    # with one A the average of B is the average of the updates
                    assert torch.allclose(dense(after[client].factors[name]), updates, atol=1e-6)
                    same = torch.equal(
                        trained[client].factors[name].B, before[client].factors[name].B
                    )
                    assert not same


def test_fedsa_lora_keeps_B_at_home_and_averages_A(unlike, backbone, tmp_path, monkeypatch):
    run = make(unlike, tmp_path, backbone, "fedsa-lora")
    with run.adapter:
        share = titles(run)
        for _, _, trained, after in rounds(run, 2, monkeypatch):
            for name in run.adapter.names:
                mean = sum(share[c] * trained[c].factors[name].A for c in share)
                for client in share:
                    own = trained[client].factors[name].B
                    assert torch.equal(after[client].factors[name].B, own)
                    assert torch.allclose(after[client].factors[name].A, mean, atol=1e-7)
                others = [trained[c].factors[name].B for c in share]
                assert not torch.allclose(others[0], others[1])


def test_rolora_alternates(unlike, backbone, tmp_path, monkeypatch):
    run = make(unlike, tmp_path, backbone, "rolora")
    with run.adapter:
        share = titles(run)
        for number, before, trained, after in rounds(run, 4, monkeypatch):
            moving, still = ("B", "A") if number % 2 else ("A", "B")
            for name in run.adapter.names:
                mean = sum(share[c] * getattr(trained[c].factors[name], moving) for c in share)
                for client in share:
                    was, now = before[client].factors[name], after[client].factors[name]
                    assert torch.equal(getattr(was, still), getattr(now, still))
                    assert torch.allclose(getattr(now, moving), mean, atol=1e-7)
                    assert not torch.allclose(getattr(was, moving), getattr(now, moving))
        assert [row["round"] for row in run.rounds if row["client"] == "books"] == [1, 2, 3, 4]


def test_flora_folds_the_exact_weighted_sum(unlike, backbone, tmp_path, monkeypatch):
    """... of all rounds, to 1e-6 of a dense server's; and every client starts a fresh LoRA."""
    run = make(unlike, tmp_path, backbone, "flora", rank=6, rounds=8)
    with run.adapter:
        share = titles(run)
        sums = {name: 0.0 for name in run.adapter.names}
        starts = []
        for _, _, trained, after in rounds(run, 8, monkeypatch):
            for name in run.adapter.names:
                gamma = run.adapter.gamma
                sums[name] += sum(share[c] * gamma * dense(trained[c].factors[name]) for c in share)
                for client in share:
                    folded = after[client].foreign["folded"][name]
                    error = (dense(folded) - sums[name]).abs().max()
                    assert error < 1e-6 * max(1.0, sums[name].abs().max())
                    assert folded.rank <= min(folded.B.shape[0], folded.A.shape[1])
                    assert not after[client].factors[name].B.any()
            assert all((model.alpha == 1).all() for model in after.values())
            starts += [model.factors[run.adapter.names[0]].A for model in after.values()]
        assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_flora_is_validated_with_the_folded_sum(unlike, backbone, tmp_path):
    run = make(unlike, tmp_path, backbone, "flora")
    with run.adapter:
        run._round(1, Bar())
        client = run.clients[0]
        loss = validation_loss(client, run.adapter, run.method)
        assert loss == run.rounds[0]["valid_loss"]
        bare = copy.copy(client.model)
        client.model = ClientModel(bare.factors)
        assert validation_loss(client, run.adapter, run.method) != loss


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_lora_sim_is_the_softmax_of_layerwise_cosines(
    temperature, unlike, backbone, tmp_path, monkeypatch
):
    run = make(unlike, tmp_path, backbone, "lora-sim", sim_temperature=temperature)
    with run.adapter:
        for _, _, trained, after in rounds(run, 2, monkeypatch):
            clients = sorted(trained)
            for name in run.adapter.names:
                for mine in clients:
                    own = trained[mine].factors[name]
                    similar = torch.stack([cosine(own, trained[c].factors[name]) for c in clients])
                    weights = torch.softmax(similar / temperature, 0)
                    assert weights.argmax() == clients.index(mine)
                    for part in ("A", "B"):
                        mean = sum(
                            w * getattr(trained[c].factors[name], part).double()
                            for w, c in zip(weights, clients, strict=True)
                        )
                        got = getattr(after[mine].factors[name], part).double()
                        assert torch.allclose(got, mean, atol=1e-5)
            one = run.adapter.names[0]
            assert not torch.allclose(*(after[c].factors[one].A for c in clients[:2]))


def test_a_zero_update_counts_as_orthogonal():
    zero = {"m": LowRank(torch.zeros(3, 1), torch.ones(1, 2))}
    some = {"m": LowRank(torch.ones(3, 1), torch.ones(1, 2))}
    method = METHODS["lora-sim"](config("d", "f", "lora-sim"))
    down = method.aggregate({"a": zero, "b": some}, {}, 1)
    share = np.exp(1) / (1 + np.exp(1))
    assert down["b"]["personal"]["m"].B.unique().item() == pytest.approx(share)
    assert down["a"]["personal"]["m"].B.unique().item() == pytest.approx(0.5)


def test_fellrec_is_its_formula(unlike, backbone, tmp_path, monkeypatch):
    run = make(unlike, tmp_path, backbone, "fellrec", fellrec_alpha=0.2, fellrec_beta=2.0)
    with run.adapter:
        for number, _, trained, after in rounds(run, 2, monkeypatch):
            clients = sorted(trained)
            losses = [row["train_loss"] for row in run.rounds if row["round"] == number]
            p = np.exp(np.array(losses) / 0.05 - max(losses) / 0.05)
            p /= p.sum()
            warm = np.tanh(0.2 / p ** (number / 2.0))
            flat = {
                c: torch.cat(
                    [part.flatten() for n in run.adapter.names for part in model.factors[n]]
                )
                for c, model in trained.items()
            }
            for i, mine in enumerate(clients):
                raw = []
                for j, other in enumerate(clients):
                    similar = torch.cosine_similarity(flat[mine], flat[other], dim=0).item()
                    raw.append((similar + 1) / 2 * (1 if i == j else warm[i]))
                for name in run.adapter.names:
                    for part in ("A", "B"):
                        mean = sum(
                            w / sum(raw) * getattr(trained[c].factors[name], part)
                            for w, c in zip(raw, clients, strict=True)
                        )
                        got = getattr(after[mine].factors[name], part)
                        assert torch.allclose(got, mean, atol=1e-5)


def test_the_warm_up_grows_with_the_round_and_is_least_for_the_largest_loss():
    method = METHODS["fellrec"](config("d", "f", "fellrec", fellrec_alpha=0.1))
    steps = np.array([method.warm_up([2.0, 2.1, 2.3], number) for number in range(1, 30)])
    assert (np.diff(steps, axis=0) >= 0).all() and steps[-1].min() > 1.5 * steps[0].min()
    assert (np.diff(steps, axis=1) <= 0).all() and (steps <= 1).all() and (steps > 0).all()
    assert attention([torch.ones(3), -torch.ones(3)])[0] == pytest.approx([1.0, 0.0])


def test_feddpa_averages_the_global_lora_and_keeps_the_local_one(
    unlike, backbone, tmp_path, monkeypatch
):
    run = make(unlike, tmp_path, backbone, "feddpa", dpa_weight=0.8)
    with run.adapter:
        share = titles(run)
        for number, before, trained, after in rounds(run, 2, monkeypatch):
            for name in run.adapter.names:
                for client in share:
                    for part in ("A", "B"):
                        mean = sum(
                            share[c] * getattr(trained[c].factors[name], part) for c in share
                        )
                        got = getattr(after[client].factors[name], part)
                        assert torch.allclose(got, mean, atol=1e-7)
                        kept = getattr(trained[client].personal[name], part)
                        assert torch.equal(getattr(after[client].personal[name], part), kept)
                    if number > 1:
                        was = before[client].personal[name].B
                        assert not torch.allclose(was, after[client].personal[name].B)
            one = run.adapter.names[0]
            locals_ = [after[c].personal[one].B for c in share]
            assert not torch.allclose(locals_[0], locals_[1])
        client = run.clients[0]
        groups = run.method.served(client.data, client.model, run.adapter, "test")
        assert sorted(u for users, _ in groups for u in users) == client.data.test_users
        for _, served in groups:
            weight = served.alpha.unique().item()
            assert 0 <= weight <= 0.8 + 1e-6 and weight * 20 == pytest.approx(round(weight * 20))
            for name in run.adapter.names:
                pair = served.factors[name]
                assert torch.allclose(pair.B, client.model.factors[name].B * (1 - weight))
                local = served.foreign["local"][name]
                expected = run.adapter.gamma * dense(client.model.personal[name])
                assert torch.allclose(dense(local), expected, atol=1e-6)


def test_feddpa_weights_are_the_mean_cosine_to_training_histories(
    unlike, backbone, tmp_path, monkeypatch
):
    run = make(unlike, tmp_path, backbone, "feddpa", dpa_weight=1.0, dpa_samples=10**6)
    with run.adapter:
        run._round(1, Bar())
        client = run.clients[0]
        got = run.method.weights_of(client.data, client.model, run.adapter, "test")
        run.adapter.load(client.model.personal)
        model = run.adapter.peft

        def last(ids):
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
            return hidden[0, -1].double()

        before = model.config._attn_implementation
        monkeypatch.setattr(model.config, "_attn_implementation", "eager")
        with torch.no_grad():
            known = [last(example.ids) for example in client.data.training.examples]
            for user, weight in zip(client.data.test_users, got, strict=True):
                mine = last(client.data.catalogue.prompt(user, "test", run.config.history))
                similar = [torch.cosine_similarity(mine, one, dim=0).item() for one in known]
                assert weight == pytest.approx(np.mean(similar), abs=1e-4)
        monkeypatch.undo()
        assert model.config._attn_implementation == before  # the backbone is shared by all tests


def test_centralized_trains_one_model_on_everything(unlike, backbone, tmp_path, monkeypatch):
    run = make(unlike, tmp_path, backbone, "centralized", batch_tokens=10**6)
    with run.adapter:
        total = sum(len(client.data.training.examples) for client in run.clients)
        seen = []
        plain = token_losses

        def spy(adapter, trunk, part, indices):
            if part is not run.clients[0].data.validation:
                seen.extend(indices)
            return plain(adapter, trunk, part, indices)

        monkeypatch.setattr("fedecider.client.token_losses", spy)
        for client in run.clients:  # validation is not what is counted here
            monkeypatch.setattr(client.data, "valid_users", [client.data.valid_users[0]])
        for _, _, _, after in rounds(run, 1, monkeypatch):
            assert set(range(total)) <= set(seen)
            first, *others = (model.factors for model in after.values())
            for name in run.adapter.names:
                assert first[name].B.any()
                assert all(torch.equal(first[name].B, other[name].B) for other in others)


def test_a_joined_trunk_is_its_parts(unlike, backbone, tmp_path):
    from fedecider.client import PooledData

    run = make(unlike, tmp_path, backbone, "centralized")
    with run.adapter:
        parts = [client.data for client in run.clients]
        pooled, losses = PooledData(parts), []
        for part in parts:
            for index in range(len(part.training.examples)):
                losses.append(token_losses(run.adapter, part.train_trunk, part.training, [index]))
        everything = list(range(len(pooled.training.examples)))
        got = token_losses(run.adapter, pooled.train_trunk, pooled.training, everything)
        assert torch.allclose(got, torch.cat(losses), atol=1e-5)


def test_without_direction_the_raw_updates_are_received(unlike, backbone, tmp_path):
    run = make(unlike, tmp_path, backbone, "fedecider-no-direction", alpha_init=0.25)
    with run.adapter:
        run._round(1, Bar())
        for sender in run.clients:
            own = run.adapter.updates(sender.model.factors)
            for receiver in run.clients:
                if receiver is not sender:
                    for name, pair in receiver.incoming[sender.name].items():
                        assert torch.allclose(dense(pair), dense(own[name]), atol=1e-6)
        assert any(norm(own[name]) < 0.9 or norm(own[name]) > 1.1 for name in own)
        client = run.clients[0]
        run.method.begin(client, 2)
        assert (run.method.weights(client.model, run.adapter) == 0.25).all()


@pytest.mark.parametrize("method", ["fedecider-no-personalization", "fedecider-no-both"])
def test_without_personalization_the_weights_are_uniform_and_fixed(
    method, data, backbone, tmp_path
):
    run = make(data, tmp_path, backbone, method, uniform_weight=0.6)
    with run.adapter:
        for number in (1, 2, 3):
            run._round(number, Bar())
        for client in run.clients:
            assert torch.allclose(client.model.alpha, torch.tensor(0.3))
            sizes = {norm(p).item() for f in client.model.foreign.values() for p in f.values()}
            unit = all(abs(size - 1) < 1e-4 for size in sizes)
            assert unit == (method == "fedecider-no-personalization")
        assert run.alphas == []
