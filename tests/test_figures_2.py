"""Figures 2, 3, 6 and 7 and what they share, from synthetic frames: the numbers shown."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from test_figures import SIX as UNSORTED
from test_figures import THREE, cells, laid_out, synthetic_metrics, texts, without_rows

from figures import (
    drawing,
    figure_2,
    figure_3,
    figure_6,
    figure_7,
    frames,
    per_run,
    style,
    update_geometry,
)

SIX = sorted(UNSORTED)
ALL = [*style.METHOD_LABELS, "fedecider-no-direction", "fedecider-no-personalization"]
ALL = list(dict.fromkeys([*ALL, "fedecider-no-both", "als"]))
SILENT = ("zero-shot", "popularity", "als")  # what does not train has no rounds
KINDS = ("q_proj", "v_proj")


def synthetic_geometry(domains, seeds=(0, 1, 2), rounds=2, blocks=4, method="local"):
    """Norms grow with the domain's place; cosines are symmetric."""
    rng, rows = np.random.default_rng(3), []
    layers = [f"model.layers.{b}.self_attn.{kind}" for b in range(blocks) for kind in KINDS]
    for seed in seeds:
        for number in range(1, rounds + 1):
            for layer in layers:
                found = {}
                for place, client in enumerate(domains):
                    norm = (1 + place) * rng.uniform(0.8, 1.2)
                    for other in domains:
                        pair = tuple(sorted((client, other)))
                        same = client == other
                        cosine = 1.0 if same else found.setdefault(pair, rng.normal(0.03, 0.04))
                        key = ("goodreads", method, seed, number, layer, client, other)
                        rows.append((*key, cosine, norm, f"runs/goodreads/{method}-seed{seed}"))
    columns = ["dataset", "method", "seed", "round", "layer", "client", "other", "cosine", "norm"]
    columns += ["run"]
    return pd.DataFrame(rows, columns=columns)


def round_rows(run, domains, *, method, seed=0, rounds=3, up=1000, down=2000, losses=None):
    """One run's rows of the rounds frame; losses[round - 1] + place / 10 by domain."""
    losses = losses or [3 - 0.2 * number for number in range(rounds)]
    return [
        ("goodreads", method, seed, number, domain, 3.0, losses[number - 1] + place / 10)
        + (up, down, 1.0, 5.0, 10, 900.0, run)
        for number in range(1, rounds + 1)
        for place, domain in enumerate(domains)
    ]


ROUNDS = ["dataset", "method", "seed", "round", "client", "train_loss", "valid_loss", "bytes_up"]
ROUNDS += ["bytes_down", "seconds", "update_norm", "steps", "memory", "run"]
METRICS = ["dataset", "method", "seed", "domain", "protocol", "ranker", "metric", "value", "users"]
METRICS += ["run"]


def synthetic_rounds(domains, methods, seeds=(0, 1, 2)):
    rows = []
    for place, method in enumerate(methods):
        if method in SILENT:
            continue
        up = 0 if method in ("local", "centralized") else 160_000
        down = up * (len(domains) - 1 if method.startswith("fedecider") else 1)
        for seed in seeds:
            losses = [3.0, 2.5 + 0.021 * place + 0.004 * seed, 2.9]
            run = f"runs/goodreads/{method}-seed{seed}"
            more = {"seed": seed, "up": up, "down": down, "losses": losses}
            rows += round_rows(run, domains, method=method, **more)
    return pd.DataFrame(rows, columns=ROUNDS)


BASE = {"rank": 8, "rounds": 3, "local_epochs": 1, "alpha_lr": 0.02, "alpha_init": 0.0}
BASE |= {"truncate": None, "wire": "float32", "lr": 0.002, "train_users": 200}
VALUES = {"rank": [16, 4, 32], "rounds": [1, 12], "local_epochs": [2], "alpha_lr": [0.1, 0.0]}
VALUES |= {"alpha_init": [0.5], "truncate": [1, 4], "wire": ["int8", "bfloat16"]}
VALUES |= {"lr": [0.004, 0.001], "train_users": [36]}
SIZES = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.27}


