"""Data for a notebook that is opened first: the demo's are generated, no other folder's are."""

import shutil

import pytest

import data_prep
from data_prep.demo import DEMO, prepared_or_generated


def test_only_the_demo_s_absent_data_are_generated(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(FileNotFoundError, match="results/dmo/data/goodreads: run .* 01_prepare"):
        prepared_or_generated("../results/dmo", "goodreads")
    assert not (tmp_path / "results").exists()
    for folder in ("dome", "library", "dome/data/goodreads", "library/data/amazon"):
        (tmp_path / "results" / folder).mkdir(parents=True, exist_ok=True)
    for name, folder in (("goodreads", "dome/data/goodreads"), ("movies", "dome")):
        with pytest.raises(FileNotFoundError, match=f"is there is ../results/{folder}$"):
            prepared_or_generated("../results/dmo", name)
    shutil.rmtree(tmp_path / "results")

    calls = []
    prepare = data_prep.prepare
    monkeypatch.setattr(data_prep, "prepare", lambda *args, **kw: calls.append((args, kw)))
    prepared = prepared_or_generated(str(DEMO), "goodreads")
    assert prepared == DEMO / "data/goodreads"
    assert calls == [(("goodreads", DEMO / "dumps", prepared), {"kind": "planted"})]
    assert "preparing generated data there" in capsys.readouterr().out

    for results in (DEMO, tmp_path / "other"):
        (results / "data/goodreads").mkdir(parents=True)
        assert prepared_or_generated(results, "goodreads") == results / "data/goodreads"
    assert len(calls) == 1
    monkeypatch.setattr(data_prep, "prepare", prepare)
    with pytest.raises(ValueError, match="planted dumps exist for goodreads, amazon"):
        prepared_or_generated(DEMO, "books")
