"""A client that fails is left out of the round; the others go on, and so does it in the next."""

import copy
import math
import re

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toy import Rounds, config

from fedecider import checkpoint, federation, runs, search, wire
from fedecider import client as client_module
from fedecider.client import Client
from fedecider.direction import LowRank
from fedecider.methods import METHODS
from fedecider.server import Server

pytestmark = pytest.mark.filterwarnings("ignore:.* is left out of round")
TRAINED = [name for name in METHODS if METHODS[name].trains and name != "centralized"]


def diverge(monkeypatch, who: str, when: int) -> None:
    """Training of a client ends in nan in that round."""
    plain = Client.fit

    def fit(client, round, **options):
        report = plain(client, round, **options)
        if client.name == who and round == when:
            broken = {n: LowRank(p.B * math.nan, p.A) for n, p in client.model.factors.items()}
            client.model.factors, client.model.alpha = broken, None
        return report

    monkeypatch.setattr(Client, "fit", fit)


def spoil_upload(monkeypatch, who: str, when: int) -> None:
    """The upload of a client is torn on its way in that round."""
    plain = Server.aggregate

    def aggregate(server, round, payloads):
        if round == when and payloads[who]:
            payloads = payloads | {who: payloads[who][:-1]}
        return plain(server, round, payloads)

    monkeypatch.setattr(Server, "aggregate", aggregate)


def spoil_download(monkeypatch, who: str, when: int) -> None:
    """What a client receives is torn on its way in that round."""
    plain = Client.receive

    def receive(client, round, payloads):
        if round == when and client.name == who:
            payloads = {source: payload[:-1] for source, payload in payloads.items()}
        return plain(client, round, payloads)

    monkeypatch.setattr(Client, "receive", receive)


FAULTS = {
    "diverges": (diverge, "the update's norm of comics is nan after round 2: the learning rate"),
    "upload": (spoil_upload, "payload of comics is no safetensors file"),
    "download": (spoil_download, "payload of .* is no safetensors file"),
}


