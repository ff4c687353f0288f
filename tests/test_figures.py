"""Figures, from synthetic frames: what is drawn is what the frames hold."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from figures import figure_1, figure_4, figure_5, frames, style

THREE = ["children", "comics_graphic", "mystery_thriller_crime"]
SIX = [*THREE, "fantasy_paranormal", "history_biography", "young_adult"]
METHODS = ["zero-shot", "popularity", "local", "fedavg", "fedecider"]


def synthetic_metrics(domains, methods=METHODS, seeds=(0, 1, 2), dataset="goodreads"):
    rng = np.random.default_rng(7)
    rows = []
    for domain in domains:
        for protocol, ranker, level in (
            ("catalogue", "grounding", 0.05),
            ("sampled", "likelihood", 0.4),
        ):
            for metric in frames.METRICS:
                for method in methods:
                    popular = method == "popularity"
                    for seed in (0,) if popular else seeds:
                        by = "popularity" if popular else ranker
                        value = level * rng.uniform(0.8, 1.2)
                        run = f"runs/{dataset}/{method}-seed{seed}"
                        rows.append(
                            (dataset, method, seed, domain, protocol, by, metric, value, 50, run)
                        )
    columns = [
        "dataset",
        "method",
        "seed",
        "domain",
        "protocol",
        "ranker",
        "metric",
        "value",
        "users",
        "run",
    ]
    return pd.DataFrame(rows, columns=columns)


def synthetic_alphas(domains, seeds=(0, 1), rounds=4, layers=3, scale=0.3):
    rng = np.random.default_rng(11)
    rows = [
        ("goodreads", "fedecider", seed, r, client, source, f"layers.{layer}.q_proj", value)
        for seed in seeds
        for r in range(1, rounds + 1)
        for client in domains
        for source in domains
        if client != source
        for layer, value in enumerate(rng.normal(0, scale, layers))
    ]
    columns = ["dataset", "method", "seed", "round", "client", "source", "layer", "alpha"]
    return pd.DataFrame(rows, columns=columns)


def square(domains, diagonal=0.0, low=0.1, high=0.9):
    values = np.random.default_rng(len(domains)).uniform(low, high, (len(domains),) * 2)
    values = (values + values.T) / 2
    np.fill_diagonal(values, diagonal)
    return pd.DataFrame(values, index=domains, columns=domains)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def laid_out(figure: Figure) -> None:
    """No visible text leaves the figure; no two upright texts lie on each other."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.width, figure.bbox.height
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):  # ticks outside the view are not drawn
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high or not axes.axison:
                    drawn = [text for text in drawn if text not in (tick.label1, tick.label2)]
        if not axes.get_visible():
            drawn = [text for text in drawn if text.axes is not axes]
    boxes = []
    for text in drawn:
        box = text.get_window_extent(renderer)
        if box.width <= 1 or box.height <= 1:
            continue
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} leaves the figure"
        if text.get_rotation() % 90 == 0:  # the box of a slanted text is larger than the text
            boxes.append((text.get_text(), box))
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        dx = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        dy = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert dx <= 1 or dy <= 1, f"{a!r} lies on {b!r}"


def bars(figure: Figure) -> list[float]:
    patches = figure.axes[0].patches
    return [p.get_height() for p in patches if isinstance(p, Rectangle)]


# Figure 1


def test_bars_are_the_means_in_percent():
    metrics = synthetic_metrics(THREE)
    figure = figure_1.local_vs_fedavg(metrics, "goodreads", "sampled")
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
    figure = figure_1.local_vs_fedavg(metrics, "goodreads", "catalogue", methods=["fedavg"])
    rows = frames.scores(metrics, "goodreads", "catalogue")
    values = 100 * rows[(rows.method == "fedavg") & (rows.metric == "hit@5")]["value"].to_numpy()
    (bar,) = figure.axes[0].containers[-1].lines[2]
    (low, high) = bar.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * values.std(ddof=1))
    assert (low + high) / 2 == pytest.approx(values.mean())


