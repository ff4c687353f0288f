"""The loop in one process: whole runs, their determinism, and going on after a kill."""

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
from pydantic import ValidationError
from safetensors.torch import load_file
from toy import config

from fedecider import checkpoint, federation, results, runs
from fedecider import client as client_module
from fedecider.client import Client
from fedecider.engine.backbone import load
from fedecider.methods import METHODS
from fedecider.rankers import evaluate


def finished(folder, names=("metrics.csv", "rounds.csv", "alphas.csv", "geometry.csv")):
    """Every number of a run; the seconds, which are not reproducible, left out."""
    parts = [
        pd.read_csv(folder / name).drop(columns=["seconds", "memory"], errors="ignore")
        for name in names
    ]
    parts.append(pd.read_parquet(folder / "ranks.parquet"))
    saved = folder / "adapters" / "books" / "adapter_model.safetensors"
    parts.append(load_file(saved) if saved.exists() else {})  # als and popularity have none
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
    settings = {"method": method, "top_layers": top_layers, "alpha_scope": "layer"}
    first = federation.run(config(data, tmp_path / "first", **settings), backbone)
    torch.manual_seed(99)  # global state must not matter
    np.random.seed(99)
    second = federation.run(config(data, tmp_path / "second", **settings), backbone)
    assert_same(finished(first), finished(second))
    ranks = pd.read_parquet(first / "ranks.parquet")
    assert set(ranks["method"]) == {method}
    assert len(ranks) == 3 * 6 * 2  # domains, users, protocols


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
    users = [sorted(results.ranks(folder)["user_id"].unique()) for folder in (first, second)]
    assert users[0] == users[1]  # the same test users for every seed


class Killed(Exception):
    pass


# Where a run is killed: the function, and the call of it that does not return.
KILLS = {
    "training": (Client, "local_update", 5),
    "saving": (checkpoint, "save_round", 3),
    "validation": (client_module, "validation_loss", 5),
    "ranking": (evaluate, "rank_client", 2),
}


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *itertools.product(["fedavg", "fedecider"], KILLS),
        # What others keep between rounds: two LoRAs, a folded sum, a phase, one model for all.
        *(("feddpa", where) for where in ("training", "saving", "ranking")),
        ("flora", "training"),
        ("flora", "ranking"),
        ("rolora", "training"),
        ("fellrec", "saving"),
        ("centralized", "saving"),
    ],
)
def test_a_killed_run_goes_on_with_the_same_numbers(
    method, where, backbone, data, tmp_path, monkeypatch
):
    whole = federation.run(config(data, tmp_path / "whole", method, rounds=3), backbone)
    broken = config(data, tmp_path / "broken", method, rounds=3)
    holder, name, last = KILLS[where]
    original, calls = getattr(holder, name), []

    def dies(*args, **kwargs):
        calls.append(None)
        if len(calls) == last:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(holder, name, dies)
    with pytest.raises(Killed):
        federation.run(broken, backbone)
    monkeypatch.undo()
    assert not (broken.folder / "result.json").exists()
    assert results.metrics(broken.folder).empty  # an unfinished run is in no table
    before = len((broken.folder / "events.jsonl").read_text().splitlines())
    with (broken.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "cli')  # a line torn by the kill
    again, plain = [], federation._round
    monkeypatch.setattr(federation, "_round", lambda *args: again.append(args[0]) or plain(*args))
    federation.run(broken, backbone)
    assert before and len(again) < 3  # it went on and did not begin again
    assert_same(finished(whole), finished(broken.folder))
    events = runs.Events(broken.folder / "events.jsonl").read()
    rounds = [event["round"] for event in events if event["event"] == "round"]
    assert rounds == [1, 2, 3]
    assert sum(event["event"] == "client" for event in events) == 9


@pytest.mark.parametrize("write", range(5))
def test_a_kill_between_two_writes_of_the_state(write, backbone, data, tmp_path, monkeypatch):
    """Three tables, the tensors, and the state that names them."""
    whole = federation.run(config(data, tmp_path / "whole"), backbone)
    broken = config(data, tmp_path / "broken")
    plain, written = runs.os.replace, []

    def dies(source, target):
        if broken.folder in Path(target).parents:
            written.append(Path(target).name)
        if "state.json" in written[:-1]:  # round 1 is on disk
            round_2 = written[written.index("state.json") + 1 :]
            if len(round_2) == write + 1:
                raise Killed
        return plain(source, target)

    monkeypatch.setattr(runs.os, "replace", dies)
    with pytest.raises(Killed):
        federation.run(broken, backbone)
    monkeypatch.undo()
    tables = ["rounds.csv", "alphas.csv", "geometry.csv"]
    order = [*tables, "round-002.safetensors", "state.json"]
    assert written[-write - 1 :] == order[: write + 1]
    federation.run(broken, backbone)
    assert_same(finished(whole), finished(broken.folder))
    events = runs.Events(broken.folder / "events.jsonl").read()
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]


