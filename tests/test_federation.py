"""The round loop: what each method computes, what travels, and resuming after a kill."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from toy import config

from fedecider import federation, runs, wire
from fedecider.adapter import Adapter
from fedecider.backbone import load
from fedecider.client import ClientModel, train
from fedecider.direction import LowRank, direction, norm
from fedecider.domains import read_domains, some_users
from fedecider.evaluation import evaluate
from fedecider.federation import Federation
from fedecider.methods import METHODS


def finished(folder, names=("metrics.csv", "rounds.csv", "alphas.csv", "geometry.csv")):
    """Every number of a run; the seconds, which are not reproducible, left out."""
    parts = [
        pd.read_csv(folder / name).drop(columns=["seconds", "memory"], errors="ignore")
        for name in names
    ]
    parts.append(pd.read_parquet(folder / "ranks.parquet"))
    saved = folder / "adapters" / "books" / "adapter_model.safetensors"
    parts.append(load_file(saved) if saved.exists() else {})  # als has none
    return parts


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        if isinstance(one, dict):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[key], two[key]) for key in one)
        else:
            pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize(
    ("method", "top_layers"), [*((method, 1) for method in METHODS), ("fedecider", None)]
)
def test_two_runs_are_bit_identical(method, top_layers, backbone, data, tmp_path):
    some = {"method": method, "top_layers": top_layers, "alpha_scope": "layer"}
    first = federation.run(config(data, tmp_path / "first", **some), backbone)
    torch.manual_seed(99)  # global state must not matter
    np.random.seed(99)
    second = federation.run(config(data, tmp_path / "second", **some), backbone)
    assert_same(finished(first), finished(second))
    ranks = pd.read_parquet(first / "ranks.parquet")
    assert set(ranks["method"]) == {method, "popularity"}
    assert len(ranks) == 3 * 6 * 2 * 2  # domains, users, protocols, method and popularity


def test_the_order_of_sets_does_not_matter(data, tmp_path):
    """A trap of the peers' code: item ids that depend on the hash seed of the process."""
    folders = []
    for hash_seed in ("1", "2"):
        folders.append(tmp_path / hash_seed)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
            "from toy import config; from fedecider import federation; "
            "federation.run(config(*map(Path, sys.argv[2:]), 'fedecider'))"
        )
        places = [str(Path(__file__).parent), str(data), str(folders[-1])]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code, *places], check=True, env=environment)
    assert_same(*map(finished, folders))


