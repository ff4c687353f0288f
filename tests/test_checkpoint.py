"""What lies on disk: the state between rounds, the chosen models, and finished runs read again."""

import json

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from toy import Rounds, cloned, config, dense

from fedecider import checkpoint, federation
from fedecider import client as client_module
from fedecider.analysis.saved_run import read_run
from fedecider.client import Best
from fedecider.direction import LowRank, norm
from fedecider.engine.backbone import load
from fedecider.mixture import ClientModel
from fedecider.rankers import evaluate
from fedecider.rankers.evaluate import rank_client


def pair(seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(4, 2, generator=generator), torch.randn(2, 3, generator=generator))


def same(one: ClientModel, other: ClientModel) -> bool:
    mine, theirs = checkpoint.flatten(one), checkpoint.flatten(other)
    equal = mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    return equal and sorted(one.peer_directions) == sorted(other.peer_directions)


MODELS = {
    "own alone": ClientModel({"m.q": pair(0), "m.v": pair(1)}),
    "peers and alpha": ClientModel(
        {"m.q": pair(0)}, {"a": {"m.q": pair(2)}, "b": {"m.q": pair(3)}}, torch.ones(1, 2)
    ),
    "a peer without any direction": ClientModel(
        {"m.q": pair(0)}, {"a": {}, "b": {"m.q": pair(3)}}, torch.ones(1, 2)
    ),
    "a local LoRA": ClientModel({"m.q": pair(0)}, local_lora={"m.q": pair(4), "m.v": pair(5)}),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_is_its_tensors_by_name(model):
    tensors = checkpoint.flatten(model)
    again = checkpoint.unflatten(tensors, list(model.peer_directions))
    assert same(again, model) and (again.local_lora is None) == (model.local_lora is None)
    memory = {tensor.data_ptr() for tensor in tensors.values()}
    assert len(memory) == len(tensors)  # safetensors refuses tensors that share it


@pytest.mark.parametrize("method", ["fedecider", "feddpa", "flora"])
def test_a_clients_state_is_put_back_whole(method, data, backbone, tmp_path):
    with Rounds(data, tmp_path / "one", backbone, method, alpha_init=0.3) as run:
        for number in (1, 2):
            run.round(number)
        checkpoint.save_round(tmp_path / "one", 2, run.clients)
        states = [checkpoint.client_state(client) for client in run.clients]
        expected = [
            (client.model, client.best, client.pending_directions) for client in run.clients
        ]
    with Rounds(data, tmp_path / "two", backbone, method, alpha_init=0.3) as run:
        assert checkpoint.restore_round(tmp_path / "two", run.clients) == 0
        assert checkpoint.restore_round(tmp_path / "one", run.clients) == 2
        for client, (model, best, pending) in zip(run.clients, expected, strict=True):
            assert same(client.model, model) and same(client.best.model, best.model)
            assert (client.best.loss, client.best.round) == (best.loss, best.round)
            assert same(ClientModel({}, client.pending_directions), ClientModel({}, pending))
        for client, (tensors, numbers) in zip(run.clients, states, strict=True):
            own, again = checkpoint.client_state(client)
            assert again == numbers and own.keys() == tensors.keys()
            assert all(torch.equal(own[name], tensors[name]) for name in own)
    files = sorted(path.name for path in (tmp_path / "one/checkpoint").iterdir())
    assert files == ["round-002.safetensors", "state.json"]


def test_only_the_last_rounds_tensors_are_kept(data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "fedavg", rankers=[]), backbone)
    files = sorted(path.name for path in (folder / "checkpoint").iterdir())
    assert files == ["round-002.safetensors", "state.json"]