def test_a_diverged_run_says_so(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "validation_loss", lambda *args: float("nan"))
    with pytest.raises(FloatingPointError, match="books is nan after round 1: the learning rate"):
        federation.run(config(data, tmp_path / "run", "local"), backbone)


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(backbone, data, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "local"), backbone)
    stamp = (folder / "result.json").stat().st_mtime_ns
    federation.run(config(data, tmp_path / "run", "local"), backbone)
    assert (folder / "result.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"rank = 2, not 3"):
        federation.run(config(data, tmp_path / "run", "local", rank=3), backbone)


def test_a_methods_own_setting_is_refused_too_where_a_run_has_another(backbone, data, tmp_path):
    """A default that is written out is the same setting."""
    folder = tmp_path / "run"
    federation.run(config(data, folder, "fedprox", rankers=[]), backbone)
    federation.run(config(data, folder, "fedprox", rankers=[], mu=0.01), backbone)
    with pytest.raises(ValueError, match=r"mu = 0.01, not 0.5"):
        federation.run(config(data, folder, "fedprox", rankers=[], mu=0.5), backbone)


@pytest.mark.parametrize("method", ["fedavg", "fedecider"])
def test_a_coarser_payload_takes_less_and_changes_little(backbone, data, tmp_path, method):
    measured = {}
    for dtype in ("float32", "bfloat16", "int8"):
        settings = config(data, tmp_path / dtype, method, payload_dtype=dtype)
        rounds = results.rounds(federation.run(settings, backbone))
        measured[dtype] = rounds["bytes_up"].max(), rounds["valid_loss"].to_numpy()
    assert measured["int8"][0] < measured["bfloat16"][0] < measured["float32"][0]
    for dtype in ("bfloat16", "int8"):
        assert (measured[dtype][1] != measured["float32"][1]).any()
        assert np.allclose(measured[dtype][1], measured["float32"][1], atol=0.05)


def test_truncated_directions_are_smaller(backbone, data, tmp_path):
    whole = results.rounds(federation.run(config(data, tmp_path / "whole"), backbone))
    short = results.rounds(federation.run(config(data, tmp_path / "short", truncate=1), backbone))
    assert (short["bytes_up"] < 0.7 * whole["bytes_up"]).all()


def test_instruction_template_runs(backbone, data, tmp_path):
    settings = {"prompt_template": "instruction", "rounds": 2, "train_users": 4}
    chosen = config(data, tmp_path / "run", **settings)
    assert len(results.metrics(federation.run(chosen, backbone)))


def test_frozen_weights_do_not_move(data, tmp_path):
    backbone = load("tiny", "cpu", "float32")
    before = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    federation.run(config(data, tmp_path / "run"), backbone)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_best_round_by_validation_is_ranked(backbone, data, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", "local", rounds=4, lr=0.3), backbone)
    rounds = results.rounds(folder)
    chosen = json.loads((folder / "result.json").read_text())["choices"]
    best = rounds.loc[rounds.groupby("client")["valid_loss"].idxmin()].set_index("client")["round"]
    assert {name: choice["best_round"] for name, choice in chosen.items()} == best.to_dict()
    assert (best < 4).any()  # the rate is so high that the last round is not the best


def test_bad_names_are_refused(backbone, data, tmp_path):
    with pytest.raises(
        ValueError, match="one of popularity, als, zero-shot, local, .* fedecider, .*got 'fedsgd'"
    ):
        federation.run(config(data, tmp_path / "x", "fedsgd"), backbone)
    with pytest.raises(ValueError, match="ranker must be one of .*likelihood.*, got 'oracle'"):
        federation.run(config(data, tmp_path / "x", rankers=["oracle"]), backbone)
    with pytest.raises(ValueError, match="loss must be one of vocabulary, got 'guess'"):
        federation.run(config(data, tmp_path / "x", loss="guess"), backbone)
    with pytest.raises(ValueError, match="fedecider has no setting 'learning_rate'"):
        federation.run(config(data, tmp_path / "x", learning_rate=1.0), backbone)
    with pytest.raises(ValidationError, match="rank"):
        config(data, tmp_path / "x", rank=0)
    with pytest.raises(FileNotFoundError, match="no prepared domains"):
        federation.run(config(tmp_path / "nothing", tmp_path / "y"), backbone)
    with pytest.raises(FileNotFoundError, match="no domain 'music'"):
        federation.run(config(data, tmp_path / "z", domains=["music"]), backbone)
    assert not any((tmp_path / name).exists() for name in "xyz")  # nothing was begun