def test_another_seed_is_another_run(backbone, data, tmp_path):
    first = federation.run(config(data, tmp_path / "a", "local"), backbone)
    second = federation.run(config(data, tmp_path / "b", "local", seed=1), backbone)
    losses = [pd.read_csv(folder / "rounds.csv")["train_loss"] for folder in (first, second)]
    assert (losses[0] != losses[1]).all()
    users = [sorted(runs.ranks(folder)["user_id"].unique()) for folder in (first, second)]
    assert users[0] == users[1]  # the same test users for every seed


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *itertools.product(
            ["fedavg", "fedecider"], ["train", "_save", "validation_loss", "evaluate"]
        ),
        # What others keep between rounds: two LoRAs, a folded sum, a phase, one model for all.
        *(("feddpa", where) for where in ("train", "_save", "evaluate")),
        ("flora", "train"),
        ("flora", "evaluate"),
        ("rolora", "train"),
        ("fellrec", "_save"),
        ("centralized", "_save"),
    ],
)
def test_a_killed_run_goes_on_with_the_same_numbers(
    method, where, backbone, data, tmp_path, monkeypatch
):
    whole = federation.run(config(data, tmp_path / "whole", method, rounds=3), backbone)
    broken = config(data, tmp_path / "broken", method, rounds=3)
    holder = Federation if where == "_save" else federation
    original, calls = getattr(holder, where), []

    def dies(*args, **kwargs):
        calls.append(None)
        if len(calls) == (3 if where == "_save" else 2 if where == "evaluate" else 5):
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(holder, where, dies)
    with pytest.raises(Killed):
        federation.run(broken, backbone)
    monkeypatch.undo()
    assert not (broken.folder / "result.json").exists()
    assert runs.metrics(broken.folder).empty  # an unfinished run is in no table
    before = len((broken.folder / "events.jsonl").read_text().splitlines())
    with (broken.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "cli')  # a line torn by the kill
    trained = []
    plain = federation.train
    monkeypatch.setattr(federation, "train", lambda *a: trained.append(a[3]) or plain(*a))
    federation.run(broken, backbone)
    assert before and len(trained) < 9  # it went on and did not begin again
    assert_same(finished(whole), finished(broken.folder))
    events = runs.Events(broken.folder / "events.jsonl").read()
    rounds = [event["round"] for event in events if event["event"] == "round"]
    assert rounds == [1, 2, 3]
    assert sum(event["event"] == "client" for event in events) == 9


@pytest.mark.parametrize("write", range(5))
def test_a_kill_between_two_writes_of_the_state(write, backbone, data, tmp_path, monkeypatch):
    """The tensors, three tables, and the state that names them."""
    whole = federation.run(config(data, tmp_path / "whole"), backbone)
    broken = config(data, tmp_path / "broken")
    plain, calls = runs.os.replace, []

    def dies(source, target):
        if "round-002" in str(target) or calls:
            calls.append(target)
        if len(calls) == write + 1:
            raise Killed
        return plain(source, target)

    monkeypatch.setattr(runs.os, "replace", dies)
    with pytest.raises(Killed):
        federation.run(broken, backbone)
    monkeypatch.undo()
    federation.run(broken, backbone)
    assert_same(finished(whole), finished(broken.folder))
    events = runs.Events(broken.folder / "events.jsonl").read()
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]


def test_a_diverged_run_says_so(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setattr(federation, "validation_loss", lambda *args: float("nan"))
    with pytest.raises(FloatingPointError, match="books is nan after round 1: the learning rate"):
        federation.run(config(data, tmp_path / "run", "local"), backbone)


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(backbone, data, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "local"), backbone)
    stamp = (folder / "result.json").stat().st_mtime_ns
    federation.run(config(data, tmp_path / "run", "local"), backbone)
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"rank = 2, not 3"):
        federation.run(config(data, tmp_path / "run", "local", rank=3), backbone)