def synthetic_sweeps(fields=tuple(VALUES), seeds=(0,), domains=THREE, method="fedecider"):
    """metrics, rounds and configs of a folder of sweeps."""
    rng, metrics, rounds, configs = np.random.default_rng(9), [], [], []
    runs = [("base", None)] + [(field, value) for field in fields for value in VALUES[field]]
    for field, value in runs:
        name = "base" if field == "base" else f"{field}-{value}"
        config = BASE | ({} if field == "base" else {field: value})
        size = SIZES[config["wire"]] * (config["truncate"] or 8) / 8
        for seed in seeds:
            run = f"sweeps/goodreads/{name}-{method}-seed{seed}"
            key = ("goodreads", method, seed)
            configs.append(dict(zip(("dataset", "method", "seed"), key, strict=True)) | config)
            configs[-1] |= {"run": run, "finished": True}
            for domain in domains:
                row = (domain, "sampled", "likelihood", "ndcg@10", rng.uniform(0.18, 0.2), 50, run)
                metrics.append((*key, *row))
            number = config["rounds"]
            losses = [2.8 - 0.3 * (r == number - 1) + rng.uniform(0, 0.1) for r in range(number)]
            more = {"seed": seed, "up": int(160_000 * size), "down": int(320_000 * size)}
            rounds += round_rows(run, domains, method=method, rounds=number, losses=losses, **more)
    configs = pd.DataFrame(configs)
    return pd.DataFrame(metrics, columns=METRICS), pd.DataFrame(rounds, columns=ROUNDS), configs


def nothing(*parts):
    return [without_rows(part) for part in parts]


# Figure 2


def test_changes_are_points_seed_by_seed():
    metrics = synthetic_metrics(THREE, ["local", "fedavg", "lora-sim", "popularity"])
    lost = (metrics.method == "local") & (metrics.seed == 2)
    out = per_run.changes(
        metrics[~lost], "goodreads", "sampled", ["fedavg", "lora-sim"], "local", "ndcg@5"
    ).set_index(["method", "domain"])
    rows = frames.scores(metrics, "goodreads", "sampled").query("metric == 'ndcg@5'")
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
    figure = figure_2.scale_noise(metrics, geometry, "goodreads", "catalogue")
    change, norms, heat, spread = figure.axes[:4]

    bars = [patch.get_height() for patch in change.patches if isinstance(patch, Rectangle)]
    table = found[found.panel == "change"].set_index(["domain", "method"])["mean"]
    expected = [table[domain, method] for domain in domains for method in ("fedavg", "lora-sim")]
    assert bars == pytest.approx(expected)
    assert "points" in change.get_ylabel() and "NDCG@5" in change.get_ylabel()
    whiskers = [c for c in change.collections if isinstance(c, LineCollection)]
    assert len(whiskers) == (len(bars) if len(seeds) > 1 else 0)

    norm = found[(found.panel == "norm") & (found.layer != "all")]
    assert set(norm["method"]) == {"local"}
    lines = [line for line in norms.lines if len(line.get_xdata()) == 4]
    drawn = np.concatenate([line.get_ydata() for line in lines[:: 3 if len(seeds) > 1 else 1]])
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
    assert [len(line.get_xdata()) for line in dots] == [8] * len(pairs)
    assert [line.get_xdata()[0] for line in diamonds] == pytest.approx([mean[p] for p in pairs])
    within, between = update_geometry.separation(found[found.panel == "cosine"])
    assert f"{within:.3f}, sd between the pairs' means {between:.3f}" in spread.get_title()
    laid_out(figure)


def test_gaps_of_figure_2():
    metrics, geometry = synthetic_metrics(THREE), synthetic_geometry(THREE)
    figure = figure_2.scale_noise(metrics, geometry, "goodreads")  # no lora-sim
    assert texts(figure).count("not run") == 3
    laid_out(figure)
    figure = figure_2.scale_noise(metrics, without_rows(geometry), "goodreads")
    assert texts(figure).count("updates of Local: not run") == 3
    laid_out(figure)
    figure = figure_2.scale_noise(without_rows(metrics), geometry, "goodreads")
    assert texts(figure).count("not run") == 6
    laid_out(figure)
    two = synthetic_geometry(THREE[:2], (0,), blocks=1)
    figure = figure_2.scale_noise(without_rows(metrics), two, "goodreads")
    assert "sd between the pairs' means n/a" in figure.axes[3].get_title()
    laid_out(figure)
    empty = nothing(metrics, geometry)
    assert figure_2.numbers(*empty, "goodreads").empty
    figure = figure_2.scale_noise(*empty, "goodreads")
    assert figure.axes == [] and "No finished runs of Local" in " ".join(texts(figure))
    with pytest.raises(ValueError, match="geometry frame has no column norm"):
        update_geometry.norms(geometry.drop(columns="norm"), "goodreads")


