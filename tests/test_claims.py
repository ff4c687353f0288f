"""A run folder is nobody's until a round is finished, then its settings' and its model's."""

import json
import shutil

import pandas as pd
import pytest
from same import numbers
from test_config import OLD, RENAMED
from toy import config, seal, write_domains

from fedecider import checkpoint, federation
from fedecider.analysis.saved_run import read_run
from fedecider.client import Client
from fedecider.config import flattened
from fedecider.engine.backbone import load
from fedecider.integrity import DamagedError


class Killed(Exception):
    pass


def dies(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": "/no/such/folder"}, FileNotFoundError),
        ({"top_layers": 99}, ValueError),
        ({"targets": ["nothing_proj"]}, ValueError),
        ({"device": "no device"}, RuntimeError),
        ({"lr": 1e30, "max_grad_norm": 1e30}, FloatingPointError),
        ({"domains": ["music"]}, FileNotFoundError),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_start_that_fails_leaves_the_folder_to_the_next(wrong, error, data, tmp_path):
    small = {"rounds": 1, "rankers": []}
    folder = tmp_path / "run"
    with pytest.raises(error):
        federation.run(config(data, folder, "local", **{**small, **wrong}))
    assert not (folder / "config.json").exists()
    federation.run(config(data, folder, "local", **small))
    whole = federation.run(config(data, tmp_path / "whole", "local", **small))
    assert numbers(whole) == numbers(folder)


def test_what_a_killed_first_round_left_is_cleared(backbone, data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.integrity, "write_state", dies)  # all but the state is written
        federation.run(config(data, folder, "fedavg"), backbone)
    assert (folder / "checkpoint" / "round-001.safetensors").exists()
    (folder / "notes.txt").write_text("mine")
    federation.run(config(data, folder, "local", seed=1, rankers=[]), backbone)
    whole = federation.run(config(data, tmp_path / "whole", "local", seed=1, rankers=[]), backbone)
    assert numbers(whole) == numbers(folder)
    assert json.loads((folder / "config.json").read_text())["method"] == "local"
    events = (folder / "events.jsonl").read_text().splitlines()
    assert sum('"start"' in line for line in events) == 1  # the other run's are gone
    assert (folder / "notes.txt").exists()


@pytest.fixture
def stopped(backbone, data, tmp_path, monkeypatch):
    """The configuration of a run that was killed in round 2."""
    chosen, plain = config(data, tmp_path / "run", "local", rankers=[]), Client.local_update
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Client, "local_update", lambda c, r: dies() if r == 2 else plain(c, r))
        federation.run(chosen, backbone)
    return chosen


def test_a_finished_round_claims_the_folder(stopped, backbone):
    other = stopped.model_copy(update={"seed": 5})
    with pytest.raises(ValueError, match=r"config\.json is of a run with seed = 0, not 5"):
        federation.run(other, backbone)


@pytest.mark.parametrize(
    ("method", "own", "refused"),
    [
        ("fedecider", {}, None),  # without names for what is shared and which weights: the class's
        ("fedecider-no-both", {"uniform_weight": 1.0}, None),
        ("fedprox", {"fedprox_mu": 0.5}, "of a run with mu = 0.5, not 0.01"),
    ],
)
def test_a_folder_of_before_the_groups_is_taken_up_as_what_it_was(
    method, own, refused, backbone, data, tmp_path, monkeypatch
):
    chosen, plain = config(data, tmp_path / "run", method, rankers=[]), Client.local_update
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Client, "local_update", lambda c, r: dies() if r == 2 else plain(c, r))
        federation.run(chosen, backbone)
    path, state = chosen.folder / "config.json", chosen.folder / "checkpoint/state.json"
    stored = json.loads(path.read_text())
    before = {now: name for name, now in RENAMED.items()}
    flat = {before.get(name, name): value for name, value in flattened(stored).items()}
    kept = {*OLD, "data_digest"} - {"uniform_weight"}
    path.write_text(json.dumps({name: flat[name] for name in kept & set(flat)} | own))
    numbers_of_state = json.loads(state.read_text())
    del numbers_of_state["files"], numbers_of_state["digest"]
    state.write_text(json.dumps(numbers_of_state))
    if refused:
        with pytest.raises(ValueError, match=refused):
            federation.run(chosen, backbone)
        return
    whole = federation.run(config(data, tmp_path / "whole", method, rankers=[]), backbone)
    again, expected = numbers(federation.run(chosen, backbone)), numbers(whole)
    assert again.pop("config") != expected.pop("config")
    assert again == expected


