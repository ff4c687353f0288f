"""Figure 6: how much FeDecider's result depends on single settings.

A column a setting, every other setting as in the base run. Above: NDCG@10 on the 1 + 99 lists,
mean over domains. Below: validation loss of the best round, mean over clients, which is what the
settings are chosen by. The paper's figure is described as a sensitivity study only; which settings
and values are shown is our choice.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import drawing, frames, per_run, style

FIELDS = ("rank", "rounds", "local_epochs", "alpha_lr", "alpha_init")
LABELS = {
    "rank": "rank of LoRA",
    "rounds": "rounds",
    "local_epochs": "local epochs a round",
    "alpha_lr": r"learning rate of $\alpha$",
    "alpha_init": "initial $\\alpha$\n(share of the own norm)",
}
LOSS = "validation loss"
_COLUMNS = ["field", "value", "base", "measure", "mean", "sd", "seeds", "runs"]
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
    """field, value, base, measure, mean, sd, seeds, runs; values of a field in order.

    The frames are those of ``fedecider.runs`` for the folder of sweeps (see
    :func:`figures.per_run.swept`). ``measure`` is the metric (0..1, mean over domains) or
    "validation loss" (nats a token, mean over clients of their best round); mean and sample
    deviation are over seeds. A field that was not swept has no rows. Raises ValueError where two
    runs hold the same value and seed.
    """
    mine = (metrics["dataset"] == dataset) & (metrics["method"] == method)
    domains = sorted(set(metrics.loc[mine, "domain"]))
    frames_of = (metrics, rounds, configs, dataset, method)
    rows = []
    for field in fields:
        for value, base, ranked, trained in per_run.values_of(*frames_of, field):
            measures = {
                metric: per_run.quality(ranked, dataset, protocol, metric, domains),
                LOSS: per_run.best_loss(trained, dataset),
            }
            for measure, found in measures.items():
                for row in per_run.over_seeds(found, ["method"]).itertuples():
                    key = (field, value, base, measure)
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
    fields: Sequence[str] = FIELDS,
    metric: str = "ndcg@10",
    protocol: str = "sampled",
) -> Figure:
    """A column of two panels a field; the base value lies on a grey band.

    Arguments and errors as in :func:`numbers`. Panels of a field without runs say so; without any
    run the figure is a note.
    """
    found = numbers(
        metrics,
        rounds,
        configs,
        dataset,
        method=method,
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
        color = style.method_colors([method])[method]
        for c, field in enumerate(fields):
            rows = found[found["field"] == field]
            values = list(dict.fromkeys(rows["value"]))
            for axes, (measure, (factor, _)) in zip(grid[:, c], measures.items(), strict=True):
                part = rows[rows["measure"] == measure]
                _panel(axes, part, values, factor, color)
            grid[1, c].set_xlabel(LABELS.get(field, field.replace("_", " ")))
            grid[0, c].tick_params(labelbottom=False)
        for axes, (_, text) in zip(grid[:, 0], measures.values(), strict=True):
            axes.set_ylabel(text)
        figure.suptitle(f"{title}\n{per_run.about_seeds(found['seeds'])}", fontsize=10)
        handles = [
            Patch(facecolor=_BAND, label="base value"),
            Line2D([], [], color=color, marker="o", ms=5, label="mean over domains"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, part: pd.DataFrame, values: list, factor: float, color: str) -> None:
    """One line over the values in order, equally spaced; sd as error bars."""
    if part.empty:
        drawing.say(axes)
        return
    places, half = {value: x for x, value in enumerate(values)}, 0.08 * len(values)
    x = [places[value] for value in part["value"]]
    for place, base in zip(x, part["base"], strict=True):
        if base:
            axes.axvspan(place - half, place + half, color=_BAND, lw=0, zorder=0)
    sd = factor * part["sd"] if (part["seeds"] > 1).any() else None
    mean = factor * part["mean"]
    axes.errorbar(x, mean, sd, color=color, marker="o", ms=5, lw=1.4, elinewidth=1, capsize=2.5)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(range(len(values)), [_text(value) for value in values])
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _text(value) -> str:
    """A value as its axis shows it; None is a setting that was left open."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
