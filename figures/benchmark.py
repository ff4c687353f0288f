"""The benchmark's table and figures: ratios inside one run, and growth along four axes."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from figures import style
from figures.table import GAP, markdown_lines

_OURS, _MISSED = "#0072B2", "#D55E00"
_LEAST = {"seconds": 1e-4, "mib": 1.0}  # what is less counts as that on a logarithmic axis
_COLUMNS = ("part", "ours", "against", "ratio", "low", "high", "at_least", "limit_share")


def summary(rows: list[Mapping]) -> pd.DataFrame:
    """One row per comparison: part, ours, against, ratio (median), low, high (over runs), at_least.

    Each mapping has part, ours, against, `ratios` (a series, one per run; more is better), at_least
    and limit_share, the share of the machine's matmul rate that ours reached (nan: not a matter of
    floating-point operations).
    """
    table = [
        {
            **{name: row[name] for name in ("part", "ours", "against", "at_least", "limit_share")},
            "ratio": row["ratios"].median(),
            "low": row["ratios"].min(),
            "high": row["ratios"].max(),
        }
        for row in rows
    ]
    return pd.DataFrame(table, columns=list(_COLUMNS))


def bars(table: pd.DataFrame, title: str) -> Figure:
    """One bar per comparison, log axis: median ratio, range over runs, and what is asked."""
    with style.context():
        figure = style.canvas(7.6, 1.3 + 0.52 * len(table))
        axes = figure.add_subplot()
        colors = [_MISSED if row.ratio < row.at_least else _OURS for row in table.itertuples()]
        rows = [str(y) for y in range(len(table))]
        sns.barplot(
            x=list(table["ratio"]), y=rows, order=rows, hue=rows, hue_order=rows,
            palette=colors, saturation=1, width=0.62, errorbar=None, legend=False, ax=axes,
        )  # fmt: skip
        for y, row in enumerate(table.itertuples()):
            error = [[row.ratio - row.low], [row.high - row.ratio]]
            axes.errorbar(row.ratio, y, xerr=error, color=style.INK, capsize=3, lw=1.1)
            if row.at_least > 1:
                axes.plot([row.at_least] * 2, [y - 0.42, y + 0.42], color="black", lw=2)
            label = f"{row.ratio:.1f}×" if row.ratio < 100 else f"{row.ratio:.0f}×"
            axes.annotate(
                label,
                (max(row.high, row.at_least), y),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(
            range(len(table)),
            [f"{row.part}: {row.ours}\nagainst {row.against}" for row in table.itertuples()],
        )
        axes.set_xscale("log")
        axes.set_xlim(1, 2.2 * max(table["high"].max(), table["at_least"].max()))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(
            "times as fast, for memory: times as little\n"
            "(median; whiskers: range over runs; thick mark: the aim)"
        )
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.suptitle(title)
    return figure


def slopes(grown: pd.DataFrame) -> pd.DataFrame:
    """Least-squares slopes of log seconds and of log memory against log value, one row per line.

    ``grown`` has axis, value, what, seconds, mib; the result axis, what, slope_seconds, slope_mib.
    """
    rows = []
    for (axis, what), line in grown.groupby(["axis", "what"], sort=False):
        fits = [
            np.polyfit(np.log(line["value"]), np.log(line[name].clip(lower=least)), 1)[0]
            for name, least in _LEAST.items()
        ]
        rows.append((axis, what, *fits))
    return pd.DataFrame(rows, columns=["axis", "what", *(f"slope_{name}" for name in _LEAST)])


def growth(grown: pd.DataFrame, slopes: pd.DataFrame, quantity: str = "seconds") -> Figure:
    """Seconds or memory ("mib") along each axis, log-log, with least-squares slopes in the legend.

    ``grown`` has axis, value, what and the quantity; ``slopes`` axis, what, slope_<quantity>.
    """
    axes_names = list(dict.fromkeys(grown["axis"]))
    if not axes_names:
        return style.note("Growth was not measured.")
    slope_of = slopes.set_index(["axis", "what"])[f"slope_{quantity}"]
    labels = {
        "clients": "clients",
        "rank": "rank of LoRA",
        "history": "titles per history",
        "catalogue": "titles in the catalogue",
    }
    names = {"seconds": "seconds", "mib": "MiB above the loaded model"}
    with style.context():
        figure = style.canvas(8.4, 6.6)
        grid = figure.subplots(2, 2)
        for axes, name in zip(grid.flat, axes_names, strict=False):
            lines = grown[grown["axis"] == name]
            colors = style.domain_colors(dict.fromkeys(grown["what"]))
            for mark, (what, points) in zip(
                style.MARKERS, lines.groupby("what", sort=False), strict=False
            ):
                slope = style.number(slope_of[name, what], 2)
                points = points.assign(y=points[quantity].clip(lower=_LEAST[quantity]))
                sns.lineplot(
                    points, x="value", y="y", marker=mark, color=colors[what], errorbar=None,
                    lw=1.5, ms=6, mec="none",
                    label=f"{what} (slope {slope})", ax=axes,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
            values = sorted(set(lines["value"]))
            axes.set_xticks(values, [str(value) for value in values])
            axes.xaxis.set_minor_formatter(NullFormatter())
            low, high = (max(x, _LEAST[quantity]) for x in lines[quantity].agg(["min", "max"]))
            axes.set_ylim(low / 2, high * 20)  # room for the legend
            axes.set_xlabel(labels.get(name, name))
            axes.set_ylabel(names[quantity])
            axes.grid()
            axes.legend(loc="upper left")
        for axes in list(grid.flat)[len(axes_names) :]:
            axes.set_visible(False)
        figure.suptitle(f"Growth of {'time' if quantity == 'seconds' else 'memory'}")
    return figure


def to_markdown(table: pd.DataFrame, digits: int = 2) -> str:
    """Any frame as a Markdown table; missing numbers as a dash."""

    def cell(value) -> str:
        if isinstance(value, float):
            return GAP if value != value else f"{value:.{digits}f}"
        return str(value)

    rows = [[*map(cell, row)] for row in table.itertuples(index=False)]
    return "\n".join(markdown_lines(list(table.columns), rows, "l" * table.shape[1])) + "\n"