def test_popularity_line_has_its_value_in_every_domain():
    metrics = synthetic_metrics(THREE)
    axes = figure_1.local_vs_fedavg(metrics, "goodreads", "catalogue").axes[0]
    rows = metrics[(metrics.method == "popularity") & (metrics.metric == "hit@5")]
    rows = rows[rows.protocol == "catalogue"].sort_values("domain")
    dashed = [c for c in axes.collections if len(c.get_segments()) == 1]
    heights = [c.get_segments()[0][0, 1] for c in dashed if c.get_linestyle()[0][1] is not None]
    assert heights == pytest.approx(list(100 * rows["value"]))


@pytest.mark.parametrize("domains", [THREE, SIX, THREE[:1]])
def test_the_setting_stands_beside_the_bars(domains):
    figure = figure_1.local_vs_fedavg(synthetic_metrics(domains), "goodreads", "sampled")
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
    figure = figure_1.local_vs_fedavg(synthetic_metrics(THREE, seeds=(3,)), "goodreads", "sampled")
    assert "one seed, hence no error bars" in " ".join(texts(figure))
    assert all(c.__class__.__name__ == "BarContainer" for c in figure.axes[0].containers)


def test_missing_method_and_domain_leave_marked_gaps():
    metrics = synthetic_metrics(THREE)
    gone = (metrics.method == "fedavg") & (metrics.domain != "children")
    figure = figure_1.local_vs_fedavg(metrics[~gone], "goodreads", "catalogue")
    assert len(bars(figure)) == 4
    assert texts(figure).count("not run") == 2
    laid_out(figure)
    only = metrics[metrics.method == "popularity"]
    figure = figure_1.local_vs_fedavg(only, "goodreads", "catalogue")
    assert texts(figure).count("not run") == 6
    assert "no method was run" in " ".join(texts(figure))


@pytest.mark.parametrize("count", [2, 8])
def test_six_domains_with_few_or_many_methods_stay_readable(count):
    many = ["local", "fedavg", "fedprox", "flora", "rolora", "fellrec", "feddpa", "fedecider"]
    metrics = synthetic_metrics(SIX, ["popularity", *many])
    figure = figure_1.local_vs_fedavg(metrics, "goodreads", "sampled", methods=many[:count])
    assert len(bars(figure)) == 6 * count
    laid_out(figure)


def without_rows(frame):
    """As fedecider.runs gives it: the columns, and no types."""
    return pd.DataFrame(columns=list(frame.columns))


def test_empty_frame_gives_a_note():
    empty = without_rows(synthetic_metrics(THREE))
    assert frames.summary(frames.scores(empty, "goodreads", "sampled")).empty
    figure = figure_1.local_vs_fedavg(empty, "goodreads", "sampled")
    assert figure.axes == []
    assert "No finished run" in " ".join(texts(figure))
    laid_out(figure)


def test_contradicting_or_broken_frames_are_refused():
    metrics = synthetic_metrics(["children"])
    again = metrics[metrics.method == "local"].assign(run="runs/goodreads/other", value=0.5)
    pattern = r"hit@1 of local, seed 0.*local-seed0, runs/goodreads/other"
    with pytest.raises(ValueError, match=pattern):
        figure_1.local_vs_fedavg(pd.concat([metrics, again]), "goodreads", "catalogue")
    with pytest.raises(ValueError, match="no column ranker"):
        figure_1.local_vs_fedavg(metrics.drop(columns="ranker"), "goodreads", "catalogue")
    with pytest.raises(ValueError, match="protocol is 'full'"):
        figure_1.local_vs_fedavg(metrics, "goodreads", "full")
    with pytest.raises(ValueError, match=r"hit@1 is 5\d\.0; expected 0\.\.1"):
        figure_1.local_vs_fedavg(metrics.assign(value=50.0), "goodreads", "catalogue")


# Figure 4


