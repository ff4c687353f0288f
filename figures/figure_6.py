"""Figure 6: how much FeDecider's result depends on single settings.

A column per setting, every other setting as in the base run; with lines of other methods where the
setting was swept for them, too. Above: NDCG@10 on the 1 + 99 lists, mean over domains. Below:
validation loss of the best round, mean over clients, which is what the settings are chosen by. The
paper's figure is described as a sensitivity study only; which settings and values are shown is our
choice.
"""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import aggregate, drawing, select, style, sweeps
from figures.aggregate import LOSS

FIELDS = ("rank", "rounds", "local_epochs", "alpha_lr", "alpha_init", "lr", "train_users")
LABELS = {
    "lr": "learning rate",
    "train_users": "training users per domain",
    "rank": "rank of LoRA",
    "rounds": "rounds",
    "local_epochs": "local epochs per round",
    "alpha_lr": r"learning rate of $\alpha$",
    "alpha_init": "initial $\\alpha$\n(share of the own norm)",
}
_KEYS = ["method", *select.METHOD, "field", "value", "base", "measure", "protocol"]
_COLUMNS = [*_KEYS, "mean", "sd", "seeds", "runs"]
_BAND = "#e6e6e6"


def numbers(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    dataset: str,
    *,
    method: str = "fedecider",
    fields: Sequence[str] = FIELDS,
    metric: str = "ndcg@10",
    protocol: str = "sampled",
) -> pd.DataFrame:
    """One row per method, setting, value and measure; values of a setting in order.

    Columns: method, label, family, color, order, field, value, base, measure, protocol, mean, sd,
    seeds, runs. The frames are those of ``fedecider.results`` for the folder of sweeps (see
    :func:`figures.sweeps.swept`). ``measure`` is the metric (0..1, mean over domains) or
    "validation loss" (nats per token, mean over clients of their best round); mean and sample
    deviation are over seeds. ``method`` comes first, then the other methods that have the setting
    swept. A setting that was not swept has no rows. Raises ValueError where two runs hold the same
    value and seed.
    """
    domains = sorted(set(metrics.loc[metrics["dataset"] == dataset, "domain"]))
    parts = (metrics, rounds, configs, dataset)
    known, rows = select.methods(configs), []
    others = [other for other in known.index if other != method]
    for name, field in ((n, f) for n in [method, *others] for f in fields):
        for value, base, ranked, trained in sweeps.values_of(*parts, name, field):
            measures = {
                metric: aggregate.quality(ranked, dataset, protocol, metric, domains),
                LOSS: aggregate.best_loss(trained, dataset),
            }
            for measure, values in measures.items():
                for row in aggregate.over_seeds(values, ["method"]).itertuples():
                    key = (name, *known.loc[name], field, value, base, measure, protocol)
                    rows.append((*key, row.mean, row.sd, row.seeds, row.runs))
    out = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)  # a rank of 8 stays 8, not 8.0
    return out.astype({"base": bool, "mean": float, "sd": float, "seeds": int})


def plot(
    numbers: pd.DataFrame, dataset: str, fields: Sequence[str] = FIELDS, metric: str = "ndcg@10"
) -> Figure:
    """One column of two panels per setting, one line per method; the base lies on a grey band.

    Panels of a setting without runs say so; without any run the figure is a note.
    """
    if numbers.empty:
        return style.note("No finished sweep.", title=style.dataset_label(dataset))
    label = numbers["label"].iloc[0]
    title = f"{style.dataset_label(dataset)}: sensitivity of {label} to single settings"
    protocol = select.protocol_label(numbers["protocol"].iloc[0])
    name = f"{style.metric_label(metric)} (%)\n{protocol}"
    measures = {metric: (100, name), LOSS: (1, "validation loss\n(nats per token)")}
    colors = dict(zip(numbers["label"], numbers["color"], strict=True))
    with style.context():
        figure = style.canvas(1.2 + 2.15 * len(fields), 5.0)
        grid = figure.subplots(2, len(fields), sharey="row", squeeze=False)
        for c, field in enumerate(fields):
            rows = numbers[numbers["field"] == field]
            values = sorted(dict.fromkeys(rows["value"]), key=sweeps.sort_key)
            for axes, (measure, (factor, _)) in zip(grid[:, c], measures.items(), strict=True):
                _panel(axes, rows[rows["measure"] == measure], values, factor, colors)
            grid[1, c].set_xlabel(LABELS.get(field, field.replace("_", " ")))
            grid[0, c].tick_params(labelbottom=False)
        for axes, (_, text) in zip(grid[:, 0], measures.values(), strict=True):
            axes.set_ylabel(text)
        figure.suptitle(f"{title}\n{aggregate.about_seeds(numbers['seeds'])}", fontsize=10)
        handles = [
            Patch(facecolor=_BAND, label="base value"),
            *(
                Line2D([], [], color=color, marker="o", ms=5, label=label)
                for label, color in colors.items()
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, part: pd.DataFrame, values: list, factor: float, colors: dict) -> None:
    """A line per method over the values in order, equally spaced; sd as error bars."""
    if part.empty:
        drawing.say(axes)
        return
    positions, half = {value: x for x, value in enumerate(values)}, 0.08 * len(values)
    for value in dict.fromkeys(part.loc[part["base"], "value"]):
        axes.axvspan(positions[value] - half, positions[value] + half, color=_BAND, lw=0, zorder=0)
    points = part.assign(
        x=part["value"].map(positions).astype(float),
        y=factor * part["mean"],
        sd=factor * part["sd"],
    )
    for label, color in reversed(colors.items()):  # the method itself on top
        line = points[points["label"] == label]
        if line.empty:
            continue
        look = {"color": color, "marker": "o", "ms": 5.6, "lw": 1.4, "mec": "none"}
        sns.lineplot(line, x="x", y="y", errorbar=None, legend=False, ax=axes, **look)
        if (line["seeds"] > 1).any():
            look = {"color": color, "ls": "", "elinewidth": 1, "capsize": 2.5}
            axes.errorbar(line["x"], line["y"], line["sd"], **look)
    axes.set(xlabel="", ylabel="")
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(range(len(values)), [_text(value) for value in values])
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _text(value) -> str:
    """A value as its axis shows it; None is a setting that was left open."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