def make(data, folder, backbone, method, **settings):
    """A federation that the test drives round by round."""
    chosen = config(data, folder, method, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    adapter = Adapter(
        backbone, chosen.rank, chosen.lora_alpha, chosen.targets, chosen.top_layers, chosen.seed
    )
    limits = {split: getattr(chosen, f"{split}_users") for split in ("train", "valid", "test")}
    return Federation(chosen, adapter, read_domains(data, **limits))


class Bar:
    def update(self, count):
        pass

    def set_postfix_str(self, *args, **kwargs):
        pass


def test_fedavg_is_the_weighted_mean_of_every_client(backbone, unlike, tmp_path, monkeypatch):
    sent = {}
    plain = wire.decode

    def spy(payload, shapes, sender, *more, **expected):
        factors = plain(payload, shapes, sender, *more, **expected)
        sent.setdefault(sender, factors)
        return factors

    monkeypatch.setattr(federation.wire, "decode", spy)
    run = make(unlike, tmp_path, backbone, "fedavg")
    sizes = {"books": 12 * 5, "comics": 4 * 7, "games": 6 * 2}  # every title but the first
    with run.adapter:
        run._round(1, Bar())
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
    uploads = {
        client: {"m": LowRank(torch.full((2, 1), value), torch.full((1, 2), -value))}
        for client, value in (("a", 1.0), ("b", 5.0))
    }
    down = METHODS["fedavg"](None).aggregate(uploads, {"a": 3, "b": 1}, 1)
    assert down["a"]["global"]["m"].B.unique().item() == pytest.approx(2.0)
    assert down["b"]["global"]["m"].A.unique().item() == pytest.approx(-2.0)


@pytest.mark.parametrize("send", ["direction", "update"])
@pytest.mark.parametrize("kind", ["frobenius", "column", "spectral"])
def test_fedecider_receives_the_others_directions_unaveraged(send, kind, backbone, data, tmp_path):
    run = make(data, tmp_path, backbone, "fedecider", send=send, norm=kind)
    with run.adapter:
        run._round(1, Bar())
        assert all(not client.model.foreign for client in run.clients)  # round 1 has none yet
        names = sorted(client.name for client in run.clients)
        for client in run.clients:
            assert sorted(client.incoming) == [name for name in names if name != client.name]
        for sender in run.clients:
            own = run.adapter.updates(sender.model.factors)
            for receiver in run.clients:
                if receiver is sender:
                    continue
                assert sorted(receiver.incoming[sender.name]) == run.adapter.names
                for name, pair in receiver.incoming[sender.name].items():
                    size = norm(own[name], kind)
                    got = (pair.B @ pair.A).double()
                    expected = own[name].B.double() @ own[name].A.double() / size
                    assert (got - expected).abs().max() < 1e-5
                    assert norm(pair, kind).max() == pytest.approx(1, abs=1e-5)


def test_bytes_are_those_of_the_table(backbone, data, tmp_path):
    """up: fedavg A, B and fedecider D; down: A, B and (n - 1) x D; a direction is as large."""
    size = {}
    for method in ("zero-shot", "local", "fedavg", "fedecider"):
        folder = federation.run(config(data, tmp_path / method, method), backbone)
        rounds = runs.rounds(folder)
        size[method] = rounds[["bytes_up", "bytes_down"]].drop_duplicates().to_numpy().tolist()
    assert size["zero-shot"] == [] and size["local"] == [[0, 0]]
    (up, down) = size["fedavg"][0]
    # Up goes the number of examples, too, in the payload's header.
    assert size["fedavg"] == [[up, down]] and 0 < up - down < 64
    assert size["fedecider"] == [[down, 2 * down]]
    # The payload proper: r (d_in + d_out) float32 a module, and safetensors' header.
    pairs = load_file(next((tmp_path / "fedavg").glob("adapters/books/*.safetensors")))
    assert 0 < up - sum(tensor.numel() * 4 for tensor in pairs.values()) < 2000


@pytest.mark.parametrize("method", ["fedavg", "fedecider"])
def test_a_coarser_wire_takes_less_and_changes_little(backbone, data, tmp_path, method):
    found = {}
    for precision in ("float32", "bfloat16", "int8"):
        settings = config(data, tmp_path / precision, method, wire=precision)
        folder = federation.run(settings, backbone)
        rounds = runs.rounds(folder)
        found[precision] = rounds["bytes_up"].max(), rounds["valid_loss"].to_numpy()
    assert found["int8"][0] < found["bfloat16"][0] < found["float32"][0]
    for precision in ("bfloat16", "int8"):
        assert (found[precision][1] != found["float32"][1]).any()
        assert np.allclose(found[precision][1], found["float32"][1], atol=0.05)


def test_truncated_directions_are_smaller(backbone, data, tmp_path):
    whole = federation.run(config(data, tmp_path / "whole"), backbone)
    short = federation.run(config(data, tmp_path / "short", truncate=1), backbone)
    assert (runs.rounds(short)["bytes_up"] < 0.7 * runs.rounds(whole)["bytes_up"]).all()


def test_first_round_is_local_and_later_rounds_learn_alpha(backbone, data, tmp_path):
    local = runs.rounds(federation.run(config(data, tmp_path / "local", "local"), backbone))
    folder = federation.run(config(data, tmp_path / "ours"), backbone)
    ours = runs.rounds(folder)
    first = local["round"] == 1
    pd.testing.assert_series_equal(local[first]["valid_loss"], ours[first]["valid_loss"])
    assert (local[~first]["valid_loss"] != ours[~first]["valid_loss"]).all()
    alphas = runs.alphas(folder)
    assert set(alphas["round"]) == {2}
    assert (alphas["client"] != alphas["source"]).all()
    assert (alphas["alpha"] != 0).all()
    assert len(alphas) == 6 * 2  # pairs of clients, modules


def test_alpha_with_rate_and_start_zero_is_local(backbone, data, tmp_path):
    local = federation.run(config(data, tmp_path / "local", "local", rounds=3), backbone)
    still = federation.run(config(data, tmp_path / "still", alpha_lr=0.0, rounds=3), backbone)
    columns = ["train_loss", "valid_loss"]
    pd.testing.assert_frame_equal(
        runs.rounds(local)[columns], runs.rounds(still)[columns], check_exact=True
    )


def test_alpha_warm_up_leaves_the_own_lora_alone(backbone, data, tmp_path):
    run = make(data, tmp_path, backbone, "fedecider", alpha_warmup=10**6, alpha_init=0.1)
    with run.adapter:
        run._round(1, Bar())
        before = {c.name: dict(c.model.factors) for c in run.clients}
        run._round(2, Bar())
        for client in run.clients:
            for name, pair in client.model.factors.items():
                assert torch.equal(pair.A, before[client.name][name].A)
                assert torch.equal(pair.B, before[client.name][name].B)
            assert client.model.alpha.std() > 0


def test_the_best_round_by_validation_is_ranked(backbone, data, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "local", rounds=4, lr=0.3), backbone)
    rounds = runs.rounds(folder)
    chosen = json.loads((folder / "result.json").read_text())["choices"]
    best = rounds.loc[rounds.groupby("client")["valid_loss"].idxmin()].set_index("client")["round"]
    assert {name: choice["best_round"] for name, choice in chosen.items()} == best.to_dict()
    assert (best < 4).any()  # the rate is so high that the last round is not the best