def test_a_setting_that_a_folder_does_not_tell_is_no_default(stopped, backbone):
    path, state = stopped.folder / "config.json", stopped.folder / "checkpoint/state.json"
    stored, numbers_of_state = json.loads(path.read_text()), json.loads(state.read_text())
    path.write_text(json.dumps(stored | {"method": "fedprox", "settings": {}}))
    del numbers_of_state["files"], numbers_of_state["digest"]
    state.write_text(json.dumps(numbers_of_state))
    prox = stopped.model_copy(update={"method": "fedprox"})
    with pytest.raises(ValueError, match="of a run with mu = 'unknown', not 0.01"):
        federation.run(prox, backbone)


@pytest.mark.parametrize("done", [False, True])
def test_a_run_without_its_configuration_is_refused(done, stopped, backbone):
    if done:
        federation.run(stopped, backbone)
    (stopped.folder / "config.json").unlink()
    before = sorted(path for path in stopped.folder.rglob("*"))
    with pytest.raises(ValueError, match=r"config\.json is missing .* put it back, or delete"):
        federation.run(stopped, backbone)
    assert sorted(path for path in stopped.folder.rglob("*")) == before


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("damage", [("0", "1"), ("{", "")])
def test_a_damaged_configuration_is_no_other_run(damage, done, stopped, backbone):
    if done:
        federation.run(stopped, backbone)
    path = stopped.folder / "config.json"
    path.write_text(path.read_text().replace(*damage, 1))
    with pytest.raises(DamagedError, match=r"config\.json is damaged .* put it back, or delete"):
        federation.run(stopped, backbone)


@pytest.fixture
def model_folder(backbone, tmp_path):
    folder = tmp_path / "one" / "model"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("done", [False, True])
def test_a_run_and_its_model_can_move(done, data, model_folder, tmp_path, monkeypatch):
    settings = {"method": "local", "rankers": []}
    whole = federation.run(config(data, tmp_path / "whole", **settings, model=str(model_folder)))
    here = config(data, tmp_path / "run", **settings, model=str(model_folder))
    plain = Client.local_update
    if done:
        federation.run(here)
    else:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Client, "local_update", lambda c, r: dies() if r == 2 else plain(c, r))
            federation.run(here)
    elsewhere = tmp_path / "two" / "renamed"
    shutil.move(model_folder, elsewhere)
    moved = config(data, tmp_path / "run", **settings, model=str(elsewhere))
    federation.run(moved)
    assert numbers(whole) == numbers(moved.folder)
    read = read_run(moved.folder, data)
    with read.adapter(load(str(elsewhere), "cpu", "float32")) as adapter:
        assert adapter.names
    with pytest.raises(ValueError, match="was trained on"):
        read.adapter(load("tiny", "cpu", "float32"))
    described = json.loads((moved.folder / "adapters/books/adapter_config.json").read_text())
    assert "/" not in described["base_model_name_or_path"]  # no folder of a machine


@pytest.mark.parametrize("done", [False, True])
def test_another_model_under_the_same_name_is_refused(
    done, data, model_folder, tmp_path, monkeypatch
):
    chosen = config(data, tmp_path / "run", "local", rankers=[], model=str(model_folder))
    plain = Client.local_update
    if done:
        federation.run(chosen)
    else:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Client, "local_update", lambda c, r: dies() if r == 2 else plain(c, r))
            federation.run(chosen)
    path = model_folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is of a run with other weights"):
        federation.run(chosen)


def test_als_is_refused_on_other_users_interactions(tmp_path):
    """It reads all users; the digest that methods share covers the sampled ones alone."""
    pytest.importorskip("implicit")
    data = write_domains(tmp_path / "data", ["books"])
    settings = {"train_users": 3, "valid_users": 3, "test_users": 3, "factors": [2]}
    for method in ("als", "popularity"):
        own = settings if method == "als" else {k: v for k, v in settings.items() if k != "factors"}
        federation.run(config(data, tmp_path / method, method, **own))
    path = data / "books" / "splits.parquet"
    table = pd.read_parquet(path)
    read = federation.read_domains(data, train=3, valid=3, test=3)[0]
    kept = {user for users in read.users.values() for user in users}
    rows = table.index[~table["user_id"].isin(kept) & (table["split"] == "train")]
    first, other = rows[0], rows[table.loc[rows, "user_id"] != table.loc[rows[0], "user_id"]][0]
    items = table.loc[[first, other], "item_id"].tolist()
    assert items[0] != items[1]
    table.loc[[first, other], "item_id"] = items[::-1]  # popularity stays as it is
    table.to_parquet(path)
    seal(data)
    own = {k: v for k, v in settings.items() if k != "factors"}
    federation.run(config(data, tmp_path / "popularity", "popularity", **own))
    with pytest.raises(ValueError, match="other interactions"):
        federation.run(config(data, tmp_path / "als", "als", **settings))
