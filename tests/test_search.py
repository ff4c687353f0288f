"""The choice of a method's own settings: on validation alone, the same tries, resumable."""

import json
import math

import pandas as pd
import pytest
from toy import config

from fedecider import federation, results, runs, search
from fedecider.rankers import evaluate

TRIES = [{"lr": 1e-5}, {"lr": 5e-3}, {"lr": 1e-4, "mu": 0.1}]


def test_the_try_with_the_least_validation_loss_is_chosen(backbone, data, tmp_path):
    base = config(data, tmp_path / "unused", "fedprox")
    table = search.search(base, TRIES, tmp_path / "search", backbone)
    assert len(table) == 3 and table["loss"].idxmin() == 1
    assert search.chosen(tmp_path / "search/chosen.json") == TRIES[1]
    for row in table.itertuples():
        rounds = pd.read_csv(tmp_path / "search" / row.run / "rounds.csv")
        best = rounds.groupby("client")["valid_loss"].min().mean()
        assert row.loss == pytest.approx(best)
    stored = json.loads((tmp_path / "search/chosen.json").read_text())
    assert [tried["lr"] for tried in stored["tried"]] == [tried["lr"] for tried in TRIES]
    assert not (tmp_path / "unused").exists()


def test_a_try_has_the_settings_of_the_base_but_for_its_own(backbone, data, tmp_path):
    base = config(data, tmp_path / "x", "fedprox", mu=0.25, rank=3, rounds=1)
    search.search(base, TRIES[1:], tmp_path / "s", backbone)
    configs = results.configs(tmp_path / "s").sort_values("run")
    assert configs["mu"].tolist() == [0.25, 0.1]
    assert configs["lr"].tolist() == [5e-3, 1e-4]
    assert configs["rank"].tolist() == [3, 3] and configs["rankers"].tolist() == [[], []]


def test_the_test_users_are_not_ranked(backbone, data, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a search must not rank")

    for name, ranker in evaluate.RANKERS.items():
        monkeypatch.setattr(evaluate.RANKERS[name], "rank", forbidden)
        assert ranker.rank is forbidden
    search.search(config(data, tmp_path / "x", "local"), TRIES[:1], tmp_path / "s", backbone)
    assert results.metrics(tmp_path / "s").empty and results.ranks(tmp_path / "s").empty


def test_an_interrupted_search_goes_on(backbone, data, tmp_path, monkeypatch):
    base = config(data, tmp_path / "x", "local")
    plain, calls = federation.run, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(search.federation, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        search.search(base, TRIES[:2], tmp_path / "s", backbone)
    assert not (tmp_path / "s/chosen.json").exists()
    monkeypatch.undo()
    before = (tmp_path / "s/try-0/result.json").stat().st_mtime_ns
    whole = search.search(base, TRIES[:2], tmp_path / "s", backbone)
    assert (tmp_path / "s/try-0/result.json").stat().st_mtime_ns == before
    again = search.search(base, TRIES[:2], tmp_path / "other", backbone)
    pd.testing.assert_frame_equal(whole, again)


def test_a_diverged_try_loses_and_all_of_them_are_an_error(backbone, data, tmp_path, monkeypatch):
    base, plain = config(data, tmp_path / "x", "local"), federation.run

    def diverges(tried, model):
        if tried.training.lr > 1e-3:
            raise FloatingPointError("too high")
        return plain(tried, model)

    monkeypatch.setattr(search.federation, "run", diverges)
    table = search.search(base, TRIES[:2], tmp_path / "s", backbone)
    assert table["loss"].tolist()[1] == math.inf
    assert search.chosen(tmp_path / "s/chosen.json") == TRIES[0]
    with pytest.raises(ValueError, match="every try of local diverged"):
        search.search(base, TRIES[1:2], tmp_path / "t", backbone)
    with pytest.raises(ValueError, match="needs at least one try"):
        search.search(base, [], tmp_path / "u", backbone)


def test_a_flipped_bit_in_what_was_chosen_is_noticed(backbone, data, tmp_path):
    folder = tmp_path / "search" / "toy" / "fedprox"
    search.search(config(data, tmp_path / "x", "fedprox"), TRIES[:2], folder, backbone)
    path = folder / "chosen.json"
    content, tries = path.read_bytes(), results.search(tmp_path / "search")
    assert len(tries) == 2 and search.chosen(path) == TRIES[1]
    key = content.index(b'"digest"')
    for position in {*range(len(content))} - {*range(key, key + 8)}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        for read in (search.chosen, lambda path: results.search(path.parents[2])):
            try:
                assert read(path) == TRIES[1] if read is search.chosen else read(path).equals(tries)
            except ValueError as error:
                assert "chosen.json is damaged" in str(error) and "search again" in str(error)
            else:
                assert json.loads(flipped) == json.loads(content), position  # white space
    path.unlink()
    with pytest.raises(ValueError, match="chosen.json is missing: run the search first"):
        search.chosen(path)
    runs.write_json(path, {"settings": TRIES[0], "tried": []})  # of before digests
    assert search.chosen(path) == TRIES[0]
