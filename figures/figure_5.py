"""Figure 5: the learned weights alpha, round by round, one panel per client.

Each line is the weight that the panel's client gives to one source's direction, as the mean over
adapted layers; the paper shows the curves without saying how layers are summarised, so the mean
and the band are our choice.
"""

import math

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from figures import select, style

BAND = (0.1, 0.9)
_COLUMNS = ("dataset", "method", "seed", "round", "client", "source", "layer", "alpha", "run")
_TIDY = ["client", "source", "round", "mean", "low", "high", "layers", "seeds", "runs"]


def numbers(alphas: pd.DataFrame, dataset: str, method: str = "fedecider") -> pd.DataFrame:
    """client, source, round, mean, low, high, layers, seeds, runs: one row per point of a curve.

    ``alphas`` is the frame of ``fedecider.results.alphas`` (rounds from 1 on, alpha of any sign).
    ``mean`` averages over layers within a seed, then over seeds; ``low`` and ``high`` are the 10 %
    and 90 % quantiles of all single values (layer, seed). Raises ValueError for a lacking column.
    """
    select.require(alphas, _COLUMNS, "alphas")
    rows = alphas[(alphas["dataset"] == dataset) & (alphas["method"] == method)]
    rows = rows[(rows["client"] != rows["source"]) & rows["alpha"].notna()]
    keys = ["client", "source", "round"]
    rows = rows.astype({"alpha": float})  # a frame without rows may have no numeric columns
    per_seed = rows.groupby([*keys, "seed"])["alpha"].mean()
    single = rows.groupby(keys)
    out = pd.DataFrame(
        {
            "mean": per_seed.groupby(keys).mean(),
            "low": single["alpha"].quantile(BAND[0]),
            "high": single["alpha"].quantile(BAND[1]),
            "layers": single["layer"].nunique(),
            "seeds": single["seed"].nunique(),
            "runs": single["run"].agg(select.joined),
        }
    )
    return out.reset_index().sort_values(keys, ignore_index=True)[_TIDY]


def plot(numbers: pd.DataFrame, dataset: str) -> Figure:
    """One panel per client (shared axes), one line per source, a band for layers and seeds."""
    title = f"{style.dataset_label(dataset)}: learned weights of the other clients' directions"
    if numbers.empty:
        return style.note("No finished run that learns weights.", title=title)
    clients = sorted(set(numbers["client"]))
    domains = sorted({*numbers["client"], *numbers["source"]})
    colors = style.domain_colors(domains)
    markers = {domain: style.MARKERS[i % len(style.MARKERS)] for i, domain in enumerate(domains)}
    columns = len(clients) if len(clients) <= 4 else math.ceil(math.sqrt(len(clients)))
    height = math.ceil(len(clients) / columns)
    first, last = int(numbers["round"].min()), int(numbers["round"].max())
    with style.context():
        figure = style.canvas(max(2.5 * columns + 0.6, 5.6), 2.35 * height + 1.15)
        grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for axes, client in zip(grid.flat, clients, strict=False):
            axes.axhline(0, color=style.FAINT, lw=0.9, zorder=1)
            _curves(axes, numbers[numbers["client"] == client], colors, markers, first == last)
            axes.set_title(f"client: {style.domain_label(client)}", fontsize=9)
            if last - first < 8:
                axes.set_xticks(range(first, last + 1))
            else:
                axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        grid[0, 0].set_xlim(first - 0.3, last + 0.3)
        for axes in grid.flat[len(clients) :]:
            axes.set_visible(False)
        for column in range(columns):  # the lowest panel of each column names the axis
            used = [r for r in range(height) if r * columns + column < len(clients)]
            grid[used[-1], column].set_xlabel("round")
            grid[used[-1], column].tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel(r"weight $\alpha$")
        layers, seeds = int(numbers["layers"].max()), int(numbers["seeds"].max())
        of = f"{layers} layer{'s' * (layers > 1)}, {seeds} seed{'s' * (seeds > 1)}"
        about = f"lines: mean; bands: 10–90 % of single weights ({of})"
        figure.suptitle(f"{title}\n{about}", fontsize=10)
        handles = [
            Line2D([], [], color=colors[d], marker=markers[d], ms=4, label=style.domain_label(d))
            for d in domains
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles) if len(handles) <= 4 else 3,
            title="source of the direction",
        )
    return figure


def _curves(
    axes: Axes,
    rows: pd.DataFrame,
    colors: dict[str, str],
    markers: dict[str, str],
    single_round: bool,
) -> None:
    """A client's lines and bands; a ``single_round`` has bars, side by side, in place of bands."""
    rows = rows.assign(x=rows["round"].astype(float))
    sources = list(dict.fromkeys(rows["source"]))
    shade = 0.16 if len(sources) <= 2 else 0.06
    for k, (source, line) in enumerate(rows.groupby("source")):
        look = {"color": colors[source]}
        x = line["round"] + (0.04 * (k - (len(sources) - 1) / 2) if single_round else 0)
        rows.loc[line.index, "x"] = x
        if single_round:
            axes.vlines(x, line["low"], line["high"], lw=3, alpha=0.3, **look)
            continue
        axes.fill_between(x, line["low"], line["high"], alpha=shade, lw=0, **look)
        for edge in ("low", "high"):  # keeps overlapping bands apart
            axes.plot(x, line[edge], alpha=0.45, lw=0.6, **look)
    every = max((rows["round"].max() - rows["round"].min()) // 10, 1)
    named = rows.assign(source=rows["source"].map(style.domain_label))
    names = [style.domain_label(source) for source in sources]
    sns.lineplot(
        named, x="x", y="mean", hue="source", hue_order=names, style="source", style_order=names,
        palette=[colors[s] for s in sources], markers=[markers[s] for s in sources], dashes=False,
        errorbar=None, lw=1.6, ms=4.4, mec="none", markevery=every, legend=False, ax=axes,
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
