"""Figure 1: the federated cross-domain setting, and what averaging costs in it.

Left: the setting, drawn by code. Right: Hit@5 of federated averaging against local training, domain
by domain. The paper's caption speaks of three domains of one data set; the protocol behind it is
not public, so the caller names the protocol and each gets a figure of its own. The drawing is our
own.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import aggregate, drawing, select, style

_GROUP = 0.82  # share of a domain's slot that its bars fill
_SETTING = (5.0, 3.7)  # inches of the drawing
_MOST = 3  # clients drawn; more are counted
_PAIRS = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 2))  # who chose what, in the sketch of data
_DASHES = (0, (4, 2))


def numbers(
    metrics: pd.DataFrame,
    dataset: str,
    protocol: str,
    *,
    methods: Sequence[str] = ("local", "fedavg"),
    reference: str = "popularity",
    metric: str = "hit@5",
    ranker: str | None = None,
    domains: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row per method, domain (and "mean"): what the bars and the line of ``reference`` show.

    Columns: those of :func:`figures.aggregate.by_domain` with the methods' label, family, color and
    order, and protocol, ranker, reference (bool). mean and sd are shares (0..1); a method of
    ``methods`` that no run provides in a domain is a row without a mean. Raises ValueError as
    :func:`figures.select.scores` does.
    """
    ranker = select.ranker_of(metrics, dataset, protocol) if ranker is None else ranker
    rows = select.scores(metrics, dataset, protocol, ranker)
    rows = rows[(rows["metric"] == metric) & rows["method"].isin([*methods, reference])]
    if domains is not None:
        rows = rows[rows["domain"].isin(domains)]
    out = aggregate.by_domain(rows)
    if len(out):
        groups = sorted(set(out["domain"]) - {select.MEAN}) + [select.MEAN]
        present = [method for method in (*methods, reference) if method in set(out["method"])]
        index = [(m, d, metric) for m in dict.fromkeys([*methods, *present]) for d in groups]
        keys = ["method", "domain", "metric"]
        out = out.set_index(keys).reindex(pd.MultiIndex.from_tuples(index, names=keys))
        out = out.reset_index().fillna({"seeds": 0, "users": 0, "runs": ""})
        out = out.astype({"seeds": int, "users": int})
    out = select.describe(out, select.methods(metrics, names=[*methods, reference]))
    return out.assign(
        protocol=protocol, ranker=ranker, reference=(out["method"] == reference).astype(bool)
    )


def plot(numbers: pd.DataFrame, dataset: str) -> Figure:
    """The setting beside grouped bars, one group per domain, one bar per method, in %.

    Bars are means over seeds; error bars, drawn where there is more than one seed, are the sample
    standard deviation over seeds; a dashed line is the reference. A bar that no run provides is a
    gap marked "not run". Without any row the figure is a note that says so.
    """
    if numbers.empty:
        return style.note("No finished run to compare.", title=style.dataset_label(dataset))
    rows = numbers[numbers["domain"] != select.MEAN]
    rows = rows.assign(mean=100 * rows["mean"], sd=100 * rows["sd"])
    lines = rows[rows["reference"]].set_index("domain")["mean"].to_dict()
    shown = rows[~rows["reference"]]
    domains, labels = sorted(set(rows["domain"])), list(dict.fromkeys(shown["label"]))
    protocol, ranker, metric = rows[["protocol", "ranker", "metric"]].iloc[0]
    name = style.metric_label(metric)
    with style.context():
        inches = max(5.6, 1.15 * len(domains), 0.42 + 0.21 * len(shown) / _GROUP)
        figure = style.canvas(_SETTING[0] + inches + 1.0, _SETTING[1] + 0.6)
        left, right = figure.subfigures(1, 2, width_ratios=(_SETTING[0], inches + 0.8))
        axes = right.add_subplot()
        narrow = inches * _GROUP / len(shown) < 0.42  # too narrow for a number lying flat
        largest = (rows["mean"] + rows["sd"].fillna(0)).max() or 1.0
        axes.set_ylim(0, largest * (1.24 if narrow else 1.11))
        texts = [f"{mean:.1f}" for mean in shown["mean"]]
        turn = 90 if narrow else 0
        drawing.bars(axes, shown, domains, texts, share=_GROUP, turn=turn, lines=lines)
        axes.set_ylim(0, largest * (1.24 if narrow else 1.11))
        for x, domain in enumerate(domains):
            if domain in lines:
                ends = (x - _GROUP / 2 - 0.04, x + _GROUP / 2 + 0.04)
                axes.hlines(lines[domain], *ends, color="black", lw=1.2, ls=_DASHES)
        letters = max(int(inches / len(domains) * 12), 8)  # that fit under a group
        names = [style.wrapped(style.domain_label(domain), letters) for domain in domains]
        axes.set_xticks(range(len(domains)), names)
        axes.set_ylabel(f"{name} (%)")
        how = select.protocol_label(protocol) + (f" (ranker: {ranker})" if ranker else "")
        title = f"{style.dataset_label(dataset)}: {name}, {how}"
        right.suptitle(f"{title}\n{_about_seeds(shown['seeds'])}", fontsize=10)
        colors = dict(zip(shown["label"], shown["color"], strict=True))
        handles: list[Patch | Line2D] = [
            Patch(facecolor=colors[label], edgecolor=style.INK, lw=0.6, label=label)
            for label in labels
        ]
        if lines:
            label = rows.loc[rows["reference"], "label"].iloc[0]
            handles.append(Line2D([], [], color="black", lw=1.2, ls=_DASHES, label=label))
        right.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
        _setting(left, domains)
    return figure


def _setting(figure: SubFigure, domains: list[str]) -> None:
    """Server above, clients below, what travels between them; in inches."""
    axes = drawing.sheet(figure.add_subplot(), *_SETTING)
    figure.suptitle(
        "The setting: one client per domain,\nraw interactions never leave it", fontsize=10
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
            middle = (x + side / 2 + 1.25 * shift, 2.62)
            axes.text(*middle, text, ha=align, va="center", fontsize=7.5)
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
    columns = [x + side / 2 + 0.36 * (k - 1) for k in range(3)]
    for user, item in _PAIRS:
        axes.plot(
            [columns[user], columns[item]], [high, low], color=style.FAINT, lw=0.7, zorder=2.5
        )
    axes.plot(columns, [high] * 3, "o", color=color, ms=6, mec=style.INK, mew=0.5, zorder=3)
    axes.plot(columns, [low] * 3, "s", color=color, ms=6, mec=style.INK, mew=0.5, zorder=3)
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


def _about_seeds(seeds: pd.Series) -> str:
    seeds = seeds[seeds > 0]
    if seeds.empty or seeds.max() == 1:
        return aggregate.about_seeds(seeds)
    low, high = int(seeds.min()), int(seeds.max())
    count = f"{high}" if low == high else f"{low} to {high}"
    return f"bars: mean over {count} seeds; error bars: sd over seeds"
