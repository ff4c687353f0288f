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
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from figures import aggregate, drawing, select, style, update_geometry

_TEXT = ["panel", "method", "label", "color", "baseline", "metric", "protocol", "domain", "other"]
_TEXT += ["layer"]
_TIDY = [*_TEXT, "mean", "sd", "seeds", "runs"]
_SPREADS = ("within", "between")  # pairs of clients
_LAYER, _MEAN = "#56B4E9", "#D55E00"


def numbers(
    metrics: pd.DataFrame,
    geometry: pd.DataFrame,
    dataset: str,
    protocol: str = "sampled",
    *,
    methods: Sequence[str] = ("fedavg", "lora-sim"),
    baseline: str = "local",
    metric: str = "ndcg@5",
) -> pd.DataFrame:
    """All that is drawn, one row per bar, point or cell.

    Columns: panel, method, label, color, baseline (label), metric, protocol, domain, other,
    layer, mean, sd, seeds, runs. ``panel`` is "change" (points of the metric less those
    of ``baseline``, :func:`figures.aggregate.changes`; a method without a run in a domain is a row
    without a mean), "norm", "cosine" or "separation" (see :mod:`figures.update_geometry`; of the
    last, the layers are "within" and "between" pairs); columns that a panel does not have are
    empty. Raises ValueError as :func:`figures.select.scores`
    does, and for a lacking column.
    """
    change = aggregate.changes(metrics, dataset, protocol, methods, baseline, metric)
    norm = update_geometry.norms(geometry, dataset, baseline).assign(method=baseline)
    cosine = update_geometry.cosines(geometry, dataset, baseline).assign(method=baseline)
    domains = sorted({*change["domain"], *norm["domain"]})
    keys = pd.MultiIndex.from_product([methods, domains], names=["method", "domain"])
    if len(change) or not len(keys):
        change = change.set_index(["method", "domain"])
    else:  # nothing to index: the gaps alone
        change = pd.DataFrame(index=keys, columns=["mean", "sd", "seeds", "runs"], dtype=float)
    change = change.reindex(keys).reset_index().fillna({"seeds": 0})
    change = change.assign(metric=metric, protocol=protocol)
    parts = {"change": change, "norm": norm, "cosine": cosine}
    parts["separation"] = _separation(cosine).assign(method=baseline)
    parts = [part.assign(panel=panel) for panel, part in parts.items() if len(part)]
    if not parts:
        return pd.DataFrame(columns=_TIDY)
    out = pd.concat(parts, ignore_index=True)
    known = select.methods(metrics, geometry, names=[*methods, baseline])
    out = select.describe(out, known).assign(baseline=known.at[baseline, "label"])
    out = out.reindex(columns=_TIDY)
    text = [*_TEXT, "runs"]
    out = out.assign(**{name: out[name].astype(object).fillna("") for name in text})
    return out.astype({"mean": float, "sd": float, "seeds": int})


