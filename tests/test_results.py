"""Frames of run folders and of packs: schema, old folders, what a pack replaces and refuses."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_config import OLD
from test_methods import SILENT, UP

from fedecider import results, runs
from fedecider.config import RunConfig
from fedecider.methods import METHODS

KINDS = ("metrics", "ranks", "rounds", "alphas", "geometry")
CLIENTS = ("books", "games")
LAYERS = ("0.q_proj", "0.v_proj")


def info_of(method: str) -> dict:
    return {name: getattr(METHODS[method], name) for name in ("label", "family", "color", "order")}


def ranks_of(method: str, ranker: str, protocol: str, shift: int) -> pd.DataFrame:
    rows = [
        (client, method, protocol, ranker, f"u{user}", 1 + (3 * user + shift) % 20)
        for client in CLIENTS
        for user in (10, 9, 2, 31)
    ]
    columns = ["domain", "method", "protocol", "ranker", "user_id", "rank"]
    return pd.DataFrame(rows, columns=columns)


def write_run(folder: Path, method: str, seed: int = 0, digest: str = "d", **settings) -> Path:
    """A finished run folder with made-up numbers that depend on method and seed."""
    shift = len(method) + seed
    names = {"prepared": "data/toy", "dataset": "toy", "rounds": 2, "seed": seed}
    config = RunConfig.of(**{"folder": folder, "method": method, **names, **settings})
    stored = {**config.stored(), "data_digest": digest, "method_info": info_of(method)}
    runs.write_json(folder / "config.json", stored)
    alone = method in ("popularity", "als")
    ranker = method if alone else "likelihood"
    ranks = ranks_of(method, ranker, "sampled", shift)
    ranks.to_parquet(folder / "ranks.parquet", index=False)
    runs.write_csv(folder / "metrics.csv", runs.metrics_of(ranks))
    steps = [] if alone else [1, 2]
    pairs = [(a, b) for a in CLIENTS for b in CLIENTS]
    tables = {
        "rounds": [
            (n, c, 3.0 / n, 3.1 / n + shift / 7, 100, 200, 0.5, 1.5, 4, 80.0)
            for n in steps
            for c in CLIENTS
        ],
        "alphas": [
            (n, a, b, layer, 0.1 * n + shift)
            for n in steps
            for a, b in pairs
            if a != b and method == "fedecider"
            for layer in LAYERS
        ],
        "geometry": [
            (n, layer, a, b, 1.0 if a == b else 0.1, 2.0 * n)
            for n in steps
            for layer in LAYERS
            for a, b in pairs
        ],
    }
    for kind, rows in tables.items():
        frame = pd.DataFrame(rows, columns=runs.COLUMNS[kind])
        runs.write_csv(folder / f"{kind}.csv", frame)
    result = {
        "config": config.stored(),
        "versions": {"torch": "2", "commit": "abc1234"},
        "choices": {client: {"best_round": 2} for client in CLIENTS if not alone},
        "ranking_seconds": 1.5 + seed,
        "finished": f"2026-01-0{1 + seed}T00:00:00Z",
    }
    runs.write_json(folder / "result.json", result)
    return folder


def make_old(run: Path) -> None:
    """The run folder as it was before: flat settings, popularity's rows, no method_info."""
    stored = json.loads((run / "config.json").read_text())
    method = stored["method"]
    flat = {**OLD, "folder": stored["folder"], "method": method, "seed": stored["seed"]}
    flat |= {"data": "data/toy", "dataset": "toy", "rankers": ["likelihood"], "clip": 0.5}
    flat |= {"backbone": "tiny", "wire": "int8", "fedprox_mu": 0.3, "data_digest": "d"}
    runs.write_json(run / "config.json", flat)
    ranks = pd.read_parquet(run / "ranks.parquet")
    popular = ranks_of("popularity", "popularity", "sampled", 0)
    both = pd.concat([ranks, popular], ignore_index=True)
    both.to_parquet(run / "ranks.parquet", index=False)
    runs.write_csv(run / "metrics.csv", runs.metrics_of(both))


