"""Every method of section 5 as a whole run: what travels, its steps, its special cases."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load as load_payload
from safetensors.torch import load_file
from test_federation import Bar, make
from toy import config, write_domains

from fedecider import federation, runs, wire
from fedecider.client import entered, token_losses
from fedecider.direction import LowRank, cosine, norm
from fedecider.gram import cosines, gram
from fedecider.methods import METHODS

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