def cloned(model):
    """A copy that no later training can reach."""

    def copies(factors):
        return {name: LowRank(pair.B.clone(), pair.A.clone()) for name, pair in factors.items()}

    foreign = {source: copies(factors) for source, factors in model.foreign.items()}
    alpha = None if model.alpha is None else model.alpha.clone()
    return ClientModel(copies(model.factors), foreign, alpha)


@pytest.mark.parametrize("killed", [False, True])
def test_the_model_of_the_best_round_is_ranked_and_saved(
    killed, backbone, data, tmp_path, monkeypatch
):
    """Not that of the last round, nor after a resumption; its directions and alpha included."""
    losses = {"books": [1.0, 2.0, 3.0], "comics": [2.0, 1.0, 3.0], "games": [3.0, 2.0, 1.0]}
    best = {"books": 1, "comics": 2, "games": 3}
    models = {name: [] for name in losses}

    def scripted(client, adapter, method):
        models[client.name].append(cloned(client.model))
        return losses[client.name][len(models[client.name]) - 1]

    monkeypatch.setattr(federation, "validation_loss", scripted)
    settings = {"rounds": 3, "lr": 0.05, "alpha_init": 0.5}
    run = make(data, tmp_path, backbone, "fedecider", **settings)
    if killed:
        with run.adapter, monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Federation, "_evaluate", raises_killed)
            run.run()
        run = make(data, tmp_path, backbone, "fedecider", **settings)
    with run.adapter:
        run.run()
        assert all(len(rounds) == 3 for rounds in models.values())
        stored = pd.read_parquet(tmp_path / "ranks.parquet")
        for client in run.clients:
            chosen, last = models[client.name][best[client.name] - 1], models[client.name][-1]
            ranks = stored[stored["domain"] == client.name]["rank"].tolist()
            frame, _ = evaluate(client.data, chosen, run.adapter, run.method)
            assert ranks == frame["rank"].tolist()
            if chosen is not last:
                frame, _ = evaluate(client.data, last, run.adapter, run.method)
                assert ranks != frame["rank"].tolist()
            assert_saved(tmp_path / "adapters" / client.name, chosen)


def raises_killed(*args):
    raise Killed


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
    assert path.exists() == bool(model.foreign)  # a first round has no directions yet
    if model.foreign:
        mixture = load_file(path)
        expected = {
            f"mixture/from {source}/{name}/{part}": getattr(pair, part)
            for source, factors in model.foreign.items()
            for name, pair in factors.items()
            for part in ("A", "B")
        } | {"mixture/alpha": model.alpha}
        assert mixture.keys() == expected.keys()
        assert all(torch.equal(mixture[key], expected[key]) for key in mixture)