@pytest.fixture
def toy(tmp_path) -> Path:
    """A results folder with four runs, two sweeps and a search."""
    folder = tmp_path / "demo"
    for method, seed in (("local", 0), ("fedecider", 0), ("fedecider", 1), ("popularity", 0)):
        write_run(folder / f"runs/toy/{method}-seed{seed}", method, seed)
    sweep = folder / "sweeps/toy/payload_dtype-int8-fedecider-seed0"
    write_run(sweep, "fedecider", payload_dtype="int8")
    write_run(folder / "sweeps/toy/train_users-5-local-seed0", "local", digest="e", train_users=5)
    tried = [{"mu": 0.1, "loss": 2.0, "run": "try-0"}, {"mu": 1.0, "loss": None, "run": "try-1"}]
    content = {"settings": {"mu": 0.1}, "tried": tried}
    runs.write_json(folder / "search/toy/fedprox/chosen.json", content)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_frames_have_the_columns_of_the_schema_and_what_the_method_is_called(toy, kind):
    frame = getattr(results, kind)(toy / "runs", toy / "sweeps")
    assert list(frame.columns) == results.COLUMNS[kind] and len(frame)
    for method, rows in frame.groupby("method"):
        for column, value in info_of(method).items():
            assert rows[column].unique().tolist() == [value]


def test_frames_of_no_runs_are_empty_with_their_columns(tmp_path):
    for name, columns in results.COLUMNS.items():
        frame = getattr(results, name)(tmp_path)
        assert frame.empty and list(frame.columns) == columns
    assert results.configs(tmp_path).empty and "finished" in results.configs(tmp_path)
    (tmp_path / "data").mkdir()  # results that no run has reached yet
    assert results.metrics(tmp_path / "runs").empty and results.search(tmp_path / "search").empty


def test_a_path_that_holds_nothing_names_the_nearest_that_does(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="nearest name is .*/demo/runs$"):
        results.metrics(tmp_path / "dmeo" / "runs")
    with pytest.raises(FileNotFoundError, match="nearest name is .*/demo/runs$"):
        results.configs(toy / "rnus")
    results.pack(toy, tmp_path / "pack")
    with pytest.raises(FileNotFoundError, match="nearest name is .*/pack/sweeps$"):
        results.ranks(tmp_path / "pack" / "swepes")
    with pytest.raises(FileNotFoundError, match="nearest name is .*/pack/runs/toy$"):
        results.ranks(tmp_path / "pack" / "runs" / "toys")
    with pytest.raises(FileNotFoundError, match="neither runs nor sweeps"):
        results.pack(tmp_path / "dmeo", tmp_path / "pack")
    with pytest.raises(TypeError):
        results.metrics()


def test_runs_are_named_from_the_folder_that_is_read(toy, tmp_path):
    names = set(results.rounds(toy / "runs", toy / "sweeps")["run"])
    assert "runs/toy/local-seed0" in names and "sweeps/toy/train_users-5-local-seed0" in names
    assert set(results.rounds(toy)["run"]) == {f"demo/{name}" for name in names}
    run = toy / "runs/toy/local-seed0"
    assert set(results.rounds(run)["run"]) == {"local-seed0"}
    assert results.folder_of(results.name_of(run, toy / "runs"), toy / "runs") == run
    shutil.move(toy / "sweeps", tmp_path / "elsewhere")  # kept on another disk
    (toy / "sweeps").symlink_to(tmp_path / "elsewhere")
    assert set(results.rounds(toy / "runs", toy / "sweeps")["run"]) == names


def test_configs_name_every_setting_of_every_run_and_whether_it_is_finished(toy):
    (toy / "runs/toy/fedecider-seed1/result.json").unlink()
    (toy / "runs/toy/local-seed0/adapters/books").mkdir(parents=True)
    (toy / "runs/toy/local-seed0/adapters/books/config.json").write_text("{}")
    configs = results.configs(toy / "runs", toy / "sweeps").set_index("run")
    assert len(configs) == 6 and configs["finished"].sum() == 5
    assert not configs.loc["runs/toy/fedecider-seed1", "finished"]
    sweep = configs.loc["sweeps/toy/payload_dtype-int8-fedecider-seed0"]
    assert sweep["payload_dtype"] == "int8" and sweep["targets"] == ["q_proj", "v_proj"]
    assert configs["label"].notna().all() and configs["data_digest"].tolist().count("d") == 5
    assert "runs/toy/fedecider-seed1" not in set(results.metrics(toy / "runs")["run"])
    seconds = results.ranking(toy / "runs").set_index("run")["ranking_seconds"]
    assert seconds["runs/toy/local-seed0"] == 1.5 and len(seconds) == 3


