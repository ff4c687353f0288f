"""Figure 1: the federated cross-domain setting, and what averaging costs in it.

Left: the setting, drawn by code. Right: Hit@5 of federated averaging against local training, domain
by domain. The paper's caption speaks of three domains of one data set; the protocol behind it is
not public, so the caller names the protocol and each gets a figure of its own. The drawing is our
own.
"""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from figures import drawing, frames, style

_GROUP = 0.82  # share of a domain's slot that its bars fill
_SETTING = (5.0, 3.7)  # inches of the drawing
_MOST = 3  # clients drawn; more are counted
_PAIRS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 2))  # who chose what, in the sketch of data


def numbers(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    *,
    methods: Sequence[str] = ("local", "fedavg"),
    metric: str = "hit@5",
    ranker: str | None = None,
) -> pd.DataFrame:
    """What the bars and popularity's line show: the columns of :func:`figures.frames.summary`.

    mean and sd are shares (0..1); ``runs`` names the folders. Methods without a run have no row.
    Raises ValueError as :func:`figures.frames.scores` does.
    """
    rows = frames.scores(metrics, dataset, protocol, ranker)
    rows = rows[(rows["metric"] == metric) & rows["method"].isin([*methods, "popularity"])]
    return frames.summary(rows)


def local_vs_fedavg(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    *,
    methods: Sequence[str] = ("local", "fedavg"),
    metric: str = "hit@5",
    ranker: str | None = None,
    domains: Sequence[str] | None = None,
) -> Figure:
    """The setting beside grouped bars, one group a domain, one bar a method, in %.

    ``metrics`` is the frame of ``fedecider.runs.metrics``. Bars are means over seeds; error bars,
    drawn where there is more than one seed, are the sample standard deviation over seeds; a thin
    line is popularity. A bar that no run provides is a gap marked "not run". Without any row the
    figure is a note that says so. Raises ValueError as :func:`figures.frames.scores` does.
    """
    name = style.metric_label(metric)
    title = f"{style.dataset_label(dataset)}: {name}, {frames.PROTOCOL_LABELS.get(protocol, '')}"
    table = numbers(metrics, dataset, protocol, methods=methods, metric=metric, ranker=ranker)
    if domains is None:
        domains = sorted(set(table["domain"]) - {frames.MEAN})
    table = table[table["domain"].isin(domains)]
    if table.empty:
        return style.note(
            f"No finished run of {', '.join(map(style.method_label, methods))} "
            f"with {name} ({frames.PROTOCOL_LABELS[protocol]}).",
            title=f"{style.dataset_label(dataset)}: {name}",
        )
    table = table.set_index(["method", "domain"])

    with style.context():
        bar = _GROUP / len(methods)
        inches = max(5.6, 1.15 * len(domains), 0.42 + 0.21 * len(domains) * len(methods) / _GROUP)
        figure = style.canvas(_SETTING[0] + inches + 1.0, _SETTING[1] + 0.6)
        left, right = figure.subfigures(1, 2, width_ratios=(_SETTING[0], inches + 0.8))
        axes = right.add_subplot()
        narrow = inches * bar / len(domains) < 0.42  # too narrow for a number lying flat
        top = 100 * (table["mean"] + table["sd"].fillna(0)).max() or 1.0
        room = top * (0.2 if narrow else 0.09)  # the height of a number above its bar
        _bars(axes, table, methods, domains, narrow, room)
        axes.set_ylim(0, top + 1.2 * room)
        axes.set_xlim(-0.5, len(domains) - 0.5)
        slot = int(inches / len(domains) * 12)  # letters that fit under a group
        axes.set_xticks(
            range(len(domains)),
            [style.wrapped(style.domain_label(domain), max(slot, 8)) for domain in domains],
        )
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(f"{name} (%)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        shown = table.loc[table.index.get_level_values("method").isin(list(methods))]
        right.suptitle(f"{title}\n{_about_seeds(shown['seeds'])}", fontsize=10)
        colors = style.method_colors(methods)
        handles: list[Patch | Line2D] = [
            Patch(facecolor=colors[m], edgecolor=style.INK, lw=0.6, label=style.method_label(m))
            for m in methods
        ]
        if "popularity" in table.index.get_level_values("method"):
            handles.append(Line2D([], [], color="black", lw=1.2, ls=(0, (4, 2))))
            handles[-1].set_label(style.method_label("popularity"))
        right.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
        _setting(left, list(domains))
    return figure


def _setting(figure: SubFigure, domains: list[str]) -> None:
    """Server above, clients below, what travels between them; in inches."""
    axes = drawing.sheet(figure.add_subplot(), *_SETTING)
    figure.suptitle(
        "The setting: one client a domain,\nraw interactions never leave it", fontsize=10
    )
    width, height = _SETTING
    shown, colors = domains[:_MOST], style.domain_colors(domains)
    drawing.box(axes, (0.75, height - 0.78), (width - 1.5, 0.7), face=drawing.PAPER)
    axes.text(width / 2, height - 0.28, "Server", ha="center", va="center", weight="bold")
    said = "aggregates updates, never sees interactions"
    axes.text(width / 2, height - 0.56, said, ha="center", va="center", fontsize=8)
    side, gap = (width - 0.1 - 0.14 * (_MOST - 1)) / _MOST, 0.14
    left = (width - len(shown) * side - (len(shown) - 1) * gap) / 2
    for i, domain in enumerate(shown):
        x = left + i * (side + gap)
        _client(axes, x, side, domain, colors[domain])
        for shift, up in ((-0.2, True), (0.2, False)):
            ends = [(x + side / 2 + shift, 2.3), (x + side / 2 + shift, height - 0.82)]
            drawing.arrow(axes, *(ends if up else ends[::-1]), colors[domain] if up else style.INK)
            text, align = ("update", "right") if up else ("aggregate", "left")
            place = (x + side / 2 + 1.25 * shift, 2.62)
            axes.text(*place, text, ha=align, va="center", fontsize=7.5)
    more = len(domains) - len(shown)
    said = "users and items of different domains need not overlap"
    said += f"; {more} more client{'s' * (more > 1)} not drawn" if more else ""
    axes.text(width / 2, 0.1, said, ha="center", va="center", fontsize=8, color=style.INK)


def _client(axes: Axes, x: float, side: float, domain: str, color: str) -> None:
    """One client: its own users and items, and the frozen model with the client's own LoRA."""
    drawing.box(axes, (x, 0.3), (side, 1.95), face=drawing.PAPER, edge=color, width=1.4)
    name = style.wrapped(style.domain_label(domain), 16)
    axes.text(x + side / 2, 2.03, name, ha="center", va="center", weight="bold", fontsize=8)
    high, low = 1.62, 1.2  # users above, items below
    places = [x + side / 2 + 0.36 * (k - 1) for k in range(3)]
    for user, item in _PAIRS:
        axes.plot([places[user], places[item]], [high, low], color=style.FAINT, lw=0.7, zorder=2.5)
    axes.plot(places, [high] * 3, "o", color=color, ms=6, mec=style.INK, mew=0.5, zorder=3)
    axes.plot(places, [low] * 3, "s", color=color, ms=6, mec=style.INK, mew=0.5, zorder=3)
    axes.text(x + side / 2, 1.0, "its own users, items", ha="center", va="center", fontsize=7.5)
    frozen = 0.95
    drawing.box(
        axes,
        (x + 0.08, 0.4),
        (frozen, 0.44),
        "language\nmodel, frozen",
        face=drawing.FROZEN,
        fontsize=7.5,
    )
    drawing.box(
        axes,
        (x + frozen + 0.13, 0.4),
        (side - frozen - 0.2, 0.44),
        "LoRA",
        face=color,
        fontsize=7.5,
        weight="bold",
    )


def _bars(
    axes: Axes,
    table: pd.DataFrame,
    methods: Sequence[str],
    domains: Sequence[str],
    narrow: bool,
    room: float,
) -> None:
    colors = style.method_colors(methods)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    turn = 90 if narrow else 0
    bar = _GROUP / len(methods)
    for d, domain in enumerate(domains):
        popular = math.nan
        if ("popularity", domain) in table.index:
            popular = 100 * table.loc[("popularity", domain), "mean"]
            reach = _GROUP / 2 + 0.04
            axes.hlines(popular, d - reach, d + reach, color="black", lw=1.2, ls=(0, (4, 2)))
        for m, method in enumerate(methods):
            x = d + (m - (len(methods) - 1) / 2) * bar
            if (method, domain) not in table.index:
                axes.annotate(
                    "not run",
                    (x, 0),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize=7.5,
                    color=style.FAINT,
                )
                continue
            row = table.loc[(method, domain)]
            height = 100 * row["mean"]
            sd = 0.0 if pd.isna(row["sd"]) else 100 * row["sd"]
            axes.bar(x, height, 0.92 * bar, color=colors[method], edgecolor=style.INK, lw=0.6)
            if row["seeds"] > 1:
                axes.errorbar(x, height, sd, color=style.INK, capsize=2.5, lw=1, zorder=3)
            above = height + sd
            if above <= popular <= above + room:  # the number would lie on popularity's line
                above = popular
            axes.annotate(
                f"{height:.1f}",
                (x, above),
                xytext=(0, 2.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=turn,
                fontsize=7.5,
                path_effects=halo,
                zorder=5,
            )


def _about_seeds(seeds: pd.Series) -> str:
    if seeds.empty:
        return "no method was run"
    low, high = int(seeds.min()), int(seeds.max())
    if high == 1:
        return "one seed, hence no error bars"
    count = f"{high}" if low == high else f"{low} to {high}"
    return f"bars: mean over {count} seeds; error bars: sd over seeds"