@pytest.mark.parametrize("names", [("books", "comics"), ("arts, crafts", "b")])
def test_a_saved_model_is_read_as_it_was(names, data, backbone, tmp_path):
    with Rounds(data, tmp_path / "x", backbone, "fedecider") as run:
        initial = run.adapter.initial
        own = {n: LowRank(torch.randn(p.B.shape), p.A.clone()) for n, p in initial.items()}
        some = {n: p for n, p in own.items() if "v_proj" in n}
        for number, (peers, alpha, local) in enumerate(
            [
                ({}, None, None),
                ({names[0]: own, names[1]: some}, torch.rand(2, 2), None),
                ({names[0]: own, names[1]: {}}, torch.rand(2, 2), None),
                ({}, None, own),
            ]
        ):
            model, folder = ClientModel(own, peers, alpha, local), tmp_path / str(number)
            checkpoint.save_model(folder, model, run.adapter, run.config)
            assert same(checkpoint.load_model(folder), model)
            assert (folder / "mixture.safetensors").exists() == (number > 0)
            first = written(folder)
            for _ in range(6):
                checkpoint.save_model(folder, model, run.adapter, run.config)
                assert written(folder) == first


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed", [False, True])
def test_the_model_of_the_best_round_is_ranked_and_saved(
    killed, backbone, data, tmp_path, monkeypatch
):
    """Not that of the last round, nor after a resumption; its directions and alpha included."""
    losses = {"books": [1.0, 2.0, 3.0], "comics": [2.0, 1.0, 3.0], "games": [3.0, 2.0, 1.0]}
    best = {"books": 1, "comics": 2, "games": 3}
    models = {name: [] for name in losses}

    def scripted(data, served, adapter):
        ((_, model),) = served
        models[data.name].append(cloned(model))
        return losses[data.name][len(models[data.name]) - 1]

    def dies(*args):
        raise Killed

    monkeypatch.setattr(client_module, "validation_loss", scripted)
    settings = {"rounds": 3, "lr": 0.05, "alpha_init": 0.5}
    chosen = config(data, tmp_path / "run", "fedecider", **settings)
    if killed:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(evaluate, "rank_client", dies)
            federation.run(chosen, backbone)
    federation.run(chosen, backbone)
    assert all(len(rounds) == 3 for rounds in models.values())
    stored = pd.read_parquet(chosen.folder / "ranks.parquet")
    with Rounds(data, tmp_path / "again", backbone, "fedecider", **settings) as run:
        for client in run.clients:
            model, last = models[client.name][best[client.name] - 1], models[client.name][-1]
            ranks = stored[stored["domain"] == client.name]["rank"].tolist()
            client.best = Best(model)
            assert ranks == rank_client(client)[0]["rank"].tolist()
            if model is not last:
                client.best = Best(last)
                assert ranks != rank_client(client)[0]["rank"].tolist()
            assert_saved(chosen.folder / "adapters" / client.name, model)


def assert_saved(folder, model):
    """The folder holds this own LoRA, these directions and this alpha, and no other tensor."""
    own = load_file(folder / "adapter_model.safetensors")
    expected = {
        f"base_model.model.{name}.lora_{part}.weight": getattr(pair, part)
        for name, pair in model.factors.items()
        for part in ("A", "B")
    }
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    path = folder / "mixture.safetensors"
    assert path.exists() == bool(model.peer_directions)  # a first round has no directions yet
    if model.peer_directions:
        mixture = load_file(path)
        expected = {
            f"from {source}/{name}/{part}": getattr(pair, part)
            for source, factors in model.peer_directions.items()
            for name, pair in factors.items()
            for part in ("A", "B")
        } | {"alpha": model.alpha}
        assert mixture.keys() == expected.keys()
        assert all(torch.equal(mixture[key], expected[key]) for key in mixture)


def test_saved_adapters_load_with_peft_alone(backbone, data, tmp_path):
    folder = federation.run(config(data, tmp_path / "run"), backbone)
    for name in ("books", "comics", "games"):
        own = folder / "adapters" / name
        model = PeftModel.from_pretrained(load("tiny", "cpu", "float32").model, own)
        stored = load_file(own / "adapter_model.safetensors")
        described = json.loads((own / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == "tiny"  # and no folder of this machine
        assert any(tensor.abs().max() > 0 for key, tensor in stored.items() if "lora_B" in key)
        assert sum("lora_B" in key for key, _ in model.named_parameters()) == 2
        assert (own / "mixture.safetensors").exists()


def test_a_finished_run_is_read_again(data, unlike, backbone, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        read_run(folder, data)
    federation.run(config(data, folder, "fedecider", rankers=[]), backbone)
    with pytest.raises(ValueError, match="was trained on other data than those in"):
        read_run(folder, unlike)
    run = read_run(folder, data)
    assert run.config.flat() == config(data, folder, rankers=[]).flat() | {
        "shared": "direction",
        "weights": "learned",
        "uniform_weight": 1.0,
    }
    assert [domain.name for domain in run.domains] == ["books", "comics", "games"]
    with run.adapter(backbone) as adapter:
        model = run.model("books")
        assert sorted(model.peer_directions) == ["comics", "games"] and model.alpha.any()
        sent = run.sent("books", adapter)
        assert sorted(sent) == adapter.names
        for name, direction in sent.items():
            assert norm(direction).item() == pytest.approx(1, abs=1e-5)
            own = adapter.updates(model.factors)[name]
            assert torch.allclose(dense(direction), dense(own) / norm(own), atol=1e-5)
    other = load("tiny@1", "cpu", "float32")
    with pytest.raises(ValueError, match="was trained on tiny, not on tiny@1"):
        run.adapter(other)