def plot(numbers: pd.DataFrame, dataset: str) -> Figure:
    """The four panels. Parts without runs say so; without any the figure is a note."""
    title = f"{style.dataset_label(dataset)}: what averaging loses, and the updates' geometry"
    if numbers.empty:
        return style.note("No finished runs to compare.", title=title)
    domains = sorted(set(numbers["domain"]) - {""})
    panels = ("change", "norm", "cosine", "separation")
    change, norm, cosine, apart = (numbers[numbers["panel"] == panel] for panel in panels)
    base = numbers["baseline"].iloc[0]
    pairs = math.comb(len(domains), 2)
    with style.context():
        figure = style.canvas(max(11.0, 1.5 * len(domains) + 4), 4.6 + max(3.2, 0.34 * pairs))
        grid = figure.add_gridspec(2, 2, height_ratios=(3.6, max(3.2, 0.34 * pairs)))
        first, *others = (figure.add_subplot(grid[i // 2, i % 2]) for i in range(4))
        _changes(first, change, domains, base)
        if norm.empty:
            for axes, letter in zip(others, "bcd", strict=True):
                axes.set_title(f"({letter})")
                drawing.say(axes, f"updates of {base}: {drawing.NOT_RUN}")
        else:
            seeds = int(norm["seeds"].max())
            when = "one seed" if seeds == 1 else f"mean ± sd over {seeds} seeds"
            _norms(others[0], norm, domains)
            others[0].set_title(f"(b) Norm of the update of {base}, by layer\nlast round, {when}")
            _cosines(others[1], cosine, domains)
            others[1].set_title(f"(c) Cosine between updates of {base}\nmean over layers")
            _spread(others[2], cosine)
            spreads = apart.set_index("layer")["mean"]
            within, between = (_known(spreads.get(kind, math.nan)) for kind in _SPREADS)
            others[2].set_title(
                "(d) The same, layer by layer: sd over the layers\n"
                f"of a pair {within}, sd between the pairs' means {between}"
            )
        figure.suptitle(title)
    return figure


def _separation(cosines: pd.DataFrame) -> pd.DataFrame:
    """layer ("within", "between"), mean, seeds, runs of the cosines; no row without any."""
    if cosines.empty:
        return cosines
    rows = pd.DataFrame({"layer": _SPREADS, "mean": update_geometry.separation(cosines)})
    return rows.assign(seeds=cosines["seeds"].max(), runs=select.joined(cosines["runs"]))


def _changes(axes: Axes, part: pd.DataFrame, domains: Sequence[str], base: str) -> None:
    """Grouped bars from the zero line, which is the baseline."""
    texts = [style.number(mean, 1, sign=True) for mean in part["mean"]]
    drawing.bars(axes, part, domains, texts, share=0.8)
    sd, mean = part["sd"].fillna(0), part["mean"].fillna(0)
    room = 0.16 * ((mean.abs() + sd).max() or 1.0)
    axes.set_ylim(min((mean - sd).min(), 0) - room, max((mean + sd).max(), 0) + room)
    axes.axhline(0, color=style.INK, lw=0.9)
    _name_columns(axes, domains)
    name = style.metric_label(part["metric"].iloc[0])
    axes.set_ylabel(f"{name} less that of {base} (points)")
    axes.set_title(
        f"(a) {name} against {base} (below 0: lost)\n"
        f"{select.protocol_label(part['protocol'].iloc[0])}; {aggregate.about_seeds(part['seeds'])}"
    )
    colors = dict(zip(part["label"], part["color"], strict=True))
    look = {"edgecolor": style.INK, "lw": 0.6}
    handles = [Patch(facecolor=color, label=name, **look) for name, color in colors.items()]
    drawing.legend_below(axes, handles, len(handles))


def _norms(axes: Axes, part: pd.DataFrame, domains: Sequence[str]) -> None:
    """One colour and marker per domain, one line style per kind of layer, blocks along x."""
    whole = part[part["layer"] == "all"].set_index("domain")["mean"]
    rows = part[part["layer"] != "all"]
    blocks, kinds_of = zip(*map(_block_and_kind, rows["layer"]), strict=True)
    rows = rows.assign(block=blocks, kind=kinds_of)
    domains, kinds = [d for d in domains if d in whole], sorted(set(rows["kind"]))
    colors = style.domain_colors(domains)
    dashes = dict(zip(kinds, ["", (4, 2), (1, 1.5), (4, 2, 1, 2)] * len(kinds), strict=False))
    sns.lineplot(
        rows, x="block", y="mean", hue="domain", hue_order=domains, palette=colors, style="kind",
        style_order=kinds, dashes=dashes, errorbar=None, lw=1.3, legend=False, ax=axes,
    )  # fmt: skip
    handles = []
    for i, domain in enumerate(domains):
        mark, color = style.MARKERS[i % len(style.MARKERS)], colors[domain]
        for k, kind in enumerate(kinds):
            line = rows[(rows["domain"] == domain) & (rows["kind"] == kind)]
            sd = line["sd"] if (line["seeds"] > 1).any() else None
            look = {"color": color, "mfc": color if k == 0 else "white", "elinewidth": 0.7}
            axes.errorbar(line["block"], line["mean"], sd, marker=mark, ms=4, ls="", **look)
        label = f"{style.domain_label(domain)} (all layers: {style.number(whole[domain], 1)})"
        handles.append(Line2D([], [], color=color, marker=mark, ms=4, label=label))
    for kind in kinds:
        line = Line2D([], [], color=style.INK, label=kind)
        handles.append(line)
        if dashes[kind]:
            line.set_linestyle((0, dashes[kind]))
    axes.set_ylim(0, 1.08 * (rows["mean"] + rows["sd"].fillna(0)).max() or 1.0)
    first, last = rows["block"].min(), rows["block"].max()
    axes.set_xlim(first - 0.5, last + 0.5)
    if last - first < 12:
        axes.set_xticks(range(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.set(xlabel="block of the language model", ylabel="Frobenius norm of the update")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    drawing.legend_below(axes, handles, 2)


def _cosines(axes: Axes, part: pd.DataFrame, domains: Sequence[str]) -> None:
    """Mean cosines with their numbers; the colours span -1 to 1, so what is near 0 looks so."""
    mean = part[part["layer"] == "mean"].pivot(index="domain", columns="other", values="mean")
    square = mean.reindex(index=domains, columns=domains)
    bar = axes.inset_axes((1.02, 0, 0.03, 1))
    drawing.heatmap(axes, square, 3, palette="RdBu_r", limits=(-1.0, 1.0), bar=bar)
    _name_columns(axes, domains, 0.5)
    axes.set_yticks(np.arange(len(domains)) + 0.5, [_wrapped(d) for d in domains], rotation=0)


def _spread(axes: Axes, part: pd.DataFrame) -> None:
    """One row per pair: a dot per layer, a diamond for their mean."""
    once = part[part["domain"] < part["other"]].sort_values(["domain", "other"])
    pairs = list(dict.fromkeys(zip(once["domain"], once["other"], strict=True)))
    apart = " –\n" if len(pairs) <= 6 else " – "
    labels = [style.domain_label(a) + apart + style.domain_label(b) for a, b in pairs]
    names = dict(zip(pairs, labels, strict=True))
    pair = [names[key] for key in zip(once["domain"], once["other"], strict=True)]
    once = once.assign(pair=pair)
    # Seaborn's jitter is random: rows are shifted by their position instead.
    for row, label in enumerate(labels):
        layers = once[(once["pair"] == label) & (once["layer"] != "mean")]["mean"]
        shift = np.linspace(-0.22, 0.22, len(layers)) if len(layers) > 1 else [0]
        axes.plot(layers, row + np.asarray(shift), "o", ms=3.5, color=_LAYER, mec=style.INK,
                  mew=0.3)  # fmt: skip
    means = once[once["layer"] == "mean"]
    sns.pointplot(
        means, x="mean", y="pair", order=labels, color=_MEAN, marker="D", linestyle="none",
        markersize=6, markeredgecolor=style.INK, markeredgewidth=0.6, errorbar=None, ax=axes,
    )  # fmt: skip
    reach = 1.15 * once["mean"].abs().max() if len(once) else 1.0
    axes.set_xlim(-(reach or 1.0), reach or 1.0)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.axvline(0, color=style.INK, lw=0.9, zorder=1)
    axes.set_yticks(range(len(pairs)), labels, fontsize=7.5 if len(pairs) <= 6 else 7)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="cosine", ylabel="")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    look = {"ls": "", "mec": style.INK}
    handles = [
        Line2D([], [], marker="o", ms=3.5, color=_LAYER, label="one layer", **look),
        Line2D([], [], marker="D", ms=6, color=_MEAN, label="their mean", **look),
    ]
    drawing.legend_below(axes, handles, 2)


def _block_and_kind(layer: str) -> tuple[int, str]:
    """``model.layers.22.self_attn.q_proj`` -> (22, "q_proj"); no number: block 0."""
    block = re.search(r"\.(\d+)\.", layer)
    return int(block[1]) if block else 0, layer.rpartition(".")[2]


def _name_columns(axes: Axes, domains: Sequence[str], shift: float = 0.0) -> None:
    turn = 90 if len(domains) > 4 else 0
    ticks = np.arange(len(domains)) + shift
    axes.set_xticks(ticks, [_wrapped(d) for d in domains], rotation=turn, va="top")


def _wrapped(domain: str) -> str:
    return style.wrapped(style.domain_label(domain), 15)


def _known(value: float) -> str:
    return style.number(value, 3) if value == value else "n/a"
