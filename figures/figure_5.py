"""Figure 5: the learned weights alpha, round by round, one panel a client.

Each line is the weight that the panel's client gives to one source's direction, as the mean over
adapted layers; the paper shows the curves without saying how layers are summarised, so the mean
and the band are our choice.
"""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from figures import frames, style

BAND = (0.1, 0.9)


def curves(alphas: pd.DataFrame) -> pd.DataFrame:
    """client, source, round, mean, low, high, runs: over layers and seeds.

    ``mean`` averages over layers within a seed, then over seeds; ``low`` and ``high`` are the
    10 % and 90 % quantiles of all single values (layer, seed).
    """
    keys = ["client", "source", "round"]
    alphas = alphas.astype({"alpha": float})  # a frame without rows may have no numeric columns
    per_seed = alphas.groupby([*keys, "seed"])["alpha"].mean()
    single = alphas.groupby(keys)["alpha"]
    out = pd.DataFrame(
        {
            "mean": per_seed.groupby(keys).mean(),
            "low": single.quantile(BAND[0]),
            "high": single.quantile(BAND[1]),
            "runs": alphas.groupby(keys)["run"].agg(frames.joined),
        }
    )
    return out.reset_index().sort_values(keys, ignore_index=True)


def alpha_convergence(alphas: pd.DataFrame, dataset: str, *, method: str = "fedecider") -> Figure:
    """One panel a client (shared axes), one line a source, a band for layers and seeds.

    ``alphas`` is the frame of ``fedecider.runs.alphas``: dataset, method, seed, round (1-based),
    client, source, layer, alpha (any sign), run. Without rows of this data set and method the
    figure says so. Raises ValueError when the frame lacks a column.
    """
    frames.require(
        alphas,
        ("dataset", "method", "seed", "round", "client", "source", "layer", "alpha", "run"),
        "alphas",
    )
    title = f"{style.dataset_label(dataset)}: learned weights of the other clients' directions"
    rows = alphas[(alphas["dataset"] == dataset) & (alphas["method"] == method)]
    rows = rows[(rows["client"] != rows["source"]) & rows["alpha"].notna()]
    if rows.empty:
        return style.note(f"No finished run of {style.method_label(method)}.", title=title)

    lines = curves(rows)
    clients = sorted(set(rows["client"]))
    domains = sorted(set(rows["client"]) | set(rows["source"]))
    colors = style.domain_colors(domains)
    markers = {domain: style.MARKERS[i % len(style.MARKERS)] for i, domain in enumerate(domains)}
    columns = len(clients) if len(clients) <= 4 else math.ceil(math.sqrt(len(clients)))
    height = math.ceil(len(clients) / columns)
    first, last = int(rows["round"].min()), int(rows["round"].max())
    shade = 0.16 if len(domains) <= 3 else 0.06

    with style.context():
        figure = style.canvas(max(2.5 * columns + 0.6, 5.6), 2.35 * height + 1.15)
        grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
        for axes, client in zip(grid.flat, clients, strict=False):
            axes.axhline(0, color=style.FAINT, lw=0.9, zorder=1)
            of_client = lines[lines["client"] == client]
            for k, (source, line) in enumerate(of_client.groupby("source")):
                color = colors[source]
                if first == last:  # a band of one round has no width: bars, side by side
                    line = line.assign(round=first + 0.04 * (k - (len(of_client) - 1) / 2))
                    axes.vlines(
                        line["round"], line["low"], line["high"], color=color, lw=3, alpha=0.3
                    )
                axes.fill_between(
                    line["round"], line["low"], line["high"], color=color, alpha=shade, lw=0
                )
                for edge in ("low", "high"):  # keeps overlapping bands apart
                    axes.plot(line["round"], line[edge], color=color, alpha=0.45, lw=0.6)
                axes.plot(
                    line["round"],
                    line["mean"],
                    color=color,
                    lw=1.6,
                    marker=markers[source],
                    ms=3.6,
                    markevery=max((last - first) // 10, 1),
                    label=style.domain_label(source),
                )
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
        figure.suptitle(f"{title}\n{_about(rows)}", fontsize=10)
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


def _about(rows: pd.DataFrame) -> str:
    layers, seeds = rows["layer"].nunique(), rows["seed"].nunique()
    of = f"{layers} layer{'s' * (layers > 1)}, {seeds} seed{'s' * (seeds > 1)}"
    return f"lines: mean; bands: 10–90 % of single weights ({of})"
