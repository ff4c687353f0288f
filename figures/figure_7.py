"""Figure 7: quality against the bytes that a client moves, for every method.

Above: NDCG@10, mean over domains. Below: validation loss of the best round, mean over clients.
What moves nothing stands in a strip of its own at the left, since a logarithmic axis has no 0.
Lines join FeDecider's runs with coarser directions: fewer singular directions, or fewer bits. Axes,
measures and the curve are our choice.
"""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from figures import aggregate, drawing, select, style, sweeps
from figures.aggregate import LOSS

CURVES = {"payload_dtype": "fewer bits", "truncate": "fewer singular directions"}
_COLUMNS = ["method", *select.METHOD, "field", "value", "bytes", "measure", "protocol", "mean"]
_COLUMNS += ["sd", "seeds", "runs"]
_LINES = {"payload_dtype": "-", "truncate": (0, (4, 2))}


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
    swept: str = "fedecider",
) -> pd.DataFrame:
    """One row per point and panel.

    Columns: method, label, family, color, order, field, value, bytes, measure, protocol, mean, sd,
    seeds, runs. The first two frames are those of ``fedecider.results`` for the main runs, the
    others those for the folder of sweeps. ``bytes`` is what a client sends and receives in all
    rounds (mean over clients, then seeds; 0 where nothing moves); ``measure`` is the metric (0..1,
    mean over domains) or "validation loss" (nats per token, mean over clients of their best round;
    no row for what does not train). ``field`` is empty for the main runs; for those of a curve, of
    the method ``swept``, it is "payload_dtype" or "truncate" and ``value`` the setting. Raises
    ValueError as :func:`figures.select.scores` does.
    """
    ranker = select.ranker_of(metrics, dataset, protocol)
    measures = {
        metric: aggregate.quality(metrics, dataset, protocol, metric, ranker=ranker),
        LOSS: aggregate.best_loss(rounds, dataset),
    }
    out = [_points(measures, aggregate.moved(rounds, dataset)).assign(field="", value="")]
    domains = sorted(set(sweep_metrics.loc[sweep_metrics["dataset"] == dataset, "domain"]))
    of_sweeps = (sweep_metrics, sweep_rounds, sweep_configs, dataset, swept)
    for field in CURVES:
        for value, _, ranked, trained in sweeps.values_of(*of_sweeps, field):
            measures = {
                metric: aggregate.quality(ranked, dataset, protocol, metric, domains),
                LOSS: aggregate.best_loss(trained, dataset),
            }
            points = _points(measures, aggregate.moved(trained, dataset))
            out.append(points.assign(field=field, value="all" if value is None else str(value)))
    points = pd.concat([part for part in out if len(part)] or out, ignore_index=True)
    points = points.assign(protocol=protocol)
    known = select.methods(metrics, rounds, sweep_metrics, sweep_rounds)
    return select.describe(points, known)[_COLUMNS].sort_values(
        ["field", "measure", "bytes", "method"], ignore_index=True
    )


def plot(
    numbers: pd.DataFrame,
    dataset: str,
    metric: str = "ndcg@10",
    *,
    pooled: str = "centralized",
) -> Figure:
    """Two panels over one axis of bytes.

    The title says of the method ``pooled`` that it moves raw data: bytes of adapters are no measure
    of that.

    Error bars, where there is more than one seed, are the sample deviation over seeds. A panel
    without numbers says so; without any the figure is a note.
    """
    title = f"{style.dataset_label(dataset)}: quality against bytes"
    if numbers.empty:
        return style.note("No finished run.", title=title)
    protocol = select.protocol_label(numbers["protocol"].iloc[0])
    name = f"{style.metric_label(metric)} (%), {protocol}"
    panels = {metric: (100, name), LOSS: (1, "validation loss (nats per token)")}
    parts = {
        measure: numbers[numbers["measure"] == measure].assign(
            mean=lambda part, factor=factor: factor * part["mean"].astype(float),
            sd=lambda part, factor=factor: factor * part["sd"].astype(float),
            name=lambda part: _names(part, numbers),
        )
        for measure, (factor, _) in panels.items()
    }
    with style.context():
        figure = style.canvas(10.0, 9.4)
        grid = figure.subplots(2, 2, sharey="row", sharex="col", width_ratios=(1.0, 4.2))
        for (strip, axes), (measure, (_, text)) in zip(grid, panels.items(), strict=True):
            part = parts[measure]
            _frame(strip, axes, part)
            strip.set_ylabel(text)
            _curves(axes, part)
            main = part[part["field"] == ""]
            _marks(strip, main[main["bytes"] <= 0])
            _marks(axes, main[main["bytes"] > 0])
        _axis(grid[1, 1], numbers.loc[numbers["bytes"] > 0, "bytes"])  # after the panels
        grid[1, 0].set_xlabel("moves nothing", visible=True)  # seaborn hides it without ticks
        grid[1, 1].set_xlabel("sent and received by a client in all rounds (logarithmic axis)")
        handles = []
        for field, text in CURVES.items():
            for label, color in _swept(numbers, field).items():
                look = {"ls": _LINES[field], "marker": "o", "ms": 4, "mfc": "white"}
                handles.append(Line2D([], [], color=color, label=f"{label}, {text}", **look))
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=4)
        figure.suptitle(f"{title}\n{_about(numbers, pooled)}", fontsize=10)
        drawing.settle(figure)
        for (strip, axes), part in zip(grid, parts.values(), strict=True):
            _labels(strip, part[part["bytes"] <= 0])
            _labels(axes, part[part["bytes"] > 0])
    return figure