def test_alpha_matrix_averages_layers_then_seeds():
    alphas = synthetic_alphas(THREE)
    alphas = figure_4.last_round(alphas.drop(index=alphas.index[-1]), "goodreads")
    assert set(alphas["round"]) == {4}
    matrix = figure_4.alpha_matrix(alphas)
    cell = alphas[(alphas.client == THREE[2]) & (alphas.source == THREE[1])]
    by_seed = [cell[cell.seed == seed]["alpha"].mean() for seed in (0, 1)]
    assert matrix.loc[THREE[2], THREE[1]] == pytest.approx(np.mean(by_seed))
    assert len(cell[cell.seed == 0]) != len(cell[cell.seed == 1])  # the order of means matters
    assert np.isnan(np.diag(matrix)).all()


def test_alpha_matrix_refuses_several_rounds():
    with pytest.raises(ValueError, match=r"several values of round \(1, 2, 3, 4\)"):
        figure_4.alpha_matrix(synthetic_alphas(THREE))


def test_correlations_are_spearman_over_off_diagonal_cells():
    alpha = square(SIX).apply(lambda column: column + np.arange(6))
    distance = square(SIX, low=1, high=2)
    out = figure_4.alpha_correlations(alpha, distance, -alpha, alpha**3)
    assert list(out["against"]) == ["item closeness", "user closeness", "planted affinity"]
    assert list(out["n"]) == [30, 30, 30]
    off = ~np.eye(6, dtype=bool)
    a, d = pd.Series(alpha.to_numpy()[off]), pd.Series(-distance.to_numpy()[off])
    assert out["spearman"][0] == pytest.approx(a.rank().corr(d.rank()))
    assert out["spearman"][1] == pytest.approx(1)
    assert out["spearman"][2] == pytest.approx(1)  # monotone is enough
    shuffled = distance.loc[SIX[::-1], SIX[::-1]]  # domains are matched by name
    assert figure_4.alpha_correlations(alpha, shuffled)["spearman"][0] == out["spearman"][0]


def test_correlations_need_three_distinct_pairs_and_variation():
    two = square(THREE[:2])
    out = figure_4.alpha_correlations(two, two, two * 0)
    assert out["spearman"].isna().all() and list(out["n"]) == [2, 2]
    constant = square(THREE) * 0
    assert figure_4.alpha_correlations(constant, square(THREE))["spearman"].isna().all()
    with pytest.raises(ValueError, match="must be square"):
        figure_4.alpha_correlations(square(THREE).iloc[:2])


def cells(axes) -> dict[tuple[int, int], str]:
    return {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
        for t in axes.texts
        if t.get_transform() == axes.transData
    }


@pytest.mark.parametrize("domains", [THREE, SIX])
def test_heatmap_shows_the_numbers(domains):
    alphas = figure_4.last_round(synthetic_alphas(domains), "goodreads")
    item, user, affinity = square(domains), square(domains, low=2, high=9), square(domains, 1.0)
    figure = figure_4.alpha_heatmap(alphas, item, user, affinity, dataset="goodreads")
    panels = [axes for axes in figure.axes if axes.patches]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["Item distance", "User distance", r"Learned $\alpha$", "Planted affinity"]
    matrix = figure_4.alpha_matrix(alphas, domains)
    for axes, frame in zip(panels, (item, user, matrix, affinity), strict=True):
        shown = cells(axes)
        assert len(shown) == len(domains) * (len(domains) - 1)
        for (r, c), text in shown.items():
            assert float(text.replace("−", "-")) == pytest.approx(frame.iloc[r, c], abs=0.0051)
    alpha_texts = list(cells(panels[2]).values())
    assert any(text.startswith("−") for text in alpha_texts)
    caption = " ".join(texts(figure))
    value = figure_4.alpha_correlations(matrix, item, user, affinity)["spearman"][2]
    n = len(domains) * (len(domains) - 1)
    assert f"planted affinity {style.number(value, 2, sign=True)} (n = {n})" in caption
    assert "round 4, mean over 3 layers and 2 seeds" in caption
    laid_out(figure)


