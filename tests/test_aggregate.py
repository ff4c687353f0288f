"""What figures share: statistics per run, swept runs, labels that keep apart."""

import numpy as np
import pandas as pd
import pytest
from synthetic import (
    THREE,
    round_rows,
    rounds_frame,
    synthetic_metrics,
    synthetic_sweeps,
    without_rows,
)

from figures import aggregate, drawing, style, sweeps


def test_quality_is_the_mean_over_domains_of_runs_that_have_them_all():
    metrics = synthetic_metrics(THREE, ["local", "fedavg", "popularity"])
    gone = (metrics.method == "fedavg") & (metrics.seed == 1) & (metrics.domain == THREE[0])
    out = aggregate.quality(metrics[~gone], "goodreads", "sampled")
    assert [*zip(out["method"], out["seed"], strict=True)] == [
        ("fedavg", 0), ("fedavg", 2), ("local", 0), ("local", 1), ("local", 2), ("popularity", 0),
    ]  # fmt: skip
    rows = metrics[(metrics.protocol == "sampled") & (metrics.metric == "ndcg@10")]
    mine = rows[(rows.method == "local") & (rows.seed == 1)]["value"]
    assert out["value"][3] == pytest.approx(mine.mean()) and len(mine) == 3
    assert out["runs"][3] == "runs/goodreads/local-seed1"


def test_best_loss_is_each_clients_lowest_and_bytes_are_summed():
    more = {"method": "local", "losses": [3, 1, 2], "up": 5, "down": 7}
    rows = round_rows("runs/goodreads/a", ["x", "y"], **more)
    rounds = rounds_frame(rows)
    rounds.loc[(rounds["client"] == "y") & (rounds["round"] == 3), "valid_loss"] = 0.5
    rounds.loc[(rounds["client"] == "y") & (rounds["round"] == 3), "bytes_up"] = 11
    assert aggregate.best_loss(rounds, "goodreads")["value"].tolist() == [(1 + 0.5) / 2]
    assert aggregate.moved(rounds, "goodreads")["value"].tolist() == [(36 + 42) / 2]
    assert aggregate.moved(rounds, "amazon").empty
    assert aggregate.best_loss(without_rows(rounds), "goodreads").empty


def test_swept_runs_are_in_order_and_the_base_among_them():
    configs = synthetic_sweeps()[2]
    out = sweeps.swept(configs, "goodreads", "fedecider", "rank")
    assert list(out["value"]) == [4, 8, 16, 32] and list(out["base"]) == [False, True, False, False]
    assert list(out["run"])[1] == "sweeps/goodreads/base-fedecider-seed0"
    out = sweeps.swept(configs, "goodreads", "fedecider", "truncate")
    assert list(out["value"]) == [1, 4, None]  # None is no limit: after all numbers
    assert all(isinstance(value, int) for value in out["value"][:2])
    # runs: a field whose name starts another's; unfinished; repeating the base
    out = sweeps.swept(
        configs.assign(finished=configs["rank"] != 4), "goodreads", "fedecider", "rank"
    )
    assert list(out["value"]) == [8, 16, 32]
    again = configs[configs["run"].str.contains("/base")]
    again = again.assign(run="sweeps/goodreads/rank-8-fedecider-seed0")
    both = pd.concat([configs, again])
    assert list(sweeps.swept(both, "goodreads", "fedecider", "rank")["value"]) == [4, 8, 16, 32]
    assert sweeps.swept(configs, "amazon", "fedecider", "rank").empty
    with pytest.raises(ValueError, match="configs frame has no column depth"):
        sweeps.swept(configs, "goodreads", "fedecider", "depth")


def test_labels_keep_apart_from_each_other_and_from_points():
    rng = np.random.default_rng(2)
    for count in (1, 12, 25):
        figure = style.canvas(7, 5)
        axes = figure.add_subplot()
        points = rng.uniform(0.1, 0.9, (count, 2))
        points[: count // 2] = 0.5 + 0.02 * points[: count // 2]  # half of them in a heap
        axes.plot(*points.T, "o", ms=7)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        drawing.settle(figure)
        names = [f"a method {i}" for i in range(count)]
        placed = drawing.place_labels(axes, [*map(tuple, points)], names, ["black"] * count)
        assert [text.get_text() for text in placed] == names
        boxes = [text.get_window_extent() for text in placed]
        at = axes.transData.transform(points)
        bounds = axes.get_window_extent()
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert not any(box.contains(*point) for point in at)
            assert bounds.x0 <= box.x0 and box.x1 <= bounds.x1
            assert bounds.y0 <= box.y0 and box.y1 <= bounds.y1
        first = np.abs(
            at[-1] - [(boxes[-1].x0 + boxes[-1].x1) / 2, (boxes[-1].y0 + boxes[-1].y1) / 2]
        )
        assert first.max() < 160 * figure.dpi / 72  # near its point
    assert drawing.place_labels(axes, [], [], []) == []
