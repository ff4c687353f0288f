"""Figure 6: how much FeDecider's result depends on single settings.

A column a setting, every other setting as in the base run; with lines of other methods where the
setting was swept for them, too. Above: NDCG@10 on the 1 + 99 lists, mean over domains. Below:
validation loss of the best round, mean over clients, which is what the settings are chosen by. The
paper's figure is described as a sensitivity study only; which settings and values are shown is our
choice.
"""

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import drawing, frames, per_run, style

FIELDS = ("rank", "rounds", "local_epochs", "alpha_lr", "alpha_init", "lr", "train_users")
LABELS = {
    "lr": "learning rate",
    "train_users": "training users a domain",
    "rank": "rank of LoRA",
    "rounds": "rounds",
    "local_epochs": "local epochs a round",
    "alpha_lr": r"learning rate of $\alpha$",
    "alpha_init": "initial $\\alpha$\n(share of the own norm)",
}
LOSS = "validation loss"
# Held against the method where they have the setting.
OTHERS = ("local", "fedavg", "lora-sim", "centralized")
_COLUMNS = ["method", "field", "value", "base", "measure", "mean", "sd", "seeds", "runs"]
_BAND = "#e6e6e6"


def numbers(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    dataset: str,
    *,
    method: str = "fedecider",
    others: Sequence[str] = OTHERS,
    fields: Sequence[str] = FIELDS,
    metric: str = "ndcg@10",
    protocol: str = "sampled",
) -> pd.DataFrame:
    """method, field, value, base, measure, mean, sd, seeds, runs; values of a field in order.

    The frames are those of ``fedecider.runs`` for the folder of sweeps (see
    :func:`figures.per_run.swept`). ``measure`` is the metric (0..1, mean over domains) or
    "validation loss" (nats a token, mean over clients of their best round); mean and sample
    deviation are over seeds. A field that was not swept has no rows. Raises ValueError where two
    runs hold the same value and seed.
    """
    domains = sorted(set(metrics.loc[metrics["dataset"] == dataset, "domain"]))
    parts = (metrics, rounds, configs, dataset)
    rows = []
    for one, field in itertools.product([method, *others], fields):
        for value, base, ranked, trained in per_run.values_of(*parts, one, field):
            measures = {
                metric: per_run.quality(ranked, dataset, protocol, metric, domains),
                LOSS: per_run.best_loss(trained, dataset),
            }
            for measure, found in measures.items():
                for row in per_run.over_seeds(found, ["method"]).itertuples():
                    key = (one, field, value, base, measure)
                    rows.append((*key, row.mean, row.sd, row.seeds, row.runs))
    out = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)  # a rank of 8 stays 8, not 8.0
    return out.astype({"base": bool, "mean": float, "sd": float, "seeds": int})


def sensitivity(
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    dataset: str,
    *,
    method: str = "fedecider",
    others: Sequence[str] = OTHERS,
    fields: Sequence[str] = FIELDS,
    metric: str = "ndcg@10",
    protocol: str = "sampled",
) -> Figure:
    """A column of two panels a field, a line a method; the base value lies on a grey band.

    Arguments and errors as in :func:`numbers`. Panels of a field without runs say so; without any
    run the figure is a note.
    """
    found = numbers(
        metrics,
        rounds,
        configs,
        dataset,
        method=method,
        others=others,
        fields=fields,
        metric=metric,
        protocol=protocol,
    )
    label = style.method_label(method)
    title = f"{style.dataset_label(dataset)}: sensitivity of {label} to single settings"
    if found.empty:
        return style.note(f"No finished sweep of {label}.", title=title)
    name = f"{style.metric_label(metric)} (%)\n{frames.PROTOCOL_LABELS[protocol]}"
    measures = {metric: (100, name), LOSS: (1, "validation loss\n(nats a token)")}
    with style.context():
        figure = style.canvas(1.2 + 2.15 * len(fields), 5.0)
        grid = figure.subplots(2, len(fields), sharey="row", squeeze=False)
        drawn = [one for one in (method, *others) if (found["method"] == one).any()]
        colors = style.method_colors(drawn)
        for c, field in enumerate(fields):
            rows = found[found["field"] == field]
            values = sorted(dict.fromkeys(rows["value"]), key=per_run.place)
            for axes, (measure, (factor, _)) in zip(grid[:, c], measures.items(), strict=True):
                part = rows[rows["measure"] == measure]
                _panel(axes, part, values, factor, colors)
            grid[1, c].set_xlabel(LABELS.get(field, field.replace("_", " ")))
            grid[0, c].tick_params(labelbottom=False)
        for axes, (_, text) in zip(grid[:, 0], measures.values(), strict=True):
            axes.set_ylabel(text)
        figure.suptitle(f"{title}\n{per_run.about_seeds(found['seeds'])}", fontsize=10)
        handles = [
            Patch(facecolor=_BAND, label="base value"),
            *(
                Line2D([], [], color=color, marker="o", ms=5, label=style.method_label(one))
                for one, color in colors.items()
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, part: pd.DataFrame, values: list, factor: float, colors: dict) -> None:
    """A line a method over the values in order, equally spaced; sd as error bars."""
    if part.empty:
        drawing.say(axes)
        return
    places, half = {value: x for x, value in enumerate(values)}, 0.08 * len(values)
    for value in dict.fromkeys(part.loc[part["base"], "value"]):
        axes.axvspan(places[value] - half, places[value] + half, color=_BAND, lw=0, zorder=0)
    for one, color in reversed(colors.items()):  # the method itself on top
        line = part[part["method"] == one]
        if line.empty:
            continue
        x = [places[value] for value in line["value"]]
        sd = factor * line["sd"] if (line["seeds"] > 1).any() else None
        look = {"color": color, "marker": "o", "ms": 5, "lw": 1.4}
        axes.errorbar(x, factor * line["mean"], sd, elinewidth=1, capsize=2.5, **look)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(range(len(values)), [_text(value) for value in values])
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _text(value) -> str:
    """A value as its axis shows it; None is a setting that was left open."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
