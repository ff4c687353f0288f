"""Figure 5 from synthetic frames: curves of alpha over rounds."""

import numpy as np
import pytest
from seen import laid_out, texts
from synthetic import SIX, THREE, synthetic_alphas, without_rows

from figures import figure_5, style


def alpha_convergence(alphas, dataset):
    return figure_5.plot(figure_5.numbers(alphas, dataset), dataset)


def test_curves_hold_mean_and_quantiles():
    alphas = synthetic_alphas(THREE, layers=5)
    row = figure_5.numbers(alphas, "goodreads").set_index(["client", "source", "round"])
    row = row.loc[("children", "comics_graphic", 2)]
    kept = alphas[(alphas.client == "children") & (alphas.source == "comics_graphic")]
    values = kept[kept["round"] == 2]["alpha"].to_numpy()
    assert len(values) == 10
    assert row["mean"] == pytest.approx(values.mean())
    assert row["runs"] == "runs/goodreads/fedecider-seed0;runs/goodreads/fedecider-seed1"
    assert [row["low"], row["high"]] == pytest.approx(list(np.quantile(values, [0.1, 0.9])))


@pytest.mark.parametrize(("domains", "rounds"), [(THREE, 6), (SIX, 12)])
def test_one_panel_a_client_one_line_a_source(domains, rounds):
    alphas = synthetic_alphas(domains, rounds=rounds)
    figure = alpha_convergence(alphas, "goodreads")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [
        f"client: {style.domain_label(domain)}" for domain in sorted(domains)
    ]
    lines = figure_5.numbers(alphas, "goodreads")
    colors = style.domain_colors(domains)
    for axes, client in zip(panels, sorted(domains), strict=True):
        names = {color: style.domain_label(domain) for domain, color in colors.items()}
        drawn = {
            names[line.get_color()]: line
            for line in axes.lines
            if line.get_marker() in style.MARKERS
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
    figure = alpha_convergence(synthetic_alphas(THREE, rounds=1), "goodreads")
    assert list(figure.axes[0].get_xticks()) == [1]
    places = [tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert len(places) == 1 and len(places[0]) == 1
    laid_out(figure)
    later = synthetic_alphas(THREE, rounds=3).query("round > 1")  # nothing to weigh in round 1
    figure = alpha_convergence(later, "goodreads")
    assert list(figure.axes[0].get_xticks()) == [2, 3]
    none = without_rows(later)
    assert figure_5.numbers(none, "goodreads").empty
    assert alpha_convergence(none, "goodreads").axes == []
    figure = alpha_convergence(synthetic_alphas(THREE), "amazon")
    assert figure.axes == [] and "No finished run that learns weights." in texts(figure)
