"""Every method of section 5: its formula, what it trains, what travels, and its special cases."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load as load_payload
from safetensors.torch import load_file
from test_federation import Bar, make
from toy import config, write_domain, write_domains

from fedecider import federation, runs, wire
from fedecider.client import ClientModel, entered, token_losses, validation_loss
from fedecider.direction import LowRank, cosine, norm
from fedecider.gram import cosines, gram
from fedecider.methods import METHODS
from fedecider.methods.fedavg import average
from fedecider.methods.fellrec import attention

# Section 5's table: parts that go up, and parts that come down from how many sources (n = 3).
UP = {
    "fedavg": "AB",
    "fedprox": "AB",
    "ffa-lora": "B",
    "flora": "AB",
    "fedsa-lora": "A",
    "rolora": "B",
    "lora-sim": "AB",
    "fellrec": "AB",
    "feddpa": "AB",
    "fedecider": "AB",
    "fedecider-no-direction": "AB",
    "fedecider-no-personalization": "AB",
    "fedecider-no-both": "AB",
}
DOWN = {**UP, "flora": "AB" * 3} | {name: UP[name] * 2 for name in UP if "fedecider" in name}
SILENT = ("zero-shot", "als", "local", "centralized")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp("alone"), ["books"])


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


def test_the_table_of_methods_is_that_of_section_5():
    assert set(METHODS) == set(UP) | set(SILENT)


@pytest.mark.parametrize("method", UP)
def test_bytes_are_exactly_those_of_the_table(method, data, backbone, tmp_path, monkeypatch):
    """Every payload holds the parts that the table says and no other tensor."""
    payloads = {"up": [], "down": []}
    plain, phase = wire.decode, {"now": "up"}

    def spy(payload, shapes, sender, *more, **expected):
        payloads[phase["now"]].append(payload)
        return plain(payload, shapes, sender, *more, **expected)

    monkeypatch.setattr(federation.wire, "decode", spy)
    run = make(data, tmp_path, backbone, method)
    aggregate = run.method.aggregate

    def aggregated(*args):
        phase["now"] = "down"
        return aggregate(*args)

    monkeypatch.setattr(run.method, "aggregate", aggregated)
    with run.adapter:
        run._round(1, Bar())
    clients = len(run.clients)
    shapes = {name: (pair.B, pair.A) for name, pair in run.adapter.initial.items()}
    size = {
        "A": sum(A.numel() * 4 for _, A in shapes.values()),
        "B": sum(B.numel() * 4 for B, _ in shapes.values()),
    }
    assert len(payloads["up"]) == clients
    assert len(payloads["down"]) * len(UP[method]) == clients * len(DOWN[method])
    table = pd.DataFrame(run.rounds).set_index("client")
    for way, parts in (("up", UP[method]), ("down", DOWN[method])):
        for payload in payloads[way]:
            names = set(load_payload(payload))
            assert names == {f"{n}.{part}" for n in shapes for part in UP[method]}
        total = sum(sum(t.nbytes for t in load_payload(p).values()) for p in payloads[way])
        assert total == clients * sum(size[part] for part in parts)
        assert table[f"bytes_{way}"].sum() == sum(map(len, payloads[way]))


@pytest.mark.parametrize("method", SILENT)
def test_nothing_travels_where_nothing_is_shared(method, data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", method), backbone)
    table = runs.rounds(folder)
    assert not table[["bytes_up", "bytes_down"]].to_numpy().any()
    assert len(table) == (6 if METHODS[method].rounds_needed else 0)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"zero-shot", "als"}))
def test_all_methods_make_the_same_number_of_local_steps(method, data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", method, rankers=[]), backbone)
    steps = runs.rounds(folder).groupby("round")["steps"].agg(list).tolist()
    local = federation.run(config(data, tmp_path / "local", "local", rankers=[]), backbone)
    expected = runs.rounds(local).groupby("round")["steps"].agg(list).tolist()
    if METHODS[method].pooled:  # one model makes the steps of all, up to the last pack's filling
        assert all(abs(a[0] - sum(b)) <= len(b) for a, b in zip(steps, expected, strict=True))
    else:
        assert steps == expected


def test_steps_are_counted_where_they_are_made(data, backbone, tmp_path, monkeypatch):
    """A method that trained twice as long would show it."""
    monkeypatch.setattr(METHODS["feddpa"], "stages", lambda *args: [(0.0, 1.0), (0.0, 1.0)])
    found = {}
    for method in ("local", "feddpa"):
        folder = federation.run(config(data, tmp_path / method, method, rankers=[]), backbone)
        found[method] = runs.rounds(folder)["steps"].to_numpy()
    assert (found["feddpa"] == 2 * found["local"]).all()


def test_feddpa_trains_its_local_lora_also_in_a_round_of_one_step(data, backbone, tmp_path):
    run = make(data, tmp_path, backbone, "feddpa", batch_tokens=10**6)
    with run.adapter:
        run._round(1, Bar())
        client = run.clients[0]
        assert any(pair.B.any() for pair in client.model.personal.values())


def test_feddpa_serves_the_same_mixture_again_and_keeps_one_cache_for_all_groups(
    data, backbone, tmp_path
):
    run = make(data, tmp_path, backbone, "feddpa")
    with run.adapter:
        run._round(1, Bar())
        client = run.clients[0]
        served = {}
        for split in ("valid", "test", "test"):
            for _, model in run.method.served(client.data, client.model, run.adapter, split):
                weight = model.alpha.unique().item()
                assert served.setdefault(weight, model) is model


@pytest.mark.parametrize("method", ["fedavg", "fellrec", "flora", "fedecider", "local"])
def test_a_diverged_run_says_so_before_anything_travels(method, data, backbone, tmp_path):
    settings = config(data, tmp_path / "run", method, lr=1e30, rankers=[])
    with pytest.raises(FloatingPointError, match=r"learning rate 1e\+30 may be too high"):
        federation.run(settings, backbone)


def test_settings_of_directions_are_refused_where_none_are_sent(data, tmp_path):
    for method in ("fedavg", "fedecider-no-direction", "fedecider-no-both"):
        for field in ({"truncate": 1}, {"noise": 0.1}):
            with pytest.raises(ValueError, match=f"{method} sends no directions"):
                federation.run(config(data, tmp_path / "x", method, **field))


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
    same = [c for c in found["avg"] if c not in ("method", "seconds", "memory")]
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


@pytest.mark.parametrize(
    "method",
    ["fedavg", "lora-sim", "fellrec", "fedsa-lora"]
    + ["fedecider", "fedecider-no-direction", "fedecider-no-personalization", "fedecider-no-both"],
)
def test_with_one_client_it_is_local(method, alone, backbone, tmp_path):
    """By definition: an average over one is that one, and there are no others to learn from."""
    found = {}
    for name in ("local", method):
        folder = federation.run(config(alone, tmp_path / name, name, rankers=[]), backbone)
        found[name] = runs.rounds(folder)[["train_loss", "valid_loss", "update_norm"]].to_numpy()
    np.testing.assert_allclose(found[method], found["local"], rtol=2e-6)


def test_flora_with_one_client_is_local_for_a_round(alone, backbone, tmp_path):
    """Then it starts a fresh LoRA on top, which local does not."""
    found = {}
    for name in ("local", "flora"):
        folder = federation.run(config(alone, tmp_path / name, name, rankers=[]), backbone)
        found[name] = runs.rounds(folder).set_index("round")["valid_loss"]
    assert found["flora"][1] == pytest.approx(found["local"][1], rel=1e-5)
    assert found["flora"][2] != pytest.approx(found["local"][2], rel=1e-5)


def test_noise_on_directions_keeps_them_unit_and_needs_the_client(data, backbone, tmp_path):
    found = {}
    for noise in (0.0, 0.5):
        run = make(data, tmp_path / str(noise), backbone, "fedecider", noise=noise)
        with run.adapter:
            run._round(1, Bar())
            client = run.clients[0]
            found[noise] = client.incoming
        assert all(
            norm(pair).item() == pytest.approx(1, abs=1e-4)
            for factors in client.incoming.values()
            for pair in factors.values()
        )
    for source, factors in found[0.0].items():
        for name, pair in factors.items():
            near = cosine(pair, found[0.5][source][name]).item()
            assert 0.6 < near < 0.99  # 1 / sqrt(1 + 0.25) = 0.89
    with pytest.raises(ValueError, match="needs send = direction"):
        config(data, tmp_path / "x", noise=0.1, send="update")


def test_geometry_holds_norms_and_cosines_of_the_trained_updates(data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "local", rankers=[]), backbone)
    table = runs.geometry(folder)
    state = json.loads((folder / "checkpoint/state.json").read_text())
    tensors = load_file(folder / "checkpoint" / state["tensors"])
    last = table[table["round"] == 2].set_index(["layer", "client", "other"])
    names = sorted(set(table["layer"]))

    def update(client, name):
        part = {p: tensors[f"{client}/model/own/{name}/{p}"] for p in "AB"}
        return LowRank(part["B"] * 8.0, part["A"])  # gamma = lora_alpha / r = 16 / 2

    for name in names:
        one, two = update("books", name), update("games", name)
        row = last.loc[(name, "books", "games")]
        assert row["cosine"] == pytest.approx(cosine(one, two).item(), abs=1e-5)
        assert row["norm"] == pytest.approx(norm(one).item(), rel=1e-4)
        assert last.loc[(name, "books", "books")]["cosine"] == pytest.approx(1, abs=1e-5)
    whole = sum(norm(update("books", name)).item() ** 2 for name in names) ** 0.5
    books = runs.rounds(folder).query("client == 'books' and round == 2")
    assert books["update_norm"].item() == pytest.approx(whole, rel=1e-4)
    assert cosines(gram([{"m": update("books", names[0])}]))["m"].item() == pytest.approx(1)


def test_als_ranks_by_the_domains_interactions(data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "als"), backbone)
    ranks = runs.ranks(folder)
    mine = ranks[ranks["method"] == "als"]
    assert set(mine["ranker"]) == {"als"} and set(mine["protocol"]) == {"sampled", "catalogue"}
    assert mine.groupby(["domain", "protocol"])["user_id"].nunique().eq(6).all()
    assert mine["rank"].between(1, 30).all() and mine["rank"].nunique() > 3
    choices = json.loads((folder / "result.json").read_text())["choices"]
    assert {one["als_factors"] for one in choices.values()} <= {16, 32, 64}
    assert {one["als_confidence"] for one in choices.values()} <= {1.0, 10.0, 40.0}
    assert not (folder / "adapters").exists()  # no language model was trained


def test_als_finds_structure_that_popularity_does_not(tmp_path):
    """Two groups of users who never share an item: items of the own group come first."""
    from fedecider.collaborative import als_ranks
    from fedecider.domains import read_domain

    generator = np.random.default_rng(0)
    write_domain(tmp_path / "d", 0, users=40, items=40, history=10)
    splits = pd.read_parquet(tmp_path / "d/splits.parquet")
    rows = []
    for user, part in splits.groupby("user_id"):
        group = int(user[1:]) % 2
        own = generator.permutation(20)[: len(part)] + 20 * group
        rows.append(part.assign(item_id=[f"i{n:03d}" for n in own]))
    splits = pd.concat(rows)
    splits.to_parquet(tmp_path / "d/splits.parquet")
    held = splits[splits["split"] != "train"]
    listed = [
        (
            r.user_id,
            r.split,
            r.item_id,
            [f"i{n:03d}" for n in range(20) if int(r.user_id[1:]) % 2]
            or [f"i{n:03d}" for n in range(20, 40)],
        )
        for r in held.itertuples()
    ]
    columns = ["user_id", "split", "item_id", "negatives"]
    pd.DataFrame(listed, columns=columns).to_parquet(tmp_path / "d/candidates.parquet")
    domain = read_domain(tmp_path / "d")
    ranks, chosen = als_ranks(domain, [4, 8], [1.0, 10.0])
    assert np.mean(ranks["sampled"]) < 3 and max(ranks["catalogue"]) <= 21
    assert chosen["als_factors"] in (4, 8) and chosen["als_confidence"] in (1.0, 10.0)
    assert als_ranks(domain, [4, 8], [1.0, 10.0]) == (ranks, chosen)


def test_models_are_served_outside_their_training_mixture(unlike, backbone, tmp_path):
    """feddpa's validation loss is that of the served mixture, not of the global LoRA."""
    run = make(unlike, tmp_path, backbone, "feddpa")
    with run.adapter:
        run._round(1, Bar())
        client = run.clients[0]
        total = count = 0.0
        place = {user: n for n, user in enumerate(client.data.valid_users)}
        for users, model in run.method.served(client.data, client.model, run.adapter, "valid"):
            with entered(model.mixture(run.adapter, run.config)), torch.no_grad():
                for user in users:
                    losses = token_losses(
                        run.adapter, client.data.valid_trunk, client.data.validation, [place[user]]
                    )
                    total, count = total + losses.sum().item(), count + len(losses)
        assert run.rounds[0]["valid_loss"] == pytest.approx(total / count, rel=1e-5)
