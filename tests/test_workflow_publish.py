"""Taking runs into the gallery: what goes in, what never does, and runs that do not fit."""

import json
import shutil

import pandas as pd
import pytest
from toy import config, write_domains

from fedecider import federation, runs
from figures import summary
from notebooks import gallery
from notebooks.stages import StageError


@pytest.fixture(scope="module")
def results(tmp_path_factory, backbone):
    folder = tmp_path_factory.mktemp("results")
    data = write_domains(folder / "data/toy")
    for method in ("local", "fedecider"):
        federation.run(config(data, folder / f"runs/toy/{method}-seed0", method), backbone)
    settings = config(data, folder / "sweeps/toy/rank-1-fedecider-seed0", rank=1)
    federation.run(settings, backbone)
    (folder / "runs/toy/fedavg-seed0").mkdir()  # begun, not finished
    return folder


def test_small_files_go_in_and_neither_users_nor_weights(results, tmp_path):
    taken = gallery.take(results, tmp_path)
    assert sorted(taken) == [
        "runs/toy/fedecider-seed0",
        "runs/toy/local-seed0",
        "sweeps/toy/rank-1-fedecider-seed0",
    ]
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*gallery._FILES, "result.json", "ranks.parquet", "geometry.csv"}
    assert len(list(tmp_path.rglob("geometry.csv"))) == 1  # of local alone
    for path in tmp_path.rglob("*.parquet"):
        assert pd.read_parquet(path)["user_id"].str.fullmatch(r"\d{5}").all()
    assert gallery.take(results, tmp_path) == []  # nothing new