def test_colours_of_alpha_are_centred_at_zero():
    alphas = synthetic_alphas(THREE, seeds=(0,), rounds=1, layers=1)
    alphas = alphas.assign(alpha=[0.4, 0.0, -0.2, 0.1, 0.1, 0.1])
    figure = figure_4.alpha_heatmap(alphas, None, None, dataset="goodreads")
    panel = [axes for axes in figure.axes if axes.patches][0]
    faces = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)): p for p in panel.patches}
    red, _, blue, _ = faces[0, 1].get_facecolor()
    assert red > blue  # positive is red
    assert min(faces[0, 2].get_facecolor()[:3]) > 0.95  # zero is white
    red, _, blue, _ = faces[1, 0].get_facecolor()
    assert blue > red  # negative is blue
    assert [faces[i, i].get_hatch() for i in range(3)] == ["////"] * 3


def test_heatmap_of_tiny_weights_takes_out_a_power_of_ten():
    alphas = figure_4.last_round(synthetic_alphas(THREE, scale=3e-5), "goodreads")
    figure = figure_4.alpha_heatmap(alphas, None, None, dataset="goodreads")
    assert any(r"\times 10^{-5}" in text for text in texts(figure))
    panel = [axes for axes in figure.axes if axes.patches][0]
    shown = [float(text.replace("−", "-")) for text in cells(panel).values()]
    assert 1 <= max(map(abs, shown)) < 10


def test_heatmap_with_parts_missing():
    none = figure_4.last_round(without_rows(synthetic_alphas(THREE)), "goodreads")
    assert figure_4.alpha_matrix(none).empty
    assert figure_4.alpha_correlations(figure_4.alpha_matrix(none), square(THREE))["n"][0] == 0
    figure = figure_4.alpha_heatmap(none, square(THREE), None, dataset="goodreads")
    assert {"not computed", "not run"} <= set(texts(figure))
    assert "no finished run: nothing learned to compare with" in texts(figure)
    laid_out(figure)
    figure = figure_4.alpha_heatmap(none, None, None, dataset="goodreads")
    assert "No finished run, and no prepared data to measure." in texts(figure)
    two = figure_4.last_round(synthetic_alphas(THREE[:2]), "goodreads")
    figure = figure_4.alpha_heatmap(two, square(THREE), square(THREE), dataset="goodreads")
    assert "item closeness n/a (n = 2)" in " ".join(texts(figure))
    assert "Mystery\nthriller crime" not in texts(figure)  # took no part in the runs
    laid_out(figure)


def test_planted_affinity_file(tmp_path):
    file = tmp_path / "affinity.json"
    assert figure_4.planted_affinity(file) is None
    file.write_text(json.dumps({"domains": ["a", "b"], "affinity": [[1, 0.25], [0.5, 1]]}))
    assert figure_4.planted_affinity(file).loc["a", "b"] == 0.25
    file.write_text(json.dumps({"domains": ["a", "b"], "affinity": [[1, 0.25]]}))
    with pytest.raises(ValueError, match=r"affinity.json: affinity has shape \(1, 2\)"):
        figure_4.planted_affinity(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="affinity.json: expected JSON with 'domains'"):
        figure_4.planted_affinity(file)


# Figure 5


def test_curves_hold_mean_and_quantiles():
    alphas = synthetic_alphas(THREE, layers=5)
    row = figure_5.curves(alphas).set_index(["client", "source", "round"])
    row = row.loc[("children", "comics_graphic", 2)]
    kept = alphas[(alphas.client == "children") & (alphas.source == "comics_graphic")]
    values = kept[kept["round"] == 2]["alpha"].to_numpy()
    assert len(values) == 10
    assert row["mean"] == pytest.approx(values.mean())
    assert [row["low"], row["high"]] == pytest.approx(list(np.quantile(values, [0.1, 0.9])))


