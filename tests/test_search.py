"""The choice of a method's own settings: on validation alone, the same tries, resumable."""

import json
import math

import pandas as pd
import pytest
from toy import config

from fedecider import federation, runs, search

TRIES = [{"lr": 1e-5}, {"lr": 5e-3}, {"lr": 1e-4, "fedprox_mu": 0.1}]


def test_the_try_with_the_least_validation_loss_is_chosen(backbone, data, tmp_path):
    base = config(data, tmp_path / "unused", "fedprox")
    found = search.search(base, TRIES, tmp_path / "search", backbone)
    assert len(found) == 3 and found["loss"].idxmin() == 1
    assert search.chosen(tmp_path / "search/chosen.json") == TRIES[1]
    for row in found.itertuples():
        rounds = pd.read_csv(tmp_path / "search" / row.run / "rounds.csv")
        best = rounds.groupby("client")["valid_loss"].min().mean()
        assert row.loss == pytest.approx(best)
    stored = json.loads((tmp_path / "search/chosen.json").read_text())
    assert [one["lr"] for one in stored["tried"]] == [one["lr"] for one in TRIES]
    assert not (tmp_path / "unused").exists()


def test_the_test_users_are_not_ranked(backbone, data, tmp_path, monkeypatch):
    from fedecider import ranking

    def forbidden(*args, **kwargs):
        raise AssertionError("a search must not rank")

    for name in ("branch_scores", "generate_titles", "popularity_ranks"):
        monkeypatch.setattr(ranking, name, forbidden)
    search.search(config(data, tmp_path / "x", "local"), TRIES[:1], tmp_path / "s", backbone)
    assert runs.metrics(tmp_path / "s").empty and runs.ranks(tmp_path / "s").empty


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

    def diverges(one, given):
        if one.lr > 1e-3:
            raise FloatingPointError("too high")
        return plain(one, given)

    monkeypatch.setattr(search.federation, "run", diverges)
    found = search.search(base, TRIES[:2], tmp_path / "s", backbone)
    assert found["loss"].tolist()[1] == math.inf
    assert search.chosen(tmp_path / "s/chosen.json") == TRIES[0]
    with pytest.raises(ValueError, match="every try of local diverged"):
        search.search(base, TRIES[1:2], tmp_path / "t", backbone)
    with pytest.raises(ValueError, match="needs at least one try"):
        search.search(base, [], tmp_path / "u", backbone)