# Figure 3


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB")]
    + [(494_712, "483 KiB"), (1_048_570, "1 MiB"), (12_345_678, "11.8 MiB"), (2**33, "8 GiB")]
    + [(100 * 1024, "100 KiB"), (None, "not run"), (float("nan"), "not run")],
)
def test_bytes_for_people(count, text):
    assert drawing.size_label(count) == text


def overview_rounds(domains, seeds=(0, 1)):
    rows = []
    for seed in seeds:
        for number in (1, 2):
            up = 1000 * 2**10 * number  # another size in each round
            part = round_rows(
                f"runs/goodreads/fedecider-seed{seed}", domains, method="fedecider", seed=seed,
                rounds=1, up=up + seed * 2**10, down=2 * up,
            )  # fmt: skip
            rows += [(*row[:3], number, *row[4:]) for row in part]
    return pd.DataFrame(rows, columns=ROUNDS)


def test_the_bytes_are_those_of_the_last_round():
    rounds = overview_rounds(THREE)
    rounds.loc[(rounds["client"] == THREE[0]) & (rounds["round"] == 2), "bytes_up"] = 512
    out = figure_3.numbers(rounds, "goodreads").set_index("client")
    assert list(out.index) == [*THREE, "mean"]
    assert out.loc[THREE[1], "bytes_up"] == 2**10 * (2000 + 0.5)  # mean of two seeds
    assert out.loc[THREE[0], "bytes_up"] == 512
    assert out.loc["mean", "bytes_up"] == pytest.approx(out["bytes_up"][:3].mean())
    assert set(out["round"]) == {2} and set(out["seeds"]) == {2}
    assert out.loc[THREE[2], "runs"] == ";".join(
        f"runs/goodreads/fedecider-seed{k}" for k in (0, 1)
    )
    figure = figure_3.overview(rounds, "goodreads")
    shown = texts(figure)
    assert "$D_1$: 512 B" in shown and "$D_2$: 1.95 MiB" in shown
    assert shown.count("2 directions: 3.91 MiB") == 3
    assert any("round 2), mean over 2 seeds" in text for text in shown)
    laid_out(figure)


@pytest.mark.parametrize("domains", [SIX, THREE[:2], THREE[:1]])
def test_the_overview_draws_at_most_three_clients(domains):
    figure = figure_3.overview(overview_rounds(domains, (5,)), "goodreads")
    shown = texts(figure)
    for place, domain in enumerate(domains):
        assert shown.count(style.domain_label(domain)) == (2 if place < 3 else 0)
    about = " ".join(shown)
    assert "one seed" in about
    assert ("3 more clients not drawn" in about) == (len(domains) == 6)
    directions = len(domains) - 1
    label = f"{directions} direction{'s' * (directions > 1)}: 3.91 MiB"
    assert shown.count(label) == (min(len(domains), 3) if directions else 0)
    laid_out(figure)


def test_the_overview_without_runs_says_so():
    other = overview_rounds(THREE).assign(method="fedavg")
    assert figure_3.numbers(other, "goodreads").empty
    figure = figure_3.overview(other, "goodreads")
    shown = texts(figure)
    assert sum("not run" in text for text in shown) == 6
    assert "No finished run of FeDecider: no bytes to show." in shown
    assert "Client 1" in shown and not any("KiB" in text or "MiB" in text for text in shown)
    laid_out(figure)
    named = figure_3.overview(without_rows(other), "goodreads", domains=THREE)
    assert "Mystery thriller crime" in texts(named)
    with pytest.raises(ValueError, match="rounds frame has no column bytes_up"):
        figure_3.numbers(other.drop(columns="bytes_up"), "goodreads")


# What figures 6 and 7 share


