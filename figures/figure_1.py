"""Figure 1: Hit@5 of federated averaging against local training, domain by domain.

The paper's caption speaks of three domains of one data set; the protocol behind it is not public,
so the caller names the protocol and each gets a figure of its own.
"""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from figures import frames, style

_GROUP = 0.82  # share of a domain's slot that its bars fill


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
    """Grouped bars, one group a domain, one bar a method, in %; popularity as a thin line.

    ``metrics`` is the frame of ``fedecider.runs.metrics``. Bars are means over seeds; error bars,
    drawn where there is more than one seed, are the sample standard deviation over seeds. A bar
    that no run provides is a gap marked "not run". Without any row the figure says so. Raises
    ValueError as :func:`figures.frames.scores` does.
    """
    name = style.metric_label(metric)
    title = f"{style.dataset_label(dataset)}: {name}, {frames.PROTOCOL_LABELS.get(protocol, '')}"
    rows = frames.scores(metrics, dataset, protocol, ranker)
    rows = rows[(rows["metric"] == metric) & rows["method"].isin([*methods, "popularity"])]
    if domains is None:
        domains = sorted(set(rows["domain"]))
    rows = rows[rows["domain"].isin(domains)]
    if rows.empty:
        return style.note(
            f"No finished run of {', '.join(map(style.method_label, methods))} "
            f"with {name} ({frames.PROTOCOL_LABELS[protocol]}).",
            title=f"{style.dataset_label(dataset)}: {name}",
        )
    table = frames.summary(rows).set_index(["method", "domain"])

    with style.context():
        bar = _GROUP / len(methods)
        inches = max(6.0, 1.15 * len(domains), 0.42 + 0.21 * len(domains) * len(methods) / _GROUP)
        figure = style.canvas(inches + 0.8, 3.9)
        axes = figure.add_subplot()
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
        figure.suptitle(f"{title}\n{_about_seeds(shown['seeds'])}", fontsize=10)
        colors = style.method_colors(methods)
        handles: list[Patch | Line2D] = [
            Patch(facecolor=colors[m], edgecolor=style.INK, lw=0.6, label=style.method_label(m))
            for m in methods
        ]
        if "popularity" in table.index.get_level_values("method"):
            handles.append(Line2D([], [], color="black", lw=1.2, ls=(0, (4, 2))))
            handles[-1].set_label(style.method_label("popularity"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


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
