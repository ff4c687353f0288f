"""Figure 2 from synthetic frames: changes against local, update norms, cosines."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from seen import bars, cells, laid_out, texts
from synthetic import SIX, THREE, nothing, synthetic_geometry, synthetic_metrics, without_rows

from figures import aggregate, figure_2, select, update_geometry


def scale_noise(metrics, geometry, dataset, protocol="sampled"):
    return figure_2.plot(figure_2.numbers(metrics, geometry, dataset, protocol), dataset)


def test_changes_are_points_seed_by_seed():
    metrics = synthetic_metrics(THREE, ["local", "fedavg", "lora-sim", "popularity"])
    lost = (metrics.method == "local") & (metrics.seed == 2)
    out = aggregate.changes(
        metrics[~lost], "goodreads", "sampled", ["fedavg", "lora-sim"], "local", "ndcg@5"
    ).set_index(["method", "domain"])
    rows = select.scores(metrics, "goodreads", "sampled").query("metric == 'ndcg@5'")
    value = rows.set_index(["method", "domain", "seed"])["value"].sort_index()
    for method in ("fedavg", "lora-sim"):
        for domain in THREE:
            differences = 100 * (value[method, domain] - value["local", domain])
            found = out.loc[(method, domain)]
            assert found["seeds"] == 2  # without local's seed 2 the method's has no partner
            assert found["mean"] == pytest.approx(differences[[0, 1]].mean())
            assert found["sd"] == pytest.approx(differences[[0, 1]].std())
            names = [f"runs/goodreads/{m}-seed{s}" for m in (method, "local") for s in (0, 1)]
            assert found["runs"] == ";".join(sorted(names))
    assert len(out) == 6


def test_norms_are_those_of_the_last_round_of_each_seed():
    geometry = synthetic_geometry(THREE)
    geometry = geometry[(geometry["seed"] < 2) | (geometry["round"] == 1)]
    out = update_geometry.norms(geometry, "goodreads").set_index(["domain", "layer"])
    layer = "model.layers.1.self_attn.v_proj"
    own = geometry[(geometry.client == THREE[1]) & (geometry.other == THREE[1])]
    last = own[own["round"] == own["seed"].map({0: 2, 1: 2, 2: 1})]
    values = last[last.layer == layer]["norm"]
    assert len(values) == 3
    assert out.loc[(THREE[1], layer), "mean"] == pytest.approx(values.mean())
    assert out.loc[(THREE[1], layer), "sd"] == pytest.approx(values.std())
    whole = [np.linalg.norm(last[last.seed == seed]["norm"]) for seed in (0, 1, 2)]
    assert out.loc[(THREE[1], "all"), "mean"] == pytest.approx(np.mean(whole))
    assert len(out) == 3 * (8 + 1)
    assert out["runs"].iloc[0] == ";".join(f"runs/goodreads/local-seed{seed}" for seed in (0, 1, 2))


def test_cosines_leave_out_zero_updates_and_the_diagonal():
    geometry = synthetic_geometry(THREE, rounds=1)
    layer = "model.layers.0.self_attn.q_proj"
    pair = geometry["client"].isin(THREE[:2]) & geometry["other"].isin(THREE[:2])
    zero = pair & (geometry.client != geometry.other) & (geometry.layer == layer)
    geometry.loc[zero & (geometry.seed == 0), "cosine"] = np.nan
    out = update_geometry.cosines(geometry, "goodreads").set_index(["domain", "other", "layer"])
    assert len(out) == 6 * (8 + 1)
    assert out.loc[(*THREE[:2], layer), "seeds"] == 2
    both = geometry[(geometry.client == THREE[0]) & (geometry.other == THREE[1])]
    by_seed = [both[both.seed == seed]["cosine"].dropna().mean() for seed in (0, 1, 2)]
    assert out.loc[(*THREE[:2], "mean"), "mean"] == pytest.approx(np.mean(by_seed))
    geometry.loc[zero, "cosine"] = np.nan
    out = update_geometry.cosines(geometry, "goodreads").set_index(["domain", "other", "layer"])
    assert (*THREE[:2], layer) not in out.index


def test_separation_tells_spread_within_a_pair_from_that_between_pairs():
    rows = [
        ("a", "b", "l1", 0.1), ("a", "b", "l2", 0.3), ("a", "b", "mean", 0.2),
        ("a", "c", "l1", 0.5), ("a", "c", "l2", 0.5), ("a", "c", "mean", 0.5),
    ]  # fmt: skip
    found = pd.DataFrame(rows, columns=["domain", "other", "layer", "mean"])
    found = pd.concat([found, found.rename(columns={"domain": "other", "other": "domain"})])
    within, between = update_geometry.separation(found)
    assert within == pytest.approx((0.2 / 2**0.5 + 0) / 2)
    assert between == pytest.approx(0.3 / 2**0.5)
    assert np.isnan(update_geometry.separation(found[found["other"] == "b"])[1])


@pytest.mark.parametrize(("domains", "seeds"), [(THREE, (0, 1, 2)), (SIX, (4,))])
def test_the_panels_of_figure_2_show_the_numbers(domains, seeds):
    metrics = synthetic_metrics(domains, ["local", "fedavg", "lora-sim"], seeds)
    geometry = synthetic_geometry(domains, seeds)
    found = figure_2.numbers(metrics, geometry, "goodreads", "catalogue")
    figure = scale_noise(metrics, geometry, "goodreads", "catalogue")
    change, norms, heat, spread = figure.axes[:4]

    drawn = bars(figure)
    table = found[found.panel == "change"].set_index(["domain", "method"])["mean"]
    expected = [table[domain, method] for domain in domains for method in ("fedavg", "lora-sim")]
    assert drawn == pytest.approx(expected)
    assert "points" in change.get_ylabel() and "NDCG@5" in change.get_ylabel()
    whiskers = [c for c in change.collections if isinstance(c, LineCollection)]
    assert len(whiskers) == (len(drawn) if len(seeds) > 1 else 0)

    norm = found[(found.panel == "norm") & (found.layer != "all")]
    assert set(norm["method"]) == {"local"}
    lines = [line for line in norms.lines if len(line.get_xdata()) == 4]
    drawn = np.concatenate([line.get_ydata() for line in lines[: len(domains) * 2]])
    assert sorted(drawn) == pytest.approx(sorted(norm["mean"]))

    mean = found[(found.panel == "cosine") & (found.layer == "mean")]
    mean = mean.set_index(["domain", "other"])["mean"]
    shown = cells(heat)
    assert len(shown) == len(domains) * (len(domains) - 1)
    for (row, column), text in shown.items():
        value = float(text.replace("−", "-"))
        assert value == pytest.approx(mean[domains[row], domains[column]], abs=0.00051)

    pairs = list(combinations(domains, 2))
    dots = [line for line in spread.lines if line.get_marker() == "o"]
    diamonds = [line for line in spread.lines if line.get_marker() == "D"]
    assert list(diamonds[0].get_ydata()) == list(range(len(pairs)))
    assert [len(line.get_xdata()) for line in dots] == [8] * len(pairs)
    assert list(diamonds[0].get_xdata()) == pytest.approx([mean[p] for p in pairs])
    within, between = update_geometry.separation(found[found.panel == "cosine"])
    apart = found[found.panel == "separation"].set_index("layer")
    assert apart["mean"].to_dict() == pytest.approx({"within": within, "between": between})
    assert set(apart["seeds"]) == {len(seeds)} and set(apart["method"]) == {"local"}
    assert set(apart["runs"]) == {";".join(f"runs/goodreads/local-seed{s}" for s in seeds)}
    drawn = figure_2.plot(found.assign(mean=found["mean"].mask(found.panel == "separation", 0.5)),
                          "goodreads")  # fmt: skip
    assert "0.500, sd between the pairs' means 0.500" in drawn.axes[3].get_title()
    assert f"{within:.3f}, sd between the pairs' means {between:.3f}" in spread.get_title()
    laid_out(figure)


def test_gaps_of_figure_2():
    metrics, geometry = synthetic_metrics(THREE), synthetic_geometry(THREE)
    figure = scale_noise(metrics, geometry, "goodreads")  # no lora-sim
    assert texts(figure).count("not run") == 3
    laid_out(figure)
    figure = scale_noise(metrics, without_rows(geometry), "goodreads")
    assert texts(figure).count("updates of Local: not run") == 3
    laid_out(figure)
    figure = scale_noise(without_rows(metrics), geometry, "goodreads")
    assert texts(figure).count("not run") == 6
    laid_out(figure)
    two = synthetic_geometry(THREE[:2], (0,), blocks=1)
    figure = scale_noise(without_rows(metrics), two, "goodreads")
    assert "sd between the pairs' means n/a" in figure.axes[3].get_title()
    laid_out(figure)
    empty = nothing(metrics, geometry)
    assert figure_2.numbers(*empty, "goodreads").empty
    figure = scale_noise(*empty, "goodreads")
    assert figure.axes == [] and "No finished runs to compare." in " ".join(texts(figure))
    with pytest.raises(ValueError, match="geometry frame has no column norm"):
        update_geometry.norms(geometry.drop(columns="norm"), "goodreads")
