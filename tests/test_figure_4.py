"""Figure 4 from synthetic frames: alpha matrix, correlations, heat map."""

import numpy as np
import pandas as pd
import pytest
from seen import cells, laid_out, texts
from synthetic import SIX, THREE, square, synthetic_alphas, without_rows

from figures import figure_4, style


def alpha_heatmap(alphas, *squares, dataset):
    return figure_4.plot(figure_4.numbers(alphas, *squares), dataset)


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


def test_the_order_of_sources_is_that_within_a_client():
    """By hand: the first client takes more than all others, which is no order of sources."""
    alpha = pd.DataFrame([[0, 0.9, 0.8], [0.1, 0, 0.2], [0.3, 0.3, 0]], THREE, THREE)
    affinity = pd.DataFrame([[1, 0.9, 0], [0.9, 1, 0], [0, 0.5, 1]], THREE, THREE)
    out = figure_4.alpha_correlations(alpha, alpha * 0, alpha, affinity).set_index("against")
    assert out.loc["planted affinity", ["same_order", "pairs"]].to_list() == [1, 3]  # a tie is none
    assert out.loc["user closeness", ["same_order", "pairs"]].to_list() == [0, 2]  # all reversed
    assert out.loc["item closeness", ["same_order", "pairs"]].to_list() == [0, 0]  # no order
    four = square(SIX[:4])
    four.iloc[0, 1] = np.nan
    out = figure_4.alpha_correlations(square(SIX[:4]), None, None, four)
    assert out["pairs"].to_list() == [4 * 3 - 2]


def test_the_numbers_are_the_cells_and_name_the_runs_of_alpha():
    alphas = figure_4.last_round(synthetic_alphas(THREE), "goodreads")
    found = figure_4.numbers(alphas, square(THREE), None, square(THREE, 1.0))
    assert found.groupby("panel").size().to_dict() == {
        "item distance": 6, "alpha": 6, "planted affinity": 6, "closeness": 2,
    }  # fmt: skip
    cells_of = found.set_index(["panel", "client", "source"]).sort_index()
    value = figure_4.alpha_matrix(alphas).loc[THREE[0], THREE[2]]
    assert cells_of.loc[("alpha", THREE[0], THREE[2]), "value"] == value
    assert set(cells_of.loc["alpha", "runs"]) == {
        "runs/goodreads/fedecider-seed0;runs/goodreads/fedecider-seed1"
    }
    assert set(cells_of.loc["item distance", "runs"]) == {""}
    assert set(cells_of.loc["closeness", "runs"]) == set(cells_of.loc["alpha", "runs"])
    assert (
        figure_4.square_of(found, "item distance").loc[THREE[0], THREE[2]]
        == (square(THREE).loc[THREE[0], THREE[2]])
    )
    none = without_rows(alphas)
    assert set(figure_4.numbers(none, square(THREE), None)["panel"]) == {"item distance"}
    assert figure_4.correlations(figure_4.numbers(none, square(THREE), None)).empty


def test_the_caption_shows_the_correlations_of_the_numbers():
    """None computed anew from the cells: changed rows change the caption."""
    alphas = figure_4.last_round(synthetic_alphas(THREE), "goodreads")
    squares = square(THREE), None, square(THREE, 1.0)
    found = figure_4.numbers(alphas, *squares)
    expected = figure_4.alpha_correlations(figure_4.alpha_matrix(alphas), *squares)
    out = figure_4.correlations(found)
    pd.testing.assert_frame_equal(out, expected, check_dtype=False)
    other = found.assign(value=found["value"].mask(found["panel"] == "closeness", 0.125))
    caption = " ".join(texts(figure_4.plot(other, "goodreads")))
    assert "item closeness +0.12 (n = 6); planted affinity +0.12 (n = 6)" in caption


def test_correlations_need_three_distinct_pairs_and_variation():
    two = square(THREE[:2])
    out = figure_4.alpha_correlations(two, two, two * 0)
    assert out["spearman"].isna().all() and list(out["n"]) == [2, 2]
    constant = square(THREE) * 0
    assert figure_4.alpha_correlations(constant, square(THREE))["spearman"].isna().all()
    with pytest.raises(ValueError, match="must be square"):
        figure_4.alpha_correlations(square(THREE).iloc[:2])


@pytest.mark.parametrize("domains", [THREE, SIX])
def test_heatmap_shows_the_numbers(domains):
    alphas = figure_4.last_round(synthetic_alphas(domains), "goodreads")
    item, user, affinity = square(domains), square(domains, low=2, high=9), square(domains, 1.0)
    figure = alpha_heatmap(alphas, item, user, affinity, dataset="goodreads")
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
    order = figure_4.alpha_correlations(matrix, item, user, affinity).iloc[0]
    assert f"as by: item closeness {order['same_order']} of {order['pairs']}; user" in caption
    assert "round 4, mean over 3 layers and 2 seeds" in caption
    laid_out(figure)


def test_colours_of_alpha_are_centred_at_zero():
    alphas = synthetic_alphas(THREE, seeds=(0,), rounds=1, layers=1)
    alphas = alphas.assign(alpha=[0.4, 0.0, -0.2, 0.1, 0.1, 0.1])
    figure = alpha_heatmap(alphas, None, None, dataset="goodreads")
    panel = [axes for axes in figure.axes if axes.patches][0]
    figure.draw_without_rendering()
    faces = panel.collections[0].get_facecolor().reshape(3, 3, 4)
    red, _, blue, _ = faces[0, 1]
    assert red > blue  # positive is red
    assert min(faces[0, 2][:3]) > 0.95  # zero is white
    red, _, blue, _ = faces[1, 0]
    assert blue > red  # negative is blue
    hatched = {(int(p.get_y()), int(p.get_x())): p.get_hatch() for p in panel.patches}
    assert hatched == {(i, i): "////" for i in range(3)}


def test_heatmap_of_tiny_weights_takes_out_a_power_of_ten():
    alphas = figure_4.last_round(synthetic_alphas(THREE, scale=3e-5), "goodreads")
    figure = alpha_heatmap(alphas, None, None, dataset="goodreads")
    assert any(r"\times 10^{-5}" in text for text in texts(figure))
    panel = [axes for axes in figure.axes if axes.patches][0]
    shown = [float(text.replace("−", "-")) for text in cells(panel).values()]
    assert 1 <= max(map(abs, shown)) < 10


def test_heatmap_with_parts_missing():
    none = figure_4.last_round(without_rows(synthetic_alphas(THREE)), "goodreads")
    assert figure_4.alpha_matrix(none).empty
    assert figure_4.alpha_correlations(figure_4.alpha_matrix(none), square(THREE))["n"][0] == 0
    figure = alpha_heatmap(none, square(THREE), None, dataset="goodreads")
    assert {"not computed", "not run"} <= set(texts(figure))
    assert "no finished run: nothing learned to compare with" in texts(figure)
    laid_out(figure)
    figure = alpha_heatmap(none, None, None, dataset="goodreads")
    assert "No finished run, and no prepared data to measure." in texts(figure)
    two = figure_4.last_round(synthetic_alphas(THREE[:2]), "goodreads")
    figure = alpha_heatmap(two, square(THREE), square(THREE), dataset="goodreads")
    assert "item closeness n/a (n = 2)" in " ".join(texts(figure))
    assert "Mystery\nthriller crime" not in texts(figure)  # took no part in the runs
    laid_out(figure)
