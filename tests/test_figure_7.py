"""Figure 7 from synthetic frames: quality and bytes of every method and of the curves."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from seen import laid_out, texts
from synthetic import (
    ALL,
    KNOWN,
    SILENT,
    THREE,
    described,
    nothing,
    synthetic_metrics,
    synthetic_rounds,
    synthetic_sweeps,
    without_rows,
)

from figures import aggregate, figure_7


def quality_vs_bytes(*parts):
    dataset = next(part for part in parts if isinstance(part, str))
    return figure_7.plot(figure_7.numbers(*parts), dataset)


def test_quality_and_bytes_of_every_method_and_of_the_curves():
    main = synthetic_metrics(THREE, ALL), synthetic_rounds(THREE, ALL)
    sweeps = synthetic_sweeps()
    found = figure_7.numbers(*main, *sweeps, "goodreads")
    methods = found[found["field"] == ""].set_index(["method", "measure"])
    assert {method for method, _ in methods.index} == set(ALL)
    row = methods.loc[("fedecider", "ndcg@10")]
    assert row["bytes"] == 3 * (160_000 + 320_000)  # three rounds, up and down
    expected = aggregate.quality(main[0], "goodreads", "sampled").query("method == 'fedecider'")
    assert row["mean"] == pytest.approx(expected["value"].mean()) and row["seeds"] == 3
    assert row["runs"] == ";".join(f"runs/goodreads/fedecider-seed{seed}" for seed in (0, 1, 2))
    loss = methods.loc[("fedavg", "validation loss"), "mean"]
    assert loss == pytest.approx(2.5 + 0.021 * ALL.index("fedavg") + 0.004 + 0.1)
    for method in SILENT:
        assert methods.loc[(method, "ndcg@10"), "bytes"] == 0
        assert (method, "validation loss") not in methods.index
    for method in ("local", "centralized"):
        assert methods.loc[(method, "validation loss"), "bytes"] == 0
    curve = found[(found["field"] == "truncate") & (found["measure"] == "ndcg@10")]
    assert list(curve["value"]) == ["1", "4", "all"]
    assert list(curve["bytes"]) == [3 * 480_000 // 8, 3 * 480_000 // 2, 3 * 480_000]
    assert curve["runs"].iloc[2] == "sweeps/goodreads/base-fedecider-seed0"
    bits = found[(found["field"] == "payload_dtype") & (found["measure"] == "validation loss")]
    assert list(bits["value"]) == ["int8", "bfloat16", "float32"]


def near(sweeps):
    """The sweeps' NDCG@10 among those of the main runs, as it is in earnest: the worst case."""
    metrics, rounds, configs = sweeps
    return metrics.assign(value=metrics["value"] + 0.21), rounds, configs


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize(
    "methods", [ALL, ["zero-shot", "popularity", "local", "fedavg", "fedecider"]]
)
def test_every_method_has_its_mark_and_a_label_of_its_own(methods, seeds):
    main = synthetic_metrics(THREE, methods, seeds), synthetic_rounds(THREE, methods, seeds)
    sweeps = near(synthetic_sweeps())
    found = figure_7.numbers(*main, *sweeps, "goodreads")
    figure = quality_vs_bytes(*main, *sweeps, "goodreads")
    strip, axes, low_strip, low = figure.axes
    for place, measure, factor in ((axes, "ndcg@10", 100), (low, "validation loss", 1)):
        part = found[(found["measure"] == measure) & (found["field"] == "") & (found["bytes"] > 0)]
        marks = [
            tuple(offset)
            for collection in place.collections
            if isinstance(collection, PathCollection)
            for offset in collection.get_offsets()
        ]
        expected = zip(part["bytes"], factor * part["mean"], strict=True)
        np.testing.assert_allclose(sorted(marks), sorted(expected))
        assert place.get_xscale() == "log"
        labels = [text.get_text() for text in place.texts]
        names = {KNOWN[method][0].replace("– w/o", "FeDecider w/o") for method in part["method"]}
        assert names <= set(labels) and len(labels) == len(set(labels))
        assert {"top 1", "top 4", "int8", "bfloat16", "float32, all directions"} <= set(labels)
    silent = {KNOWN[m][0] for m in methods if m in (*SILENT, "local", "centralized")}
    assert {text.get_text() for text in strip.texts} == silent
    trained = {KNOWN[m][0] for m in methods if m in ("local", "centralized")}
    assert {text.get_text() for text in low_strip.texts} == trained
    assert strip.get_ylim() == axes.get_ylim()
    for each, label in ((low_strip.xaxis, "moves nothing"), (strip.yaxis, "NDCG@10 (%)")):
        assert label in each.get_label_text() and each.label.get_visible()
    assert "nats per token" in low_strip.get_ylabel() and low_strip.yaxis.label.get_visible()
    spread = "mean and sd over 3 seeds" if len(seeds) > 1 else "one seed"
    assert any(spread in text for text in texts(figure))
    assert any("all raw data" in text for text in texts(figure)) == ("centralized" in methods)
    laid_out(figure)