def test_a_missing_large_table_is_no_error(toy):
    (toy / "runs/toy/fedecider-seed0/alphas.csv").unlink()
    assert set(results.alphas(toy / "runs")["seed"]) == {1}


def test_searches(toy):
    tries = results.search(toy / "search")
    assert list(tries.columns) == results.COLUMNS["search"]
    assert tries["try"].tolist() == [0, 1] and tries["chosen"].tolist() == [True, False]
    assert [json.loads(text) for text in tries["settings"]] == [{"mu": 0.1}, {"mu": 1.0}]
    assert tries["loss"].tolist() == [2.0, float("inf")]
    assert tries["label"].unique().tolist() == [METHODS["fedprox"].label]


def test_a_pack_gives_what_the_folders_give(toy, tmp_path):
    packed = tmp_path / "pack"
    names = results.pack(toy, packed)
    assert sorted(names) == sorted(results.configs(toy / "runs", toy / "sweeps")["run"])
    assert {path.suffix for path in packed.iterdir()} == {".parquet"} and len(
        [*packed.iterdir()]
    ) == 7
    for part in ("runs", "sweeps"):
        for kind in ("metrics", "rounds", "alphas", "ranking"):
            read = getattr(results, kind)
            pd.testing.assert_frame_equal(read(packed / part), read(toy / part), check_dtype=False)
    pd.testing.assert_frame_equal(results.search(packed), results.search(toy / "search"))
    configs = results.configs(packed / "runs", packed / "sweeps")
    pd.testing.assert_frame_equal(configs, results.configs(toy / "runs", toy / "sweeps"))
    whole = results.metrics(packed)
    assert set(whole["run"]) == set(names)
    part = results.metrics(packed / "runs/toy/local-seed0")
    assert set(part["run"]) == {"local-seed0"}
    compared = [results.compare(results.ranks(path / "runs")) for path in (packed, toy)]
    pd.testing.assert_frame_equal(*compared)
    assert results.metrics(packed / "search").empty and results.search(packed / "runs").empty


