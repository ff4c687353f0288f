"""Figure 7: quality against the bytes that a client moves, for every method.

Above: NDCG@10, mean over domains. Below: validation loss of the best round, mean over clients.
What moves nothing stands in a strip of its own at the left, since a logarithmic axis has no 0.
Lines join FeDecider's runs with coarser directions: fewer singular directions, or fewer bits. Axes,
measures and the curve are our choice.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from figures import drawing, frames, per_run, style

LOSS = "validation loss"
CURVES = {"wire": "fewer bits", "truncate": "fewer singular directions"}
_METHOD = "fedecider"
_COLUMNS = ["method", "field", "value", "bytes", "measure", "mean", "sd", "seeds", "runs"]
_LINES = {"wire": "-", "truncate": (0, (4, 2))}


def numbers(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    sweep_metrics: pd.DataFrame,
    sweep_rounds: pd.DataFrame,
    sweep_configs: pd.DataFrame,
    dataset: str,
    protocol: str = "sampled",
    *,
    metric: str = "ndcg@10",
) -> pd.DataFrame:
    """method, field, value, bytes, measure, mean, sd, seeds, runs: a row a point and panel.

    The first two frames are those of ``fedecider.runs`` for the main runs, the others those for
    the folder of sweeps. ``bytes`` is what a client sends and receives in all rounds (mean over
    clients, then seeds; 0 where nothing moves); ``measure`` is the metric (0..1, mean over domains)
    or "validation loss" (nats a token, mean over clients of their best round; no row for what does
    not train). ``field`` is empty for the main runs; for those of a curve it is "wire" or
    "truncate" and ``value`` the setting. Raises ValueError as :func:`figures.frames.scores` does.
    """
    measures = {
        metric: per_run.quality(metrics, dataset, protocol, metric),
        LOSS: per_run.best_loss(rounds, dataset),
    }
    out = [_points(measures, per_run.moved(rounds, dataset)).assign(field="", value="")]
    domains = sorted(set(sweep_metrics.loc[sweep_metrics["dataset"] == dataset, "domain"]))
    frames_of = (sweep_metrics, sweep_rounds, sweep_configs, dataset, _METHOD)
    for field in CURVES:
        for value, _, ranked, trained in per_run.values_of(*frames_of, field):
            measures = {
                metric: per_run.quality(ranked, dataset, protocol, metric, domains),
                LOSS: per_run.best_loss(trained, dataset),
            }
            points = _points(measures, per_run.moved(trained, dataset))
            out.append(points.assign(field=field, value="all" if value is None else str(value)))
    return pd.concat(out, ignore_index=True)[_COLUMNS].sort_values(
        ["field", "measure", "bytes", "method"], ignore_index=True
    )


def quality_vs_bytes(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    sweep_metrics: pd.DataFrame,
    sweep_rounds: pd.DataFrame,
    sweep_configs: pd.DataFrame,
    dataset: str,
    protocol: str = "sampled",
    *,
    metric: str = "ndcg@10",
) -> Figure:
    """Two panels over one axis of bytes; arguments and errors as in :func:`numbers`.

    Error bars, where there is more than one seed, are the sample deviation over seeds. A panel
    without numbers says so; without any the figure is a note.
    """
    frame = (metrics, rounds, sweep_metrics, sweep_rounds, sweep_configs)
    found = numbers(*frame, dataset, protocol, metric=metric)
    title = f"{style.dataset_label(dataset)}: quality against bytes"
    if found.empty:
        return style.note("No finished run.", title=title)
    name = f"{style.metric_label(metric)} (%), {frames.PROTOCOL_LABELS[protocol]}"
    panels = {metric: (100, name), LOSS: (1, "validation loss (nats a token)")}
    with style.context():
        figure = style.canvas(10.0, 9.4)
        grid = figure.subplots(2, 2, sharey="row", sharex="col", width_ratios=(1.0, 4.2))
        moving = found.loc[found["bytes"] > 0, "bytes"]
        for (strip, axes), (measure, (factor, text)) in zip(grid, panels.items(), strict=True):
            part = found[found["measure"] == measure]
            part = part.assign(mean=factor * part["mean"], sd=factor * part["sd"].astype(float))
            strip.set_ylabel(text)
            _frame(strip, axes, part)
            for field in CURVES:
                _curve(axes, part[part["field"] == field], field)
            for point in part[part["field"] == ""].itertuples():
                place = axes if point.bytes > 0 else strip
                _point(place, point)
        _axis(grid[1, 1], moving)  # after the panels, which share it
        grid[1, 0].set_xlabel("moves nothing")
        grid[1, 1].set_xlabel("sent and received by a client in all rounds (logarithmic axis)")
        handles = [
            Line2D([], [], color=_color(_METHOD), ls=_LINES[field], marker="o", ms=4, mfc="white")
            for field in CURVES
        ]
        for handle, text in zip(handles, CURVES.values(), strict=True):
            handle.set_label(f"{style.method_label(_METHOD)}, {text}")
        drawn = [
            h for h, field in zip(handles, CURVES, strict=True) if (found.field == field).any()
        ]
        if drawn:
            figure.legend(handles=drawn, loc="outside lower center", ncols=2, handlelength=4)
        figure.suptitle(f"{title}\n{_about(found)}", fontsize=10)
        drawing.settle(figure)
        for (strip, axes), (measure, (factor, _)) in zip(grid, panels.items(), strict=True):
            part = found[found["measure"] == measure]
            part = part.assign(mean=factor * part["mean"], sd=factor * part["sd"].astype(float))
            _labels(strip, part[part["bytes"] <= 0])
            _labels(axes, part[part["bytes"] > 0])
    return figure


def _points(measures: dict[str, pd.DataFrame], moved: pd.DataFrame) -> pd.DataFrame:
    """Values by method and seed, of several measures, to means over seeds with their bytes."""
    total = moved.groupby("method")["value"].mean()
    out = [
        per_run.over_seeds(values, ["method"]).assign(measure=measure)
        for measure, values in measures.items()
    ]
    out = pd.concat(out, ignore_index=True)
    return out.assign(bytes=[float(total.get(method, 0.0)) for method in out["method"]])


def _axis(axes: Axes, moving: pd.Series) -> None:
    """A logarithmic axis with ticks at powers of two, in KiB and MiB."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    if moving.empty:
        axes.set_xticks([])
        return
    first, last = moving.min() / 1.6, moving.max() * 2.2  # room for labels
    axes.set_xlim(first, last)
    powers = [p for p in range(60) if first <= 2**p <= last]
    ticks = [2**p for p in powers[:: -(-len(powers) // 8) or 1]]
    axes.set_xticks(ticks, [drawing.size_label(tick) for tick in ticks])


def _frame(strip: Axes, axes: Axes, part: pd.DataFrame) -> None:
    """Limits with room for labels, grid lines, and a word where there is nothing."""
    strip.set_xlim(-0.5, 1.5)
    strip.set_xticks([])
    for each in (strip, axes):
        each.grid(axis="y")
        each.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    if not (part["bytes"] > 0).any():
        drawing.say(axes)
    if part.empty:
        strip.set_yticks([])
        return
    sd = part["sd"].fillna(0)
    low, high = (part["mean"] - sd).min(), (part["mean"] + sd).max()
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    strip.set_ylim(low - room, high + room)


def _curve(axes: Axes, part: pd.DataFrame, field: str) -> None:
    """The runs of one field in the order of their bytes, the base among them."""
    axes.plot(
        part["bytes"],
        part["mean"],
        color=_color(_METHOD),
        ls=_LINES[field],
        lw=1.2,
        marker="o",
        ms=4,
        mfc="white",
        zorder=2,
    )


def _point(axes: Axes, point) -> None:
    x, sd = point.bytes if point.bytes > 0 else 0, point.sd if point.seeds > 1 else None
    mark = _mark(point.method)
    axes.errorbar(
        x, point.mean, sd, color=_color(point.method), marker=mark, ms=7, mec=style.INK, mew=0.6,
        elinewidth=0.9, capsize=2, zorder=3 + (point.method == _METHOD), ls="",
    )  # fmt: skip


def _labels(axes: Axes, part: pd.DataFrame) -> None:
    """Names beside the points, values beside those of the curves."""
    main = part[part["field"] == ""]
    own = main[main["method"] == _METHOD]
    curve = part[part["field"] != ""]
    # A base run that is the main run needs no second name.
    curve = curve[~curve["mean"].isin(own["mean"])]
    curve = curve.assign(name=[_setting(row.field, row.value) for row in curve.itertuples()])
    # The base is a point of both curves.
    curve = curve.groupby(["method", "bytes", "mean"], as_index=False)["name"].agg(", ".join)
    names = [*map(_name, main["method"]), *curve["name"]]
    both = pd.concat([main, curve]) if len(curve) else main
    points = [(max(row.bytes, 0), row.mean) for row in both.itertuples()]
    obstacles = []
    for row in main[main["seeds"] > 1].itertuples():
        obstacles += [(max(row.bytes, 0), row.mean + k * row.sd) for k in (-1, -0.5, 0.5, 1)]
    for field in CURVES:
        line = part[part["field"] == field]
        ends = list(zip(line["bytes"], line["mean"], strict=True))
        for (x0, y0), (x1, y1) in zip(ends, ends[1:], strict=False):
            obstacles += [
                (x0 * (x1 / x0) ** t, y0 + t * (y1 - y0)) for t in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
            ]
    colors = [_color(method) for method in both["method"]]
    drawing.place_labels(axes, points, names, colors, obstacles=obstacles)


def _name(method: str) -> str:
    """The method's label; an ablation's begins with a dash, as under its method in a table."""
    label = style.method_label(method)
    return label.replace("– ", f"{style.method_label(_METHOD)} ", 1) if label[:1] == "–" else label


def _setting(field: str, value: str) -> str:
    if field == "wire":
        return value
    return "all directions" if value == "all" else f"top {value}"


def _color(method: str) -> str:
    return style.method_colors([method])[method]


def _mark(method: str) -> str:
    """A method keeps its marker whatever else is drawn."""
    known = list(style.METHOD_LABELS)
    place = known.index(method) if method in known else len(known)
    return style.MARKERS[place % len(style.MARKERS)]


def _about(found: pd.DataFrame) -> str:
    main = found[found["field"] == ""]
    seeds = main["seeds"] if len(main) else found["seeds"]
    low, high = int(seeds.min()), int(seeds.max())
    text = "one seed" if high == 1 else f"mean and sd over {high} seeds"
    if low != high:
        text += (
            f" ({low} where no error bar is drawn)" if low == 1 else f" or fewer, at least {low}"
        )
    if "centralized" in set(main["method"]):
        text += f"; {style.method_label('centralized')} moves no adapter, but all raw data"
    return text