def test_quality_is_the_mean_over_domains_of_runs_that_have_them_all():
    metrics = synthetic_metrics(THREE, ["local", "fedavg", "popularity"])
    gone = (metrics.method == "fedavg") & (metrics.seed == 1) & (metrics.domain == THREE[0])
    out = per_run.quality(metrics[~gone], "goodreads", "sampled")
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
    rounds = pd.DataFrame(rows, columns=ROUNDS)
    rounds.loc[(rounds["client"] == "y") & (rounds["round"] == 3), "valid_loss"] = 0.5
    rounds.loc[(rounds["client"] == "y") & (rounds["round"] == 3), "bytes_up"] = 11
    assert per_run.best_loss(rounds, "goodreads")["value"].tolist() == [(1 + 0.5) / 2]
    assert per_run.moved(rounds, "goodreads")["value"].tolist() == [(36 + 42) / 2]
    assert per_run.moved(rounds, "amazon").empty
    assert per_run.best_loss(without_rows(rounds), "goodreads").empty


def test_swept_runs_are_in_order_and_the_base_among_them():
    configs = synthetic_sweeps()[2]
    out = per_run.swept(configs, "goodreads", "fedecider", "rank")
    assert list(out["value"]) == [4, 8, 16, 32] and list(out["base"]) == [False, True, False, False]
    assert list(out["run"])[1] == "sweeps/goodreads/base-fedecider-seed0"
    out = per_run.swept(configs, "goodreads", "fedecider", "truncate")
    assert list(out["value"]) == [1, 4, None]  # None is no limit: after all numbers
    assert all(isinstance(value, int) for value in out["value"][:2])
    # runs: a field whose name starts another's; unfinished; repeating the base
    out = per_run.swept(
        configs.assign(finished=configs["rank"] != 4), "goodreads", "fedecider", "rank"
    )
    assert list(out["value"]) == [8, 16, 32]
    again = configs[configs["run"].str.contains("/base")]
    again = again.assign(run="sweeps/goodreads/rank-8-fedecider-seed0")
    both = pd.concat([configs, again])
    assert list(per_run.swept(both, "goodreads", "fedecider", "rank")["value"]) == [4, 8, 16, 32]
    assert per_run.swept(configs, "amazon", "fedecider", "rank").empty
    with pytest.raises(ValueError, match="configs frame has no column depth"):
        per_run.swept(configs, "goodreads", "fedecider", "depth")


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


# Figure 6


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

    figure = figure_6.sensitivity(metrics, rounds, configs, "goodreads")
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
    figure = figure_6.sensitivity(*some, "goodreads")
    assert texts(figure).count("not run") == 10  # five settings, two panels each
    laid_out(figure)
    metrics, rounds, configs = some
    unranked = without_rows(metrics)
    figure = figure_6.sensitivity(unranked, rounds, configs, "goodreads")
    assert texts(figure).count("not run") == 7 + 5
    for parts in (nothing(*some), synthetic_sweeps(["wire"])):
        assert figure_6.numbers(*parts, "goodreads").empty
        figure = figure_6.sensitivity(*parts, "goodreads")
        assert figure.axes == [] and "No finished sweep of FeDecider." in texts(figure)
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

    figure = figure_6.sensitivity(*parts, "goodreads")
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


# Figure 7