def test_a_pack_numbers_users_and_keeps_the_last_geometry_of_local_alone(toy, tmp_path):
    results.pack(toy, tmp_path / "pack")
    ranks = results.ranks(tmp_path / "pack" / "runs")
    here = results.ranks(toy / "runs")
    assert ranks["rank"].tolist() == here["rank"].tolist()
    number = {"u10": "00000", "u2": "00001", "u31": "00002", "u9": "00003"}
    assert ranks["user_id"].tolist() == here["user_id"].map(number).tolist()
    geometry = results.geometry(tmp_path / "pack" / "runs")
    last = results.geometry(toy / "runs").query("method == 'local' and round == 2")
    pd.testing.assert_frame_equal(geometry, last.reset_index(drop=True), check_dtype=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_runs_give_the_same_bytes_in_whatever_order_they_come(toy, tmp_path):
    results.pack(toy, tmp_path / "once")
    assert results.pack(toy, tmp_path / "once") == []
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(toy, first)
    shutil.copytree(toy, second)
    shutil.rmtree(first / "runs/toy/fedecider-seed0")
    shutil.rmtree(first / "search")
    shutil.rmtree(second / "runs/toy/local-seed0")
    results.pack(first, tmp_path / "twice")
    assert results.pack(second, tmp_path / "twice") == ["runs/toy/fedecider-seed0"]
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_a_run_of_the_same_name_is_replaced_and_the_others_stay(toy, tmp_path):
    results.pack(toy, tmp_path / "pack")
    before = results.rounds(tmp_path / "pack").set_index("run")["valid_loss"]
    run = write_run(toy / "runs/toy/local-seed0", "local", seed=0, lr=0.5)
    table = pd.read_csv(run / "rounds.csv")
    runs.write_csv(run / "rounds.csv", table.assign(valid_loss=9.0))
    shutil.rmtree(toy / "runs/toy/fedecider-seed1")
    assert results.pack(toy, tmp_path / "pack") == ["runs/toy/local-seed0"]
    after = results.rounds(tmp_path / "pack").set_index("run")["valid_loss"]
    assert (after["runs/toy/local-seed0"] == 9.0).all() and len(after) == len(before)
    pd.testing.assert_series_equal(
        after.drop("runs/toy/local-seed0"), before.drop("runs/toy/local-seed0")
    )
    configs = results.configs(tmp_path / "pack").set_index("run")
    assert configs.loc["runs/toy/local-seed0", "lr"] == 0.5


def test_runs_on_other_data_are_refused_before_anything_is_written(toy, tmp_path):
    results.pack(toy, tmp_path / "pack")
    before = contents(tmp_path / "pack")
    write_run(toy / "runs/toy/fedavg-seed0", "fedavg", digest="other")
    message = "fedavg-seed0 ran on other data than the toy runs in .*: name another gallery"
    with pytest.raises(ValueError, match=message):
        results.pack(toy, tmp_path / "pack")
    assert contents(tmp_path / "pack") == before
    with pytest.raises(ValueError, match="ran on other data"):  # nor are they packed together
        results.pack(toy, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_method_is_called_in_a_pack_what_the_last_run_calls_it(toy, tmp_path):
    results.pack(toy, tmp_path / "pack")
    newer = tmp_path / "newer"
    run = write_run(newer / "runs/toy/local-seed1", "local", seed=1)
    stored = json.loads((run / "config.json").read_text())
    stored["method_info"]["label"] = "Alone"
    runs.write_json(run / "config.json", stored)
    results.pack(newer, tmp_path / "pack")
    labels = results.metrics(tmp_path / "pack").groupby("method")["label"].unique()
    assert labels["local"].tolist() == ["Alone"] and labels["fedecider"].tolist() == ["FeDecider"]


def test_old_folders_are_read_as_what_they_are_today(toy, tmp_path):
    shutil.rmtree(toy / "runs/toy/popularity-seed0")
    plain = results.metrics(toy / "runs")
    for run in results.finished(toy / "runs"):
        make_old(run)
    configs = results.configs(toy / "runs").set_index("run")
    own = configs.loc["runs/toy/local-seed0"]
    assert (own["max_grad_norm"], own["model"], own["payload_dtype"]) == (0.5, "tiny", "int8")
    assert own["label"] == METHODS["local"].label
    popular = "runs/toy/popularity-seed0"
    assert configs.loc[popular, "method"] == "popularity"
    metrics, ranks = results.metrics(toy / "runs"), results.ranks(toy / "runs")
    pd.testing.assert_frame_equal(
        metrics[metrics["run"] != popular].reset_index(drop=True), plain, check_dtype=False
    )
    for frame, keys in ((metrics, ["domain", "metric"]), (ranks, ["domain", "user_id"])):
        once = frame[frame["run"] == popular]
        assert not once.duplicated(keys).any() and set(once["method"]) == {"popularity"}
        assert set(once["family"]) == {results.NO_MODEL} and set(once["seed"]) == {0}
    assert (ranks["run"] == popular).sum() == 8
    packed = tmp_path / "pack"
    assert popular in results.pack(toy, packed)
    pd.testing.assert_frame_equal(results.metrics(packed / "runs"), metrics, check_dtype=False)


def test_a_run_of_popularity_counts_and_not_what_old_folders_beside_it_hold(toy):
    alone = results.metrics(toy / "runs").query("method == 'popularity'")
    make_old(toy / "runs/toy/local-seed0")
    both = results.metrics(toy / "runs").query("method == 'popularity'")
    pd.testing.assert_frame_equal(both.reset_index(drop=True), alone.reset_index(drop=True))
    assert (results.configs(toy / "runs")["method"] == "popularity").sum() == 1


def test_old_sweeps_and_tries_are_packed_by_the_names_of_today(toy, tmp_path):
    sweeps = toy / "sweeps/toy"
    (sweeps / "payload_dtype-int8-fedecider-seed0").rename(sweeps / "wire-int8-fedecider-seed0")
    make_old(sweeps / "wire-int8-fedecider-seed0")
    tried = [{"fedprox_mu": 0.1, "lr": 0.2, "loss": 2.0, "run": "try-0"}]
    content = {"settings": {"fedprox_mu": 0.1, "lr": 0.2}, "tried": tried}
    runs.write_json(toy / "search/toy/fedprox/chosen.json", content)
    results.pack(toy, tmp_path / "pack")
    name = "sweeps/toy/payload_dtype-int8-fedecider-seed0"
    configs = results.configs(tmp_path / "pack").set_index("run")
    assert configs.loc[name, "folder"] == "toy/payload_dtype-int8-fedecider-seed0"
    assert name in set(results.metrics(tmp_path / "pack")["run"])
    settings = results.search(tmp_path / "pack")["settings"]
    assert [json.loads(text) for text in settings] == [{"lr": 0.2, "mu": 0.1}]


def test_old_folders_with_what_nobody_knows_are_refused(toy):
    make_old(toy / "runs/toy/local-seed0")
    path = toy / "runs/toy/local-seed0/config.json"
    flat = json.loads(path.read_text())
    runs.write_json(path, flat | {"learning_rate": 1})
    with pytest.raises(ValueError, match=r"local-seed0/config.json: .*unknown entry 'learning_r"):
        results.metrics(toy / "runs")
    runs.write_json(path, flat | {"method": "fedsomething"})
    with pytest.raises(ValueError, match=r"local-seed0/config.json: no method is called 'fedsom"):
        results.metrics(toy / "runs")


def test_compare_pairs_users_and_does_not_count_seeds_as_users():
    rows = [
        ("toy", method, seed, "books", "sampled", "likelihood", f"u{user}", rank + user % 7)
        for method, seed, rank in (
            ("fedecider", 0, 1),
            ("fedecider", 1, 1),
            ("local", 0, 4),
            ("local", 1, 4),
            ("popularity", 0, 1),
        )
        for user in range(40)
    ]
    # Popularity has no ranker of its own; another ranker of the same protocol stands apart.
    rows = [(*row[:5], "popularity", *row[6:]) if row[1] == "popularity" else row for row in rows]
    rows += [(*row[:5], "other", row[6], 90) for row in rows if row[1] == "fedecider"]
    columns = ["dataset", "method", "seed", *runs.COLUMNS["ranks"]]
    ranks = pd.DataFrame(rows, columns=columns)
    family = {"popularity": results.NO_MODEL, "local": "reference", "fedecider": "federated"}
    compared = results.compare(ranks.assign(family=ranks["method"].map(family)))
    other = compared[compared["ranker"] == "other"]
    assert other["against"].tolist() == ["popularity"] and (other["difference"] < 0).all()
    compared = compared[compared["ranker"] == "likelihood"].set_index("against")
    assert compared.loc["local", "users"] == 40 and compared.loc["local", "p"] < 0.01
    assert compared.loc["local", "difference"] > 0 and compared.loc["local", "low"] > 0
    assert compared.loc["popularity", "difference"] == 0 and compared.loc["popularity", "p"] == 1
    none = pd.DataFrame(columns=results.COLUMNS["ranks"])
    assert results.compare(none).empty and results.compare(none, "fedprox").empty
    with pytest.raises(ValueError, match="called 'fedecidr'; the nearest name is 'fedecider'"):
        results.compare(none, "fedecidr")
    with pytest.raises(ValueError, match="called 'locl'; the nearest name is 'local'"):
        results.compare(ranks, "locl")


@pytest.mark.parametrize("name", ["sample", "planted"])
def test_the_published_packs_are_whole(name):
    packed = Path(__file__).parents[1] / "figures" / "gallery" / name
    table = results.metrics(packed / "runs")
    assert {*UP, *SILENT} <= set(table["method"]) <= set(METHODS)
    ranks, configs = results.ranks(packed), results.configs(packed)
    assert ranks["user_id"].str.fullmatch(r"\d{5}").all()
    assert set(ranks["run"]) == set(configs["run"]) and configs["finished"].all()
    again = ranks.groupby("run")["rank"].apply(lambda column: (column <= 1).mean())
    hits = results.metrics(packed).query("metric == 'hit@1'")
    mean = (hits["value"] * hits["users"]).groupby(hits["run"]).sum()
    pd.testing.assert_series_equal(
        again, mean / hits.groupby("run")["users"].sum(), check_names=False
    )