def same(model, other) -> bool:
    """Whether two models hold the same tensors."""
    first, second = checkpoint.flatten(model), checkpoint.flatten(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def events(folder) -> list[dict]:
    return [e for e in runs.Events(folder / "events.jsonl").read() if e["event"] == "left out"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", TRAINED)
def test_a_run_goes_on_without_the_client(method, fault, data, backbone, tmp_path, monkeypatch):
    if method == "local" and fault != "diverges":
        pytest.skip("nothing travels")
    break_it, reason = FAULTS[fault]
    break_it(monkeypatch, "comics", 2)
    folder = federation.run(
        config(data, tmp_path, method, rounds=3, rankers=["likelihood"]), backbone
    )
    assert (folder / "result.json").exists()
    (event,) = events(folder)
    assert (event["client"], event["round"]) == ("comics", 2)
    assert re.search(reason, event["reason"])
    rows = pd.read_csv(folder / "rounds.csv")
    out = (rows["client"] == "comics") & (rows["round"] == 2)
    assert rows.loc[out, ["train_loss", "update_norm"]].isna().all(axis=None)
    assert rows.loc[~out, ["train_loss", "update_norm"]].notna().all(axis=None)
    assert rows["valid_loss"].notna().all() and len(rows) == 9
    row = rows[out].iloc[0]
    sends = method != "local"
    assert (row["bytes_up"] > 0) == (sends and fault == "download")
    # Averages that are made for each client alone have nothing for one that sent nothing.
    receives = sends and fault != "download" and method not in ("lora-sim", "fellrec")
    assert (row["bytes_down"] > 0) == receives
    assert (rows.loc[~out, "bytes_up"] > 0).all() == sends
    ranks = pd.read_parquet(folder / "ranks.parquet")
    assert sorted(ranks["domain"].unique()) == ["books", "comics", "games"]


@pytest.mark.parametrize("method", ["local", "fedavg", "lora-sim", "feddpa", "fedecider"])
def test_its_model_is_that_of_before_and_the_others_are_as_without_it(
    method, data, backbone, tmp_path, monkeypatch
):
    diverge(monkeypatch, "comics", 2)
    with Rounds(data, tmp_path / "a", backbone, method, rounds=3) as run:
        run.round(1)
        before = {client.name: copy.copy(client.model) for client in run.clients}
        run.round(2)
        models = {client.name: client.model for client in run.clients}
        if method == "fedavg":  # it receives the others' mean
            for name, pair in models["comics"].factors.items():
                assert torch.equal(pair.B, models["books"].factors[name].B)
                assert not torch.equal(pair.B, before["comics"].factors[name].B)
        elif method == "feddpa":
            own, earlier = models["comics"].local_lora, before["comics"].local_lora
            assert all(torch.equal(own[name].B, earlier[name].B) for name in own)
        else:
            assert same(models["comics"], before["comics"])
        assert not same(models["books"], before["books"])
        after = {client.name: copy.copy(client.model) for client in run.clients}
    with Rounds(data, tmp_path / "b", backbone, method, rounds=3) as run:
        run.round(1)
        # Round 2 with two clients: what the aggregate of the others is.
        run.clients = [client for client in run.clients if client.name != "comics"]
        run.round(2)
        for client in run.clients:
            mine, other = client.model.factors, after[client.name].factors
            assert all(torch.equal(mine[name].B, other[name].B) for name in mine)


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("method", ["fedecider", "fedecider-no-both"])
def test_of_fedecider_the_direction_is_absent_and_its_weight_waits(
    method, when, data, backbone, tmp_path, monkeypatch
):
    diverge(monkeypatch, "comics", when)
    with Rounds(data, tmp_path, backbone, method, rounds=4, alpha_scope="client") as run:
        for number in range(1, when + 1):
            run.round(number)
        books = run.clients[0]
        assert books.pending_directions["comics"] == {} and books.pending_directions["games"]
        waits = None if when == 1 else books.model.alpha.clone()
        run.round(when + 1)
        assert sorted(books.model.peer_directions) == ["comics", "games"]
        comics, games = books.model.alpha[0].tolist()
        learned = METHODS[method] is METHODS["fedecider"]
        if learned:
            assert comics == (0.0 if waits is None else waits[0, 0].item())
            assert games != (0.0 if waits is None else waits[0, 1].item())
        else:
            assert comics == games == 0.5
        run.round(when + 2)
        assert books.model.peer_directions["comics"]  # it is back
        assert not learned or books.model.alpha[0, 0].item() != comics


def test_a_client_that_alone_can_send_leaves_no_old_directions(
    data, backbone, tmp_path, monkeypatch
):
    diverge(monkeypatch, "comics", 2)
    diverge(monkeypatch, "games", 2)
    with Rounds(data, tmp_path, backbone, "fedecider", rounds=3) as run:
        for number in (1, 2, 3):
            run.round(number)
            if number == 2:
                assert run.clients[0].pending_directions == {"comics": {}, "games": {}}
        assert run.clients[0].model.peer_directions == {"comics": {}, "games": {}}
        assert run.clients[1].model.peer_directions["books"]


def test_a_validation_that_diverges_leaves_the_client_out_too(
    data, backbone, tmp_path, monkeypatch
):
    plain = client_module.validation_loss
    asked = []

    def validation_loss(data, models, adapter):
        asked.append(data.name)
        bad = data.name == "games" and asked.count("games") == 2
        return math.nan if bad else plain(data, models, adapter)

    monkeypatch.setattr(client_module, "validation_loss", validation_loss)
    with Rounds(data, tmp_path, backbone, "local") as run:
        run.round(1)
        before = copy.copy(run.clients[2].model)
        run.round(2)
        assert same(run.clients[2].model, before)
        assert [row["valid_loss"] for row in run.rows if row["client"] == "games"] == [
            run.clients[2].best.loss
        ] * 2
        assert run.rows[-1]["train_loss"] is None and run.rows[-2]["train_loss"] > 0
    (event,) = events(tmp_path)
    assert "validation loss of games is nan after round 2: the learning rate" in event["reason"]


@pytest.mark.parametrize("method", ["fedavg", "feddpa", "flora", "fedecider"])
def test_resuming_after_a_round_with_a_client_left_out_gives_the_same_bytes(
    method, data, backbone, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def dies(folder, round, clients):
        if round == 3:
            raise Killed
        return plain(folder, round, clients)

    diverge(monkeypatch, "comics", 2)
    spoil_download(monkeypatch, "games", 1)
    values = {"rounds": 4, "rankers": ["likelihood"]}
    whole = federation.run(config(data, tmp_path / "whole", method, **values), backbone)
    plain = checkpoint.save_round
    monkeypatch.setattr(checkpoint, "save_round", dies)
    broken = config(data, tmp_path / "broken", method, **values)
    with pytest.raises(Killed):
        federation.run(broken, backbone)
    monkeypatch.setattr(checkpoint, "save_round", plain)
    resumed = federation.run(broken, backbone)
    for name in ("alphas.csv", "geometry.csv", "metrics.csv", "ranks.parquet"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    tables = [
        pd.read_csv(folder / "rounds.csv").drop(columns=["seconds", "memory"]).to_csv()
        for folder in (whole, resumed)
    ]
    assert tables[0] == tables[1]
    state = "checkpoint/round-004.safetensors"
    states = [load_file(folder / state) for folder in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    told = [[(e["client"], e["round"]) for e in events(folder)] for folder in (whole, resumed)]
    assert told[0] == told[1] == [("games", 1), ("comics", 2)]


@pytest.mark.parametrize(
    ("fault", "error"), [("diverges", FloatingPointError), ("upload", wire.PayloadError)]
)
def test_too_few_clients_end_the_run_with_one_sentence(
    fault, error, data, backbone, tmp_path, monkeypatch
):
    break_it, reason = FAULTS[fault]
    with monkeypatch.context() as patch:
        break_it(patch, "comics", 2)
        strict = config(data, tmp_path, "fedavg", min_clients=3, rankers=[])
        with pytest.raises(error, match=f"{reason}.*; 2 of 3 clients are left and min_clients is"):
            federation.run(strict, backbone)
        assert [(e["client"], e["round"]) for e in events(tmp_path)] == [("comics", 2)]
        assert not (tmp_path / "result.json").exists()
        # The bound may be lowered, and the run goes on where it was.
        federation.run(config(data, tmp_path, "fedavg", min_clients=2, rankers=[]), backbone)
    assert (tmp_path / "result.json").exists()
    assert [(e["client"], e["round"]) for e in events(tmp_path)] == [("comics", 2)]


def test_more_clients_than_there_are_cannot_be_asked_for(data, backbone, tmp_path):
    with pytest.raises(ValueError, match="min_clients is 4, but .* has 3"):
        federation.run(config(data, tmp_path, "fedavg", min_clients=4), backbone)


@pytest.mark.parametrize("method", ["local", "fedavg", "fedecider"])
def test_where_every_client_diverges_the_rate_is_named_and_a_search_goes_on(
    method, data, backbone, tmp_path
):
    wild = config(data, tmp_path / "run", method, lr=1e30, rankers=[])
    said = r"^the update's norm of books is nan after round 1: the learning rate 1e\+30 may be too"
    with pytest.raises(FloatingPointError, match=f"{said} high$"):
        federation.run(wild, backbone)
    assert [event["client"] for event in events(tmp_path / "run")] == ["books", "comics", "games"]
    base = config(data, tmp_path / "base", method)
    table = search.search(base, [{"lr": 1e30}, {"lr": 5e-3}], tmp_path / "search", backbone)
    assert table["loss"].iloc[0] == math.inf and math.isfinite(table["loss"].iloc[1])
    assert search.chosen(tmp_path / "search" / "chosen.json") == {"lr": 5e-3}


def test_a_client_that_is_left_out_is_told_to_the_reader(data, backbone, tmp_path, monkeypatch):
    diverge(monkeypatch, "comics", 1)
    said = "^comics is left out of round 1: the update's norm"
    with Rounds(data, tmp_path, backbone, "local") as run, pytest.warns(UserWarning, match=said):
        run.round(1)