@pytest.mark.parametrize(("domains", "rounds"), [(THREE, 6), (SIX, 12)])
def test_one_panel_a_client_one_line_a_source(domains, rounds):
    alphas = synthetic_alphas(domains, rounds=rounds)
    figure = figure_5.alpha_convergence(alphas, "goodreads")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [
        f"client: {style.domain_label(domain)}" for domain in sorted(domains)
    ]
    lines = figure_5.curves(alphas)
    colors = style.domain_colors(domains)
    for axes, client in zip(panels, sorted(domains), strict=True):
        drawn = {
            line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")
        }
        sources = [domain for domain in domains if domain != client]
        assert set(drawn) == {style.domain_label(source) for source in sources}
        for source in sources:
            wanted = lines[(lines.client == client) & (lines.source == source)]
            line = drawn[style.domain_label(source)]
            assert list(line.get_xdata()) == list(range(1, rounds + 1))
            assert line.get_ydata() == pytest.approx(wanted["mean"].to_numpy())
            assert line.get_color() == colors[source]
        assert any(list(line.get_ydata()) == [0, 0] for line in axes.lines)  # the zero line
    assert len({axes.get_ylim() for axes in panels}) == 1
    figure.draw_without_rendering()
    assert all(tick == int(tick) for axes in panels for tick in axes.get_xticks())
    assert "10–90 % of single weights (3 layers, 2 seeds)" in " ".join(texts(figure))
    laid_out(figure)


def test_one_round_and_no_round():
    figure = figure_5.alpha_convergence(synthetic_alphas(THREE, rounds=1), "goodreads")
    assert list(figure.axes[0].get_xticks()) == [1]
    places = [tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert len(places) == 1 and len(places[0]) == 1
    laid_out(figure)
    later = synthetic_alphas(THREE, rounds=3).query("round > 1")  # nothing to weigh in round 1
    figure = figure_5.alpha_convergence(later, "goodreads")
    assert list(figure.axes[0].get_xticks()) == [2, 3]
    none = without_rows(later)
    assert figure_5.curves(none).empty
    assert figure_5.alpha_convergence(none, "goodreads").axes == []
    figure = figure_5.alpha_convergence(synthetic_alphas(THREE), "amazon")
    assert figure.axes == [] and "No finished run of FeDecider." in texts(figure)


# Style


def test_colours_are_fixed_and_distinct():
    everything = style.method_colors(style.METHOD_LABELS)
    assert len(set(everything.values())) == len(everything)
    assert style.method_colors(["fedecider"]) == {"fedecider": everything["fedecider"]}
    genres = style.domain_colors(SIX)
    assert (
        len(set(genres.values())) == 6 and style.domain_colors([SIX[4]])[SIX[4]] == genres[SIX[4]]
    )
    mixed = style.domain_colors(["children", "zebra", "apple"])
    assert len(set(mixed.values())) == 3
    assert mixed == style.domain_colors(["zebra", "children", "apple"])


def test_labels():
    assert style.domain_label("mystery_thriller_crime") == "Mystery thriller crime"
    assert style.metric_label("ndcg@10") == "NDCG@10" and style.metric_label("hit@5") == "Hit@5"
    assert style.method_label("ffa-lora") == "FFA-LoRA" and style.method_label("mine") == "mine"
    assert style.number(-0.126, 2) == "−0.13" and style.number(-0.001, 2) == "0.00"
    assert style.ink_on("#08306b") == "white" and style.ink_on("#fcfbfd") == "black"


def test_saved_files_are_whole_and_equal_bytes_twice(tmp_path):
    alphas = synthetic_alphas(THREE)
    for folder in ("a", "b"):
        figure = figure_4.alpha_heatmap(
            figure_4.last_round(alphas, "goodreads"), square(THREE), None, dataset="goodreads"
        )
        png, pdf = style.save(figure, tmp_path / folder, "name")
        assert png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"
        assert b"CreationDate" not in pdf.read_bytes()
    for name in ("name.png", "name.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["name.pdf", "name.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = style.write(tmp_path / "table.csv", "old")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(style.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        style.write(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