@pytest.mark.parametrize("alpha_lr", [0.0, 0.05])
def test_alpha_stays_from_round_to_round(alpha_lr, backbone, data, tmp_path, monkeypatch):
    """Round 3 goes on from round 2's weights, on round 2's directions; it does not start again."""
    begun, plain = {}, federation.train

    def spy(client, *args):
        begun[client.name] = cloned(client.model)
        return plain(client, *args)

    monkeypatch.setattr(federation, "train", spy)
    run = make(
        data, tmp_path, backbone, "fedecider", rounds=3, alpha_lr=alpha_lr, alpha_init=0.5, lr=0.02
    )
    with run.adapter:
        run._round(1, Bar())
        run._round(2, Bar())
        before = {client.name: cloned(client.model) for client in run.clients}
        waiting = {client.name: client.incoming for client in run.clients}
        run._round(3, Bar())
    for client in run.clients:
        old, start = before[client.name].alpha, begun[client.name]
        assert (old != 0).all()
        assert start.alpha is not None and torch.equal(start.alpha, old)
        # Without a rate the weights are still those of round 2, though the own update, whose norm
        # they were taken from, has changed.
        assert torch.equal(client.model.alpha, old) == (alpha_lr == 0)
        assert sorted(start.foreign) == sorted(waiting[client.name]) == sorted(client.incoming)
        for source, factors in start.foreign.items():
            assert sorted(factors) == run.adapter.names
            for name, pair in factors.items():
                assert torch.equal(pair.B, waiting[client.name][source][name].B)
                assert not torch.equal(pair.B, before[client.name].foreign[source][name].B)


@pytest.mark.parametrize("sign", ["free", "nonnegative"])
def test_alpha_keeps_its_sign_through_training(sign, backbone, data, tmp_path):
    """Against the client's own direction (harmful, definition 1) alpha falls, along it alpha rises.

    Freely it falls below zero; held nonnegative, it is zero.
    """
    run = make(
        data, tmp_path, backbone, "fedecider", alpha_sign=sign, alpha_warmup=10**6, batch_tokens=64
    )
    with run.adapter:
        for client in run.clients:
            train(client, run.adapter, run.method, 1)  # no directions yet, so no warm-up either
            along = {n: direction(u) for n, u in run.adapter.updates(client.model.factors).items()}
            against = {name: pair.scaled(-1.0) for name, pair in along.items()}
            client.model = ClientModel(
                dict(run.adapter.initial), {"along": along, "against": against}
            )
            assert train(client, run.adapter, run.method, 2)["steps"] > 1
            bad, good = client.model.alpha.T  # sources in sorted order
            assert (good > 0).all()
            assert (bad == 0).all() if sign == "nonnegative" else (bad < 0).all()


def test_instruction_form_runs(backbone, data, tmp_path):
    chosen = config(data, tmp_path / "run", form="instruction", rounds=2, train_users=4)
    assert len(runs.metrics(federation.run(chosen, backbone)))


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


def test_frozen_weights_do_not_move(data, tmp_path):
    backbone = load("tiny", "cpu", "float32")
    before = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    federation.run(config(data, tmp_path / "run"), backbone)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_user_samples_are_nested_and_sorted():
    users = [f"u{number}" for number in range(40)]
    small, large = some_users(reversed(users), 5), some_users(users, 20)
    assert small == sorted(small) and set(small) < set(large)
    assert some_users(users, None) == some_users(users, 99) == sorted(users)


def test_bad_names_are_refused(backbone, data, tmp_path):
    with pytest.raises(
        ValueError, match="one of zero-shot, als, local, .* fedecider, got 'fedsgd'"
    ):
        federation.run(config(data, tmp_path / "x", "fedsgd"), backbone)
    with pytest.raises(FileNotFoundError, match="no prepared domains"):
        federation.run(config(tmp_path / "nothing", tmp_path / "y"), backbone)
    with pytest.raises(FileNotFoundError, match="no domain 'music'"):
        federation.run(config(data, tmp_path / "z", domains=["music"]), backbone)