def _points(measures: dict[str, pd.DataFrame], moved: pd.DataFrame) -> pd.DataFrame:
    """Values by method and seed, of several measures, to means over seeds with their bytes."""
    total = moved.groupby("method")["value"].mean()
    out = [
        aggregate.over_seeds(values, ["method"]).assign(measure=measure)
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


def _swept(numbers: pd.DataFrame, field: str) -> dict[str, str]:
    """Colour by label of the methods that have a curve of this setting."""
    rows = numbers[numbers["field"] == field]
    return dict(zip(rows["label"], rows["color"], strict=True))


def _curves(axes: Axes, part: pd.DataFrame) -> None:
    """The runs of each swept setting in the order of their bytes, the base among them."""
    for field, line in part[part["field"] != ""].groupby("field", sort=False):
        look = {"ls": _LINES[field], "lw": 1.2, "marker": "o", "ms": 4, "mfc": "white"}
        axes.plot(line["bytes"], line["mean"], color=line["color"].iloc[0], zorder=2, **look)


def _marks(axes: Axes, main: pd.DataFrame) -> None:
    """One mark per method by seaborn, in its colour and marker, over its error bar."""
    if main.empty:
        return
    # Ablations under the other methods, so that what they are ablations of stays visible.
    main = main.assign(last=main["family"] != select.ABLATION).sort_values(["last", "order"])
    for row in main[main["seeds"] > 1].itertuples():
        look = {"color": row.color, "elinewidth": 0.9, "capsize": 2, "ls": "", "zorder": 2.5}
        axes.errorbar(max(row.bytes, 0), row.mean, row.sd, **look)
    methods = list(main["method"])
    sns.scatterplot(
        main, x="bytes", y="mean", hue="method", hue_order=methods, style="method",
        style_order=methods, palette=list(main["color"]),
        markers={row.method: marker(row.order) for row in main.itertuples()},
        s=49, edgecolor=style.INK, linewidth=0.6, legend=False, zorder=3, ax=axes,
    )  # fmt: skip


def _labels(axes: Axes, part: pd.DataFrame) -> None:
    """Names beside the points, values beside those of the curves."""
    main, curve = part[part["field"] == ""], part[part["field"] != ""]
    # A base run that is the main run needs no second name.
    own = main.loc[main["method"].isin(curve["method"]), "mean"]
    named = curve[~curve["mean"].isin(own)]
    # The base is a point of both curves.
    keys = ["method", "color", "bytes", "mean"]
    named = named.groupby(keys, as_index=False, sort=False)["name"].agg(", ".join)
    both = pd.concat([main, named]) if len(named) else main
    points = [(max(row.bytes, 0), row.mean) for row in both.itertuples()]
    obstacles = []
    for row in main[main["seeds"] > 1].itertuples():
        obstacles += [(max(row.bytes, 0), row.mean + k * row.sd) for k in (-1, -0.5, 0.5, 1)]
    for _, line in curve.groupby("field"):
        ends = list(zip(line["bytes"], line["mean"], strict=True))
        for (x0, y0), (x1, y1) in zip(ends, ends[1:], strict=False):
            obstacles += [
                (x0 * (x1 / x0) ** t, y0 + t * (y1 - y0)) for t in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
            ]
    drawing.place_labels(axes, points, list(both["name"]), list(both["color"]), obstacles=obstacles)


def _names(part: pd.DataFrame, numbers: pd.DataFrame) -> list[str]:
    """Labels of the methods, values of the curves.

    An ablation's label begins with a dash, as under its method in a table: here it takes the label
    of that method, the last before it in the order; families begin at multiples of ten.
    """
    others = numbers[numbers["family"] != select.ABLATION].sort_values("order")
    names = []
    for row in part.itertuples():
        if row.field == "":
            before = others["order"].between(row.order // 10 * 10, row.order)
            parent = others[before & (row.family == select.ABLATION)]["label"].tail(1)
            names.append(row.label.replace("– ", f"{''.join(parent)} ", 1).strip())
        elif row.field == "truncate":
            names.append("all directions" if row.value == "all" else f"top {row.value}")
        else:
            names.append(row.value)
    return names


def marker(order: int) -> str:
    """A method keeps its marker whatever else is drawn; families begin at multiples of ten."""
    return style.MARKERS[(int(order) + 2 * (int(order) // 10)) % len(style.MARKERS)]


def _about(numbers: pd.DataFrame, pooled: str) -> str:
    main = numbers[numbers["field"] == ""]
    seeds = main["seeds"] if len(main) else numbers["seeds"]
    low, high = int(seeds.min()), int(seeds.max())
    text = "one seed" if high == 1 else f"mean and sd over {high} seeds"
    if low != high:
        text += (
            f" ({low} where no error bar is drawn)" if low == 1 else f" or fewer, at least {low}"
        )
    if pooled in set(main["method"]):
        text += f"; {select.label(main, pooled)} moves no adapter, but all raw data"
    return text