def test_quality_and_bytes_of_every_method_and_of_the_curves():
    main = synthetic_metrics(THREE, ALL), synthetic_rounds(THREE, ALL)
    sweeps = synthetic_sweeps()
    found = figure_7.numbers(*main, *sweeps, "goodreads")
    methods = found[found["field"] == ""].set_index(["method", "measure"])
    assert {method for method, _ in methods.index} == set(ALL)
    row = methods.loc[("fedecider", "ndcg@10")]
    assert row["bytes"] == 3 * (160_000 + 320_000)  # three rounds, up and down
    expected = per_run.quality(main[0], "goodreads", "sampled").query("method == 'fedecider'")
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
    bits = found[(found["field"] == "wire") & (found["measure"] == "validation loss")]
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
    figure = figure_7.quality_vs_bytes(*main, *sweeps, "goodreads")
    strip, axes, low_strip, low = figure.axes
    for place, measure, factor in ((axes, "ndcg@10", 100), (low, "validation loss", 1)):
        part = found[(found["measure"] == measure) & (found["field"] == "") & (found["bytes"] > 0)]
        marks = [
            (line.get_xdata()[0], line.get_ydata()[0])
            for line in place.lines
            if len(line.get_xdata()) == 1 and line.get_markersize() == 7
        ]
        expected = zip(part["bytes"], factor * part["mean"], strict=True)
        np.testing.assert_allclose(sorted(marks), sorted(expected))
        assert place.get_xscale() == "log"
        labels = [text.get_text() for text in place.texts]
        names = {
            style.method_label(method).replace("– w/o", "FeDecider w/o")
            for method in part["method"]
        }
        assert names <= set(labels) and len(labels) == len(set(labels))
        assert {"top 1", "top 4", "int8", "bfloat16", "all directions, float32"} <= set(labels)
    silent = {style.method_label(m) for m in methods if m in (*SILENT, "local", "centralized")}
    assert {text.get_text() for text in strip.texts} == silent
    trained = {style.method_label(m) for m in methods if m in ("local", "centralized")}
    assert {text.get_text() for text in low_strip.texts} == trained
    assert strip.get_ylim() == axes.get_ylim()
    spread = "mean and sd over 3 seeds" if len(seeds) > 1 else "one seed"
    assert any(spread in text for text in texts(figure))
    assert any("all raw data" in text for text in texts(figure)) == ("centralized" in methods)
    laid_out(figure)


def test_gaps_of_figure_7():
    methods = ["zero-shot", "popularity", "local", "fedavg", "fedecider"]
    main = synthetic_metrics(THREE, methods), synthetic_rounds(THREE, methods)
    none = nothing(*synthetic_sweeps())
    figure = figure_7.quality_vs_bytes(*main, *none, "goodreads")
    assert "top 1" not in texts(figure) and figure.legends == []
    laid_out(figure)
    figure = figure_7.quality_vs_bytes(main[0], without_rows(main[1]), *none, "goodreads")
    assert texts(figure).count("not run") == 2  # nothing moved, nothing trained
    laid_out(figure)
    figure = figure_7.quality_vs_bytes(*nothing(*main), *none, "goodreads")
    assert figure.axes == [] and "No finished run." in texts(figure)
    ranked = main[0][main[0]["protocol"] == "sampled"]
    figure = figure_7.quality_vs_bytes(ranked, main[1], *none, "goodreads", "catalogue")
    assert texts(figure).count("not run") == 1  # not ranked so, but trained
    assert any("MiB" in text.get_text() for text in figure.axes[3].get_xticklabels())
    laid_out(figure)
    # one seed: the base of the sweeps is the main run, and has one name
    metrics, rounds, configs = synthetic_sweeps(["wire"])
    base = metrics["run"].str.contains("/base")
    same = figure_7.quality_vs_bytes(
        metrics[base], rounds[rounds["run"].str.contains("/base")], metrics, rounds, configs,
        "goodreads",
    )  # fmt: skip
    assert texts(same).count("FeDecider") == 2 and "float32" not in texts(same)


def test_a_method_keeps_its_marker_and_colour():
    pairs = {(figure_7._mark(m), figure_7._color(m)) for m in style.METHOD_LABELS}
    assert len(pairs) == len(style.METHOD_LABELS)
    assert figure_7._mark("mine") in style.MARKERS


def test_saved_files_have_equal_bytes_twice(tmp_path):
    main = synthetic_metrics(THREE, ALL), synthetic_rounds(THREE, ALL)
    sweeps, geometry = synthetic_sweeps(), synthetic_geometry(THREE)
    for folder in ("a", "b"):
        figures = {
            "2": figure_2.scale_noise(main[0], geometry, "goodreads"),
            "3": figure_3.overview(main[1], "goodreads"),
            "6": figure_6.sensitivity(*sweeps, "goodreads"),
            "7": figure_7.quality_vs_bytes(*main, *sweeps, "goodreads"),
        }
        for name, figure in figures.items():
            style.save(figure, tmp_path / folder, name)
    for name in [f"{n}.{kind}" for n in "2367" for kind in ("png", "pdf")]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