def test_a_take_that_is_stopped_leaves_no_half_run_that_counts(results, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_numbered", lambda ranks: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gallery.take(results, tmp_path)
    monkeypatch.undo()
    assert runs.finished(tmp_path) == []
    assert len(gallery.take(results, tmp_path)) == 3


def test_tables_from_the_gallery_are_those_from_the_results(results, tmp_path):
    gallery.take(results, tmp_path)
    for read in (runs.metrics, runs.rounds, runs.alphas):
        pd.testing.assert_frame_equal(read(tmp_path / "runs"), read(results / "runs"))
    mine, theirs = (runs.compare(runs.ranks(place / "runs")) for place in (tmp_path, results))
    pd.testing.assert_frame_equal(mine, theirs)
    last = runs.geometry(results / "runs").query("method == 'local' and round == 2")
    pd.testing.assert_frame_equal(runs.geometry(tmp_path / "runs"), last.reset_index(drop=True))


def test_runs_on_other_data_are_refused_before_anything_is_written(
    results, backbone, tmp_path, tmp_path_factory
):
    gallery.take(results, tmp_path)
    other = tmp_path_factory.mktemp("other")
    data = write_domains(other / "data/toy", ("books", "comics"))
    federation.run(config(data, other / "runs/toy/local-seed1", "local", seed=1), backbone)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StageError, match="ran on other data than the toy runs"):
        gallery.take(other, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_on_other_test_users_is_refused(results, backbone, tmp_path, tmp_path_factory):
    gallery.take(results, tmp_path)
    other = tmp_path_factory.mktemp("other")
    place = other / "runs/toy/local-seed1"
    settings = config(results / "data/toy", place, "local", seed=1, test_users=3, rankers=[])
    federation.run(settings, backbone)
    with pytest.raises(StageError, match="ran on other data than the toy runs"):
        gallery.take(other, tmp_path)


def test_a_sweep_with_fewer_users_of_the_same_data_is_taken(
    results, backbone, tmp_path, tmp_path_factory
):
    gallery.take(results, tmp_path)
    fewer = tmp_path_factory.mktemp("fewer")
    place = "sweeps/toy/train_users-3-local-seed0"
    settings = config(results / "data/toy", fewer / place, "local", train_users=3, rankers=[])
    federation.run(settings, backbone)
    assert gallery.take(fewer, tmp_path) == [place]
    again = json.loads((tmp_path / place / "config.json").read_text())
    whole = json.loads((tmp_path / "runs/toy/local-seed0/config.json").read_text())
    assert again["data_digest"] != whole["data_digest"]


def test_a_changed_run_takes_the_place_of_the_older(results, tmp_path):
    gallery.take(results, tmp_path)
    path = tmp_path / "runs/toy/local-seed0/result.json"
    path.write_text(json.dumps({"older": True}))
    assert gallery.take(results, tmp_path) == ["runs/toy/local-seed0"]
    assert path.read_bytes() == (results / "runs/toy/local-seed0/result.json").read_bytes()


def test_the_summary_stands_between_the_marks_of_a_readme(results, tmp_path):
    gallery.take(results, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    page = gallery.summarise(tmp_path, readme)
    assert readme.read_text() == f"before\n{page}after\n" and "old" not in page
    assert (tmp_path / "summary.md").read_text() == page
    readme.write_text("no marks")
    with pytest.raises(StageError, match="needs the lines"):
        gallery.summarise(tmp_path, readme)


def test_the_summary_s_numbers_are_those_of_the_runs(results):
    place = results / "runs"
    found = summary.numbers(runs.metrics(place), runs.rounds(place), "toy").set_index("method")
    assert list(found.index) == ["popularity", "local", "fedecider"]
    metrics = pd.read_csv(place / "toy/fedecider-seed0/metrics.csv")
    rows = metrics.query("method == 'fedecider' and metric == 'ndcg@10' and ranker == 'likelihood'")
    assert found.loc["fedecider", "likelihood"] == pytest.approx(100 * rows["value"].mean())
    rounds = pd.read_csv(place / "toy/fedecider-seed0/rounds.csv")
    least = rounds.groupby("client")["valid_loss"].min().mean()
    assert found.loc["fedecider", "loss"] == pytest.approx(least)
    assert pd.isna(found.loc["popularity", "loss"]) and pd.isna(found.loc["local", "loss_sd"])


def test_the_summary_names_the_best_other_federated_method_and_marks_the_best_values():
    rows = [
        ("toy", method, 0, "a", "sampled", "likelihood", "ndcg@10", value, 5, "r")
        for method, value in (("local", 0.3), ("fedavg", 0.2), ("flora", 0.25), ("fedecider", 0.4))
    ]
    metrics = pd.DataFrame(rows, columns=runs.COLUMNS["metrics"])
    rounds = pd.DataFrame(columns=runs.COLUMNS["rounds"]).astype({"valid_loss": float})
    compared = pd.DataFrame(
        [
            ("toy", "sampled", "likelihood", "fedecider", other, "ndcg@10", 5, 0.1, -0.2, 0.3, 0.04)
            for other in ("local", "fedavg", "flora")
        ],
        columns=["dataset", "protocol", "ranker", "method", "against", "metric", "users"]
        + ["difference", "low", "high", "p"],
    )
    page = summary.page(metrics, rounds, compared)
    assert "| FeDecider | 1 | – | – | – | **40.0** |" in page
    assert "best federated: FLoRA | 5 | +10.0 | \N{MINUS SIGN}20.0 to +30.0 | 0.04 |" in page
    assert "best federated: FedAvg" not in page and "| Local | 5 |" in page
    empty = summary.page(metrics.iloc[:0], rounds, compared.iloc[:0])
    assert "No finished run." in empty


def test_the_readme_holds_the_gallery_s_own_summary(tmp_path):
    """Numbers in the README are those of the published runs, not somebody's."""
    sample = gallery.ROOT / "figures/gallery/sample"
    shutil.copytree(sample / "runs", tmp_path / "runs")
    page = gallery.summarise(tmp_path)
    text = (gallery.ROOT / "README.md").read_text()
    start, stop = text.index(summary.BEGIN), text.index(summary.END) + len(summary.END)
    assert text[start:stop] == page.strip()
