"""Figure 2: what averaging and similarity weights lose, and the geometry behind it.

(a) NDCG@5 of FedAvg and of LoRA-Sim less that of local training. (b) Norms of the clients'
updates, layer by layer: the scale noise. (c, d) Cosines between the clients' updates: their mean
over layers, and how far they spread over the layers of one pair. Where the spread within a pair is
as large as what tells the pairs apart, a mean cosine measures no relatedness.

The paper's caption names LoRA-Sim and NDCG; that (b) to (d) take the updates of local training
after its last round, and how they are summarised, is our reconstruction.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from figures import drawing, frames, per_run, style, update_geometry

_TIDY = ["panel", "method", "domain", "other", "layer", "mean", "sd", "seeds", "runs"]
_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")


def numbers(
    metrics: pd.DataFrame,
    geometry: pd.DataFrame,
    dataset: str,
    protocol: str = "sampled",
    *,
    methods: Sequence[str] = ("fedavg", "lora-sim"),
    against: str = "local",
    metric: str = "ndcg@5",
) -> pd.DataFrame:
    """All that is drawn: panel, method, domain, other, layer, mean, sd, seeds, runs.

    ``panel`` is "change" (points of the metric, :func:`figures.per_run.changes`), "norm" or
    "cosine" (see :mod:`figures.update_geometry`); columns that a panel does not have are empty.
    """
    parts = {
        "change": per_run.changes(metrics, dataset, protocol, methods, against, metric),
        "norm": update_geometry.norms(geometry, dataset, against).assign(method=against),
        "cosine": update_geometry.cosines(geometry, dataset, against).assign(method=against),
    }
    parts = [part.assign(panel=panel) for panel, part in parts.items() if len(part)]
    out = pd.concat([pd.DataFrame(columns=_TIDY, dtype=object), *parts], ignore_index=True)
    text = ["panel", "method", "domain", "other", "layer"]
    return out[_TIDY].assign(**{c: out[c].fillna("") for c in text}).astype({"mean": float})


def scale_noise(
    metrics: pd.DataFrame,
    geometry: pd.DataFrame,
    dataset: str,
    protocol: str = "sampled",
    *,
    methods: Sequence[str] = ("fedavg", "lora-sim"),
    against: str = "local",
    metric: str = "ndcg@5",
) -> Figure:
    """The four panels. Parts without runs say so; without any the figure is a note.

    ``metrics`` and ``geometry`` are the frames of ``fedecider.runs``. Raises ValueError as
    :func:`figures.frames.scores` does, and for a lacking column.
    """
    found = numbers(
        metrics, geometry, dataset, protocol, methods=methods, against=against, metric=metric
    )
    name, base = style.metric_label(metric), style.method_label(against)
    title = f"{style.dataset_label(dataset)}: what averaging loses, and the updates' geometry"
    if found.empty:
        return style.note(
            f"No finished runs of {base} and of a method to hold against it.", title=title
        )
    domains = sorted(set(found["domain"]))
    parts = {panel: found[found["panel"] == panel] for panel in ("change", "norm", "cosine")}
    pairs = math.comb(len(domains), 2)
    with style.context():
        figure = style.canvas(max(11.0, 1.5 * len(domains) + 4), 4.6 + max(3.2, 0.34 * pairs))
        grid = figure.add_gridspec(2, 2, height_ratios=(3.6, max(3.2, 0.34 * pairs)))
        panels = [figure.add_subplot(grid[i // 2, i % 2]) for i in range(4)]
        _changes(panels[0], parts["change"], methods, domains)
        panels[0].set_ylabel(f"{name} less that of {base} (points)")
        panels[0].set_title(
            f"(a) {name} against {base} (below 0: lost)\n{frames.PROTOCOL_LABELS[protocol]}; "
            f"{per_run.about_seeds(parts['change']['seeds'])}"
        )
        if parts["norm"].empty:
            for axes, letter in zip(panels[1:], "bcd", strict=True):
                axes.set_title(f"({letter})")
                drawing.say(axes, f"updates of {base}: not run")
        else:
            _norms(panels[1], parts["norm"], domains)
            panels[1].set_title(f"(b) Norm of the update of {base}, by layer\n{_when(parts)}")
            _heatmap(panels[2], parts["cosine"], domains)
            panels[2].set_title(f"(c) Cosine between updates of {base}\nmean over layers")
            _spread(panels[3], parts["cosine"])
            within, between = update_geometry.separation(parts["cosine"])
            panels[3].set_title(
                "(d) The same, layer by layer: sd over the layers\n"
                f"of a pair {_known(within)}, sd between the pairs' means {_known(between)}"
            )
        figure.suptitle(title)
    return figure


def _changes(
    axes: Axes, part: pd.DataFrame, methods: Sequence[str], domains: Sequence[str]
) -> None:
    """Grouped bars from the zero line, which is the method compared with."""
    table, colors = part.set_index(["method", "domain"]), style.method_colors(methods)
    bar = 0.8 / len(methods)
    for d, domain in enumerate(domains):
        for m, method in enumerate(methods):
            x = d + (m - (len(methods) - 1) / 2) * bar
            if (method, domain) not in table.index:
                axes.annotate(
                    drawing.NOT_RUN, (x, 0), xytext=(0, 4), textcoords="offset points",
                    ha="center", va="bottom", rotation=90, fontsize=7.5, color=style.FAINT,
                )  # fmt: skip
                continue
            row = table.loc[(method, domain)]
            sd = 0.0 if pd.isna(row["sd"]) else row["sd"]
            axes.bar(x, row["mean"], 0.9 * bar, color=colors[method], edgecolor=style.INK, lw=0.6)
            if row["seeds"] > 1:
                axes.errorbar(x, row["mean"], sd, color=style.INK, capsize=2.5, lw=1, zorder=3)
            up = row["mean"] >= 0
            axes.annotate(
                style.number(row["mean"], 1, sign=True),
                (x, row["mean"] + (sd if up else -sd)),
                xytext=(0, 3 if up else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if up else "top",
                fontsize=7.5,
            )
    reach = (part["mean"].abs() + part["sd"].fillna(0)).max() if len(part) else 1.0
    low = (part["mean"] - part["sd"].fillna(0)).min() if len(part) else 0.0
    high = (part["mean"] + part["sd"].fillna(0)).max() if len(part) else 1.0
    room = 0.16 * (reach or 1.0)
    axes.set_ylim(min(low, 0) - room, max(high, 0) + room)
    axes.axhline(0, color=style.INK, lw=0.9)
    axes.set_xlim(-0.5, len(domains) - 0.5)
    _name_columns(axes, domains)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    handles = [
        Patch(facecolor=colors[m], edgecolor=style.INK, lw=0.6, label=style.method_label(m))
        for m in methods
    ]
    _below(axes, handles, len(methods))


def _norms(axes: Axes, part: pd.DataFrame, domains: Sequence[str]) -> None:
    """One colour and marker a domain, one line style a kind of layer, blocks along x."""
    whole = part[part["layer"] == "all"].set_index("domain")["mean"]
    rows = part[part["layer"] != "all"]
    places = [_place(layer) for layer in rows["layer"]]
    rows = rows.assign(block=[p[0] for p in places], kind=[p[1] for p in places])
    kinds, colors = sorted(set(rows["kind"])), style.domain_colors(domains)
    handles = []
    for i, domain in enumerate(d for d in domains if d in whole):
        mark, color = style.MARKERS[i % len(style.MARKERS)], colors[domain]
        for k, kind in enumerate(kinds):
            line = rows[(rows["domain"] == domain) & (rows["kind"] == kind)].sort_values("block")
            axes.errorbar(
                line["block"],
                line["mean"],
                line["sd"] if (line["seeds"] > 1).any() else None,
                color=color,
                marker=mark,
                ms=4,
                mfc=color if k == 0 else "white",
                lw=1.3,
                ls=_LINES[k % len(_LINES)],
                elinewidth=0.7,
                capsize=1.5,
            )
        label = f"{style.domain_label(domain)} (all layers: {style.number(whole[domain], 1)})"
        handles.append(Line2D([], [], color=color, marker=mark, ms=4, label=label))
    for k, kind in enumerate(kinds):
        handles.append(Line2D([], [], color=style.INK, ls=_LINES[k % len(_LINES)], label=kind))
    axes.set_ylim(0, 1.08 * (rows["mean"] + rows["sd"].fillna(0)).max() or 1.0)
    first, last = rows["block"].min(), rows["block"].max()
    axes.set_xlim(first - 0.5, last + 0.5)
    if last - first < 12:
        axes.set_xticks(range(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.set_xlabel("block of the language model")
    axes.set_ylabel("Frobenius norm of the update")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    _below(axes, handles, 2)


def _heatmap(axes: Axes, part: pd.DataFrame, domains: Sequence[str]) -> None:
    """Mean cosines with their numbers; the colours span -1 to 1, so what is near 0 looks so."""
    mean = part[part["layer"] == "mean"].set_index(["domain", "other"])["mean"]
    norm, colors = Normalize(-1, 1), colormaps["RdBu_r"]
    for r, domain in enumerate(domains):
        for c, other in enumerate(domains):
            value = mean.get((domain, other), math.nan)
            face = colors(norm(value)) if value == value else "white"
            hatch = "////" if r == c else None
            corner, edge = (c - 0.5, r - 0.5), "#c8c8c8"
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=edge, hatch=hatch))
            if r != c:
                text = style.number(value, 3) if value == value else "–"
                ink = style.ink_on(face)
                axes.text(c, r, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(-0.5, len(domains) - 0.5)
    axes.set_ylim(len(domains) - 0.5, -0.5)
    _name_columns(axes, domains)
    axes.set_yticks(range(len(domains)), [_wrapped(d) for d in domains])
    axes.tick_params(length=0)
    figure = axes.get_figure()
    scale = figure.colorbar(ScalarMappable(norm, colors), ax=axes, fraction=0.05, pad=0.02)
    scale.set_ticks([-1, 0, 1], labels=[style.number(v, 0) for v in (-1, 0, 1)])


def _spread(axes: Axes, part: pd.DataFrame) -> None:
    """One row a pair: a dot a layer, a diamond for their mean."""
    once = part[part["domain"] < part["other"]]
    pairs = sorted(set(zip(once["domain"], once["other"], strict=True)))
    for row, (domain, other) in enumerate(pairs):
        of = once[(once["domain"] == domain) & (once["other"] == other)]
        layers, mean = of[of["layer"] != "mean"]["mean"], of[of["layer"] == "mean"]["mean"]
        shift = np.linspace(-0.22, 0.22, len(layers)) if len(layers) > 1 else [0]
        axes.plot(layers, row + np.asarray(shift), "o", ms=3.5, color="#56B4E9", mec=style.INK,
                  mew=0.3)  # fmt: skip
        axes.plot(mean, [row], "D", ms=6, color="#D55E00", mec=style.INK, mew=0.6)
    reach = 1.15 * once["mean"].abs().max() if len(once) else 1.0
    axes.set_xlim(-(reach or 1.0), reach or 1.0)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.axvline(0, color=style.INK, lw=0.9, zorder=1)
    apart = " –\n" if len(pairs) <= 6 else " – "
    labels = [style.domain_label(a) + apart + style.domain_label(b) for a, b in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=7.5 if len(pairs) <= 6 else 7)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("cosine")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    handles = [
        Line2D([], [], ls="", marker="o", ms=3.5, color="#56B4E9", mec=style.INK, label="a layer"),
        Line2D([], [], ls="", marker="D", ms=6, color="#D55E00", mec=style.INK, label="their mean"),
    ]
    _below(axes, handles, 2)


def _place(layer: str) -> tuple[int, str]:
    """``model.layers.22.self_attn.q_proj`` -> (22, "q_proj"); no number: block 0."""
    block = re.search(r"\.(\d+)\.", layer)
    return int(block[1]) if block else 0, layer.rpartition(".")[2]


def _name_columns(axes: Axes, domains: Sequence[str]) -> None:
    turned = {"rotation": 90, "va": "top"} if len(domains) > 4 else {}
    axes.set_xticks(range(len(domains)), [_wrapped(d) for d in domains], **turned)


def _below(axes: Axes, handles: list, columns: int) -> None:
    """A legend under the axes, clear of what stands there."""
    axes.figure.draw_without_rendering()
    own, box = axes.get_window_extent(), axes.get_tightbbox()
    gap = (own.y0 - box.y0) / own.height + 0.03
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -gap),
        ncols=columns,
        fontsize=7.5,
    )


def _wrapped(domain: str) -> str:
    return style.wrapped(style.domain_label(domain), 15)


def _known(value: float) -> str:
    return style.number(value, 3) if value == value else "n/a"


def _when(parts: dict[str, pd.DataFrame]) -> str:
    seeds = int(parts["norm"]["seeds"].max())
    return f"last round, {'one seed' if seeds == 1 else f'mean ± sd over {seeds} seeds'}"
