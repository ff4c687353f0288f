"""Figure 1 from synthetic frames: bars are the means, gaps are marked."""

import pandas as pd
import pytest
from seen import bars, laid_out, texts
from synthetic import SIX, THREE, synthetic_metrics, without_rows

from figures import aggregate, figure_1, select, style


def local_vs_fedavg(metrics, dataset, protocol, **arguments):
    return figure_1.plot(figure_1.numbers(metrics, dataset, protocol, **arguments), dataset)


def test_bars_are_the_means_in_percent():
    metrics = synthetic_metrics(THREE)
    figure = local_vs_fedavg(metrics, "goodreads", "sampled")
    kept = metrics[(metrics.protocol == "sampled") & (metrics.metric == "hit@5")]
    means = kept.groupby(["domain", "method"])["value"].mean()
    expected = [100 * means[d, m] for d in THREE for m in ("local", "fedavg")]
    assert bars(figure) == pytest.approx(expected)
    assert figure.axes[0].get_ylabel() == "Hit@5 (%)"
    shown = " ".join(texts(figure))
    assert "Goodreads: Hit@5, 1 + 99 sampled candidates" in shown
    assert "mean over 3 seeds; error bars: sd over seeds" in shown
    assert {"Local", "FedAvg", "Popularity", "Mystery thriller crime"} <= set(texts(figure))
    assert "not run" not in shown
    laid_out(figure)


def test_error_bars_are_the_sample_deviation():
    metrics = synthetic_metrics(["children"])
    figure = local_vs_fedavg(metrics, "goodreads", "catalogue", methods=["fedavg"])
    rows = select.scores(metrics, "goodreads", "catalogue")
    values = 100 * rows[(rows.method == "fedavg") & (rows.metric == "hit@5")]["value"].to_numpy()
    (bar,) = figure.axes[0].containers[-1].lines[2]
    (low, high) = bar.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * values.std(ddof=1))
    assert (low + high) / 2 == pytest.approx(values.mean())


def test_popularity_line_has_its_value_in_every_domain():
    metrics = synthetic_metrics(THREE)
    axes = local_vs_fedavg(metrics, "goodreads", "catalogue").axes[0]
    rows = metrics[(metrics.method == "popularity") & (metrics.metric == "hit@5")]
    rows = rows[rows.protocol == "catalogue"].sort_values("domain")
    dashed = [c for c in axes.collections if len(c.get_segments()) == 1]
    heights = [c.get_segments()[0][0, 1] for c in dashed if c.get_linestyle()[0][1] is not None]
    assert heights == pytest.approx(list(100 * rows["value"]))


@pytest.mark.parametrize("domains", [THREE, SIX, THREE[:1]])
def test_the_setting_stands_beside_the_bars(domains):
    figure = local_vs_fedavg(synthetic_metrics(domains), "goodreads", "sampled")
    bars_axes, drawing = figure.axes
    drawn = [text.get_text().replace("\n", " ") for text in drawing.texts]
    clients = sorted(domains)[:3]
    assert drawn.count("Server") == 1
    for text in ("update", "aggregate", "LoRA", "language model, frozen", "its own users, items"):
        assert drawn.count(text) == len(clients)
    assert [text for text in drawn if text in map(style.domain_label, domains)] == [
        style.domain_label(client) for client in clients
    ]
    assert any("3 more clients not drawn" in text for text in drawn) == (len(domains) == 6)
    left, right = drawing.get_window_extent(), bars_axes.get_window_extent()
    assert left.x1 < right.x0
    laid_out(figure)


def test_the_numbers_of_figure_1_name_their_runs():
    metrics = synthetic_metrics(THREE)
    table = figure_1.numbers(metrics, "goodreads", "catalogue")
    assert set(table["method"]) == {"local", "fedavg", "popularity"}
    assert set(table["metric"]) == {"hit@5"} and set(table["domain"]) == {*THREE, "mean"}
    row = table[(table.method == "local") & (table.domain == THREE[1])].iloc[0]
    assert row["runs"] == ";".join(f"runs/goodreads/local-seed{seed}" for seed in (0, 1, 2))
    kept = metrics[(metrics.protocol == "catalogue") & (metrics.metric == "hit@5")]
    kept = kept[(kept.method == "local") & (kept.domain == THREE[1])]
    assert row["mean"] == pytest.approx(kept["value"].mean())
    assert row["sd"] == pytest.approx(kept["value"].std())


def test_one_seed_has_no_error_bars():
    figure = local_vs_fedavg(synthetic_metrics(THREE, seeds=(3,)), "goodreads", "sampled")
    assert "one seed, hence no error bars" in " ".join(texts(figure))
    assert all(c.__class__.__name__ == "BarContainer" for c in figure.axes[0].containers)


def test_missing_method_and_domain_leave_marked_gaps():
    metrics = synthetic_metrics(THREE)
    gone = (metrics.method == "fedavg") & (metrics.domain != "children")
    figure = local_vs_fedavg(metrics[~gone], "goodreads", "catalogue")
    assert len(bars(figure)) == 4
    assert texts(figure).count("not run") == 2
    laid_out(figure)
    only = metrics[metrics.method == "popularity"]
    figure = local_vs_fedavg(only, "goodreads", "catalogue")
    assert texts(figure).count("not run") == 6
    assert "no method was run" in " ".join(texts(figure))


@pytest.mark.parametrize("count", [2, 8])
def test_six_domains_with_few_or_many_methods_stay_readable(count):
    many = ["local", "fedavg", "fedprox", "flora", "rolora", "fellrec", "feddpa", "fedecider"]
    metrics = synthetic_metrics(SIX, ["popularity", *many])
    figure = local_vs_fedavg(metrics, "goodreads", "sampled", methods=many[:count])
    assert len(bars(figure)) == 6 * count
    laid_out(figure)


def test_empty_frame_gives_a_note():
    empty = without_rows(synthetic_metrics(THREE))
    assert aggregate.by_domain(select.scores(empty, "goodreads", "sampled")).empty
    figure = local_vs_fedavg(empty, "goodreads", "sampled")
    assert figure.axes == []
    assert "No finished run" in " ".join(texts(figure))
    laid_out(figure)


def test_contradicting_or_broken_frames_are_refused():
    metrics = synthetic_metrics(["children"])
    again = metrics[metrics.method == "local"].assign(run="runs/goodreads/other", value=0.5)
    pattern = r"hit@1 of local, seed 0.*local-seed0, runs/goodreads/other"
    with pytest.raises(ValueError, match=pattern):
        local_vs_fedavg(pd.concat([metrics, again]), "goodreads", "catalogue")
    with pytest.raises(ValueError, match="no column ranker"):
        local_vs_fedavg(metrics.drop(columns="ranker"), "goodreads", "catalogue")
    with pytest.raises(ValueError, match="protocol is 'full'"):
        local_vs_fedavg(metrics, "goodreads", "full")
    with pytest.raises(ValueError, match=r"hit@1 is 5\d\.0; expected 0\.\.1"):
        local_vs_fedavg(metrics.assign(value=50.0), "goodreads", "catalogue")
