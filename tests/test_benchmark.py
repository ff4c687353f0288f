"""The benchmark measures the same work on both sides, and runs to its table on the tiny model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import data_prep
from fedecider.gram import gram
from figures import benchmark
from notebooks.benchmark import __main__ as command
from notebooks.benchmark import child, growth, peer, ranking, server, timing, training
from notebooks.benchmark.bench import load


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDECIDER_CACHE", str(folder / "cache"))
        data_prep.prepare(
            "goodreads",
            folder / "dumps",
            folder / "data",
            kind="planted",
            planted_users=60,
            planted_items=40,
            planted_history=8,
            negatives=9,
        )
        yield load(folder / "data", "children", "tiny", 5, dtype="float32")


def test_the_peer_trains_on_the_same_targets(bench):
    with bench.adapter(None) as adapter:
        examples = bench.client(adapter).data.training.examples
    ours = [
        example.ids[: target + 1]
        for example in examples
        for target in example.targets
        if example.ids[target] == bench.template.end
    ]
    pairs = [prompt + target for prompt, target in training.pairs(bench)]
    assert sorted(pairs) == sorted(ours) and len(pairs) > 10


def test_stored_and_recomputed_states_give_the_same_losses(bench):
    assert training.loss_difference(bench, 1) <= 1e-5


def test_peer_and_tree_rank_alike(bench):
    agreement = ranking.agreement(bench, 3, 1)
    assert agreement["same ranks"] == 1.0 and agreement["largest score difference"] < 1e-4


def test_the_dense_server_computes_the_same():
    shapes = {"00.q_proj": (30, 20), "01.q_proj": (30, 20), "00.v_proj": (10, 20)}
    sent = [
        {name: pair.to(torch.float64) for name, pair in factors.items()}
        for factors in server.uploads(shapes, 3, 4)
    ]
    dense, factored = peer.dense_products(sent, list(shapes)), gram(sent)
    for name in shapes:
        torch.testing.assert_close(factored[name], dense[name], rtol=1e-10, atol=1e-10)


def test_coarser_payloads_are_measured(bench):
    payloads = server.payloads(bench, 1, ranks=(1,)).set_index("payload")
    assert payloads.loc["direction, float32", "error"] == 0
    assert payloads.loc["direction, int8", "error"] < 0.03
    assert payloads.loc["direction, float32, top 1", "error"] > 0.05
    assert payloads["of_fedavg"].iloc[0] == 1 and payloads["loss_change"].iloc[1] == 0
    assert payloads.loc["direction, int8, top 1", "bytes"] < payloads["bytes"].iloc[0] / 4


def test_jobs_run_in_turn_and_set_up_is_not_timed():
    order = []

    def job(name):
        class Context:
            def __enter__(self):
                order.append(f"set up {name}")
                return lambda: order.append(name) or 2

            def __exit__(self, *exc):
                return None

        return Context

    times = timing.alternate("part", {"a": job("a"), "b": job("b")}, 2)
    assert order[:4] == ["set up a", "a", "set up b", "b"] and len(order) == 12
    assert times["variant"].tolist() == ["a", "b", "a", "b"] and (times["units"] == 2).all()
    assert np.allclose(times["rate"], 2 / times["seconds"])
    rates = pd.DataFrame(
        {"run": [1, 1, 2, 2], "variant": ["a", "b"] * 2, "rate": [4.0, 2.0, 9.0, 3.0]}
    )
    assert timing.ratios(rates, "a", "b").tolist() == [2.0, 3.0]


def test_slopes_of_known_growth():
    values = np.array([1, 2, 4, 8])
    grown = pd.DataFrame(
        {"axis": "rank", "value": values, "what": "x", "seconds": 3.0 * values**2, "mib": 5.0}
    )
    slopes = benchmark.slopes(grown).iloc[0]
    assert slopes["slope_seconds"] == pytest.approx(2) and abs(slopes["slope_mib"]) < 1e-9


@pytest.mark.parametrize(("axis", "value"), [("clients", 2), ("rank", 2), ("history", 3)])
def test_an_epoch_is_measured_along_each_axis(bench, axis, value):
    source = map(str, bench.source)
    epoch = child.PARTS[f"growth-{axis}"](value, *source)["training epoch"]
    assert epoch["seconds"] > 0 and epoch["mib"] >= 0


def test_a_search_is_measured_in_a_catalogue_of_random_titles(bench):
    measured = child.growth_catalogue(40, *map(str, bench.source))
    assert set(measured) == {"title embeddings", "grounding, distances", "trie, search"}
    assert all(work["seconds"] > 0 for work in measured.values())


def test_peak_memory_is_the_largest_of_all_runs(monkeypatch):
    peaks = iter([300.0, 700.0, 400.0])
    monkeypatch.setattr(child, "reset_peak", lambda: 100.0)
    monkeypatch.setattr(child, "peak_memory", lambda: next(peaks))
    assert child._timed(lambda: None)["mib"] == 600


def test_a_failing_measurement_is_named():
    with pytest.raises(RuntimeError, match="the measurement clients 1 .* failed: .*nowhere"):
        growth.in_child("clients", 1, "nowhere", "children", "tiny")


def test_the_command_writes_table_and_figures(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [
        f"data={bench.config.data.prepared}",
        "model=tiny",
        "users=5",
        "lists=2",
        "peer_pairs=3",
        "peer_users=1",
        "repeats=1",
    ]
    small += ["top_layers=1", "clients=[1, 2]", "senders=2", "server_rank=1", "axes={}"]
    assert command.main(["--results", str(tmp_path / "results"), "--set", *small]) == 0
    assert "| whole catalogue | trie | grounding |" in capsys.readouterr().out
    tables = tmp_path / "results" / "tables"
    table = pd.read_csv(tables / "benchmark.csv")
    assert (table["ratio"] > 0).all() and (table["low"] <= table["high"]).all()
    assert len(table) == 9
    facts = json.loads((tables / "benchmark.json").read_text())
    assert facts["float32_ranks"]["same ranks"] == 1.0 and facts["loss_difference"] < 1e-5
    assert (tmp_path / "results" / "figures" / "benchmark.png").is_file()


def test_figures_of_known_numbers():
    ratios = pd.Series([2.0, 3.0, 2.5])
    row = {"part": "training", "ours": "a", "against": "b", "ratios": ratios, "limit_share": 0.5}
    table = benchmark.summary([row | {"at_least": 4.0}, row | {"at_least": 2.0}])
    assert table.loc[0, ["ratio", "low", "high"]].tolist() == [2.5, 2.0, 3.0]
    figure = benchmark.bars(table, "a title")
    colors = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert colors[0] != colors[1]  # what misses its aim has another colour
    grown = pd.DataFrame(
        {"axis": "rank", "value": [1, 2], "what": "step", "seconds": [1.0, 4.0], "mib": [1.0, 2.0]}
    )
    figure = benchmark.growth(grown, benchmark.slopes(grown))
    assert "step (slope 2.00)" in [text.get_text() for text in figure.axes[0].get_legend().texts]
    assert benchmark.growth(grown.iloc[:0], benchmark.slopes(grown.iloc[:0])).texts
    assert "| – |" in benchmark.to_markdown(pd.DataFrame({"x": [float("nan")]}))