def test_gaps_of_figure_7():
    methods = ["zero-shot", "popularity", "local", "fedavg", "fedecider"]
    main = synthetic_metrics(THREE, methods), synthetic_rounds(THREE, methods)
    none = nothing(*synthetic_sweeps())
    figure = quality_vs_bytes(*main, *none, "goodreads")
    assert "top 1" not in texts(figure) and figure.legends == []
    laid_out(figure)
    figure = quality_vs_bytes(main[0], without_rows(main[1]), *none, "goodreads")
    assert texts(figure).count("not run") == 2  # nothing moved, nothing trained
    laid_out(figure)
    figure = quality_vs_bytes(*nothing(*main), *none, "goodreads")
    assert figure.axes == [] and "No finished run." in texts(figure)
    ranked = main[0][main[0]["protocol"] == "sampled"]
    figure = quality_vs_bytes(ranked, main[1], *none, "goodreads", "catalogue")
    assert texts(figure).count("not run") == 1  # not ranked so, but trained
    assert any("MiB" in text.get_text() for text in figure.axes[3].get_xticklabels())
    laid_out(figure)
    # one seed: the base of the sweeps is the main run, and has one name
    metrics, rounds, configs = synthetic_sweeps(["payload_dtype"])
    base = metrics["run"].str.contains("/base")
    same = quality_vs_bytes(
        metrics[base], rounds[rounds["run"].str.contains("/base")], metrics, rounds, configs,
        "goodreads",
    )  # fmt: skip
    assert texts(same).count("FeDecider") == 2 and "float32" not in texts(same)


def test_a_method_keeps_its_marker_and_colour():
    pairs = {(figure_7.marker(order), color) for _, _, color, order in KNOWN.values()}
    assert len(pairs) == len(KNOWN)
    markers = [figure_7.marker(KNOWN[m][3]) for m in ALL if m in (*SILENT, "local", "centralized")]
    assert len(set(markers)) == len(markers)  # those that stand side by side


def test_a_method_that_nobody_listed_has_its_mark_and_label():
    metrics = synthetic_metrics(THREE, ["local", "fedavg", "fedecider", "fednew"])
    rounds = synthetic_rounds(THREE, ["local", "fedavg", "fedecider", "fednew"])
    main = [described(part, fednew="federated") for part in (metrics, rounds)]
    none = nothing(*synthetic_sweeps())
    found = figure_7.numbers(*main, *none, "goodreads")
    assert set(found.loc[found["method"] == "fednew", "family"]) == {"federated"}
    assert (found.loc[found["method"] == "fednew", "bytes"] > 0).all()
    figure = figure_7.plot(found, "goodreads")
    assert texts(figure).count("Fednew") == 2
    laid_out(figure)


def test_an_ablation_has_the_label_of_the_method_before_it_in_the_order():
    methods = ["feddpa", "fedecider", "fedecider-no-both", "local"]
    main = [of(THREE, methods) for of in (synthetic_metrics, synthetic_rounds)]
    none = nothing(*synthetic_sweeps())
    found = figure_7.numbers(*main, *none, "goodreads")
    other = found.replace({"method": {"fedecider-no-both": "plain"}})  # whatever its name
    assert "FeDecider w/o both" in texts(figure_7.plot(other, "goodreads"))
    alone = other[other["method"] != "fedecider"]  # FedDPA belongs to another ten
    assert "w/o both" in texts(figure_7.plot(alone, "goodreads"))


def test_the_method_on_pooled_data_is_a_parameter():
    methods = ["local", "fedavg", "fedecider"]
    main = [of(THREE, methods) for of in (synthetic_metrics, synthetic_rounds)]
    found = figure_7.numbers(*main, *nothing(*synthetic_sweeps()), "goodreads")
    figure = figure_7.plot(found, "goodreads", pooled="local")
    assert any("Local moves no adapter, but all raw data" in text for text in texts(figure))
