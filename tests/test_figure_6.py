"""Figure 6 from synthetic sweeps: means in the order of the values, a line a method."""

import numpy as np
import pandas as pd
import pytest
from seen import laid_out, texts
from synthetic import THREE, nothing, synthetic_sweeps, without_rows

from figures import figure_6


def sensitivity(*parts):
    return figure_6.plot(figure_6.numbers(*parts), parts[-1])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_sensitivity_shows_means_over_seeds_in_the_order_of_values(seeds):
    metrics, rounds, configs = synthetic_sweeps(seeds=seeds)
    found = figure_6.numbers(metrics, rounds, configs, "goodreads")
    rank = found[(found.field == "rank") & (found.measure == "ndcg@10")]
    assert list(rank["value"]) == [4, 8, 16, 32] and list(rank["base"]) == [
        False,
        True,
        False,
        False,
    ]
    runs = [f"sweeps/goodreads/rank-16-fedecider-seed{seed}" for seed in seeds]
    by_seed = [metrics[metrics.run == run]["value"].mean() for run in runs]
    row = rank.iloc[2]
    assert row["mean"] == pytest.approx(np.mean(by_seed)) and row["runs"] == ";".join(runs)
    assert row["seeds"] == len(seeds) and np.isnan(row["sd"]) == (len(seeds) == 1)
    losses = found[(found.field == "rounds") & (found.measure == "validation loss")]
    assert list(losses["value"]) == [1, 3, 12]
    lowest = rounds[rounds.run == f"sweeps/goodreads/rounds-12-fedecider-seed{seeds[0]}"]
    lowest = lowest.groupby("client")["valid_loss"].min()
    if len(seeds) == 1:
        assert losses["mean"].iloc[2] == pytest.approx(lowest.mean())

    figure = sensitivity(metrics, rounds, configs, "goodreads")
    above, below = figure.axes[:7], figure.axes[7:14]
    drawn = above[0].lines[0]
    assert drawn.get_ydata() == pytest.approx(100 * rank["mean"].to_numpy())
    assert list(drawn.get_xdata()) == [0, 1, 2, 3]
    assert [text.get_text() for text in below[0].get_xticklabels()] == ["4", "8", "16", "32"]
    assert below[1].lines[0].get_ydata() == pytest.approx(losses["mean"].to_numpy())
    band = above[0].patches[0]
    assert band.get_x() < 1 < band.get_x() + band.get_width()  # the base is the second value
    assert "%" in above[0].get_ylabel() and "nats" in below[0].get_ylabel()
    assert "not run" not in texts(figure)
    laid_out(figure)


def test_settings_that_were_not_swept_say_so():
    some = synthetic_sweeps(["alpha_lr", "rank"])
    figure = sensitivity(*some, "goodreads")
    assert texts(figure).count("not run") == 10  # five settings, two panels each
    laid_out(figure)
    metrics, rounds, configs = some
    unranked = without_rows(metrics)
    figure = sensitivity(unranked, rounds, configs, "goodreads")
    assert texts(figure).count("not run") == 7 + 5
    for parts in (nothing(*some), synthetic_sweeps(["payload_dtype"])):
        assert figure_6.numbers(*parts, "goodreads").empty
        figure = sensitivity(*parts, "goodreads")
        assert figure.axes == [] and "No finished sweep." in texts(figure)
    lacking = metrics[~(metrics.run.str.contains("rank-4") & (metrics.domain == THREE[0]))]
    found = figure_6.numbers(lacking, rounds, configs, "goodreads")
    found = found[(found.field == "rank") & (found.measure == "ndcg@10")]
    assert list(found["value"]) == [8, 16, 32]  # a mean over other domains is no point of the line


def test_other_methods_have_a_line_where_the_setting_is_theirs():
    own, other = synthetic_sweeps(), synthetic_sweeps(["lr", "train_users"], method="local")
    parts = [pd.concat(both, ignore_index=True) for both in zip(own, other, strict=True)]
    found = figure_6.numbers(*parts, "goodreads")
    assert set(found.loc[found["method"] == "local", "field"]) == {"lr", "train_users"}
    alone = figure_6.numbers(*own, "goodreads")
    mine = found[found["method"] == "fedecider"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone)
    lines = found[(found["field"] == "lr") & (found["measure"] == "validation loss")]
    rows = lines[lines["method"] == "local"]
    assert list(rows["value"]) == [0.001, 0.002, 0.004] and list(rows["base"]) == [0, 1, 0]

    figure = sensitivity(*parts, "goodreads")
    below = figure.axes[7 + list(figure_6.FIELDS).index("lr")]
    drawn = [
        list(map(float, line.get_ydata())) for line in below.lines if len(line.get_xdata()) == 3
    ]
    expected = [lines.loc[lines["method"] == one, "mean"] for one in ("local", "fedecider")]
    np.testing.assert_allclose(drawn, expected)  # the method itself last, hence on top
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["base value", "FeDecider", "Local"]
    laid_out(figure)
    only = figure_6.numbers(*other, "goodreads")
    assert set(only["method"]) == {"local"}
