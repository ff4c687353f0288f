r"""Figure 4: item distances, user distances and learned weights alpha, side by side.

The question behind it: does a client learn to weigh near domains higher than far ones? The paper
shows the heat maps; the numbers below them, and the planted affinities of generated data, are
ours. Rows are the clients that learn, columns the sources. The diagonal is hatched: a
client has no weight for its own direction.
"""

import math
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import aggregate, drawing, select, style

_SIGNED = "RdBu_r"  # the palette of alpha, whose sign is free
_COLUMNS = ("dataset", "method", "seed", "round", "client", "source", "layer", "alpha")
_CELLS = ["panel", "client", "source", "value", "rounds", "layers", "seeds", "runs"]
_COUNTS = ["n", "same_order", "pairs"]
CLOSENESS = "closeness"  # the panel of alpha's correlations
_PANELS = {
    "item distance": ("Item distance", "Purples", "not computed"),
    "user distance": ("User distance", "Purples", "not computed"),
    "alpha": (r"Learned $\alpha$", _SIGNED, drawing.NOT_RUN),
    "planted affinity": ("Planted affinity", "Greens", ""),
}


def last_round(alphas: pd.DataFrame, dataset: str, method: str = "fedecider") -> pd.DataFrame:
    """The rows of one data set and method at the last round of each seed."""
    select.require(alphas, _COLUMNS, "alphas")
    rows = alphas[(alphas["dataset"] == dataset) & (alphas["method"] == method)]
    return aggregate.last_round(rows)


def alpha_matrix(alphas: pd.DataFrame, domains: list[str] | None = None) -> pd.DataFrame:
    """Square frame (client x source) of the mean alpha: over layers, then over seeds.

    ``alphas`` holds one round per seed, of one data set and method (see :func:`last_round`);
    anything else is a ValueError. The diagonal and cells without rows are missing (NaN).
    """
    select.require(alphas, _COLUMNS, "alphas")
    for columns in (["dataset"], ["method"], ["seed", "round"]):
        kinds = alphas[columns].drop_duplicates()
        allowed = 1 if columns != ["seed", "round"] else alphas["seed"].nunique()
        if len(kinds) > max(allowed, 1):
            raise ValueError(
                f"the alphas frame holds several values of {columns[-1]} "
                f"({', '.join(map(str, sorted(set(kinds[columns[-1]]))))}); expected one"
            )
    if domains is None:
        domains = sorted(set(alphas["client"]) | set(alphas["source"]))
    per_seed = alphas.groupby(["client", "source", "seed"])["alpha"].mean()
    mean = per_seed.groupby(["client", "source"]).mean()
    square = pd.DataFrame(np.nan, index=domains, columns=domains)
    for (client, source), value in mean.items():
        if client != source and client in square.index and source in square.columns:
            square.loc[client, source] = value
    return square


def alpha_correlations(
    alpha: pd.DataFrame,
    item_distance: pd.DataFrame | None = None,
    user_distance: pd.DataFrame | None = None,
    affinity: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Spearman's rank correlation of alpha with closeness, over the off-diagonal cells.

    All arguments are square frames over domains (rows learn, columns are sources); closeness is
    minus the distance. Returns one row for each argument that is not None: against
    ("item closeness", "user closeness", "planted affinity"), spearman, n (cells with both
    numbers), same_order, pairs. Ties get their mean rank. With fewer than 3 distinct pairs, or a
    constant side, there is no correlation (NaN). The cells depend on each other, so no p-value is
    attached.

    A correlation over all cells also sees that some clients take more than others. ``same_order``
    does not: of ``pairs`` pairs of sources that are not equally close to a client, in how many the
    client gives the closer one the larger alpha; ties of alpha are no agreement, and a pair with a
    missing cell is none.
    """
    others = {
        "item closeness": None if item_distance is None else -item_distance,
        "user closeness": None if user_distance is None else -user_distance,
        "planted affinity": affinity,
    }
    _square(alpha, "alpha")
    rows = []
    for against, other in others.items():
        if other is None:
            continue
        _square(other, against)
        other = other.reindex(index=alpha.index, columns=alpha.columns)
        off = ~np.eye(len(alpha), dtype=bool)
        a, b = alpha.to_numpy(float), other.to_numpy(float)
        cells = pd.DataFrame({"a": a[off], "b": b[off]}).dropna()
        distinct = len(cells.drop_duplicates())
        defined = distinct >= 3 and cells["a"].nunique() > 1 and cells["b"].nunique() > 1
        ranks = cells.rank()
        value = float(np.corrcoef(ranks["a"], ranks["b"])[0, 1]) if defined else math.nan
        rows.append((against, value, len(cells), *_same_order(a, b)))
    return pd.DataFrame(rows, columns=["against", "spearman", "n", "same_order", "pairs"])


def _same_order(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Pairs of a row's other columns that a orders as b does, and those that b orders."""
    same = total = 0
    for row in range(len(a)):
        for i, j in combinations([column for column in range(len(a)) if column != row], 2):
            change = (b[row, i] - b[row, j]) * (a[row, i] - a[row, j])
            if np.isfinite(change) and b[row, i] != b[row, j]:
                same, total = same + int(change > 0), total + 1
    return same, total


def numbers(
    alphas: pd.DataFrame,
    item_distance: pd.DataFrame | None,
    user_distance: pd.DataFrame | None,
    affinity: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per cell, then one per correlation of alpha.

    Columns: panel, client, source, value, rounds, layers, seeds, runs, n, same_order, pairs.

    ``alphas``: tidy rows of one round per seed (see :func:`last_round`), may be empty; the
    distances and the affinity are square frames over domains. ``rounds`` ("4", or "3 to 4" where
    seeds differ), ``layers``, ``seeds`` and ``runs`` tell what alpha is taken from, and nothing for
    what is measured on data. Rows of the panel "closeness" are those of :func:`alpha_correlations`:
    ``source`` is what alpha is held against, ``value`` Spearman's correlation; only they have the
    last three columns, and there are none without alpha. Raises ValueError for a frame that is not
    square or alphas that hold more than one round.
    """
    select.require(alphas, ("run",), "alphas")
    panels = {"item distance": item_distance, "user distance": user_distance}
    panels |= {"alpha": alpha_matrix(alphas), "planted affinity": affinity}
    ends = sorted({int(value) for value in alphas["round"]})
    about = (
        " to ".join(map(str, dict.fromkeys((ends[0], ends[-1])))) if ends else "",
        alphas["layer"].nunique(),
        alphas["seed"].nunique(),
        select.joined(alphas["run"]),
    )
    rows = []
    for panel, square in panels.items():
        if square is None:
            continue
        _square(square, panel)
        for client, source in ((c, s) for c in square.index for s in square.columns if c != s):
            of_runs = about if panel == "alpha" else ("", 0, 0, "")
            rows.append((panel, client, source, square.loc[client, source], *of_runs))
    cells = pd.DataFrame(rows, columns=_CELLS)
    if alphas.empty:
        return cells.reindex(columns=[*_CELLS, *_COUNTS])
    correlated = alpha_correlations(panels["alpha"], item_distance, user_distance, affinity)
    correlated = correlated.rename(columns={"against": "source", "spearman": "value"})
    of_alpha = dict(zip(_CELLS[4:], about, strict=True))
    correlated = correlated.assign(panel=CLOSENESS, client="", **of_alpha)
    both = pd.concat([cells, correlated], ignore_index=True)[[*_CELLS, *_COUNTS]]
    return both.astype(dict.fromkeys(_COUNTS, "Int64"))


def square_of(numbers: pd.DataFrame, panel: str) -> pd.DataFrame | None:
    """A panel's cells as a square frame over domains, the diagonal missing; None without any."""
    rows = numbers[numbers["panel"] == panel]
    if rows.empty:
        return None
    domains = list(dict.fromkeys([*rows["client"], *rows["source"]]))
    square = rows.pivot(index="client", columns="source", values="value")
    return square.reindex(index=domains, columns=domains).rename_axis(index=None, columns=None)


def correlations(numbers: pd.DataFrame) -> pd.DataFrame:
    """against, spearman, n, same_order, pairs: the rows of the panel "closeness"."""
    rows = numbers[numbers["panel"] == CLOSENESS].reset_index(drop=True)
    rows = rows.rename(columns={"source": "against", "value": "spearman"})
    return rows[["against", "spearman", *_COUNTS]]


def plot(numbers: pd.DataFrame, dataset: str) -> Figure:
    """Item distance, user distance, learned alpha and, where known, planted affinity.

    A distance without rows leaves a panel that says "not computed", alpha one that says "not run";
    with nothing at all the figure is a note. Only domains that took part in the runs are shown;
    without runs, those of the distances.
    """
    title = f"{style.dataset_label(dataset)}: how near the domains are, and what the clients learn"
    squares = {panel: square_of(numbers, panel) for panel in _PANELS}
    domains = [name for panel in ("item distance", "user distance", "planted affinity", "alpha")
               if squares[panel] is not None for name in squares[panel].index]  # fmt: skip
    domains = list(dict.fromkeys(domains))
    if squares["alpha"] is not None:
        domains = [domain for domain in domains if domain in squares["alpha"].index]
    if not domains:
        return style.note("No finished run, and no prepared data to measure.", title=title)
    if squares["planted affinity"] is None:
        del squares["planted affinity"]
    with style.context():
        labels = [style.wrapped(style.domain_label(domain), 15) for domain in domains]
        # Placed by hand, in inches: the layout engines of matplotlib leave too little room for
        # slanted labels under axes of fixed aspect.
        side, gap = max(2.1, 0.56 * len(domains)), 0.3
        letters = max(len(line) for label in labels for line in label.splitlines())
        left, bottom = 0.45 + 0.07 * letters, 0.88 + 0.052 * letters
        width = left + len(squares) * (side + gap)
        size = np.array([max(width, 7.6), bottom + side + 1.05])
        figure = style.canvas(*size)
        figure.set_layout_engine("none")
        left += max(7.6 - width, 0) / 2
        inches = np.array([*size, *size])
        for i, (panel, square) in enumerate(squares.items()):
            x, y = left + i * (side + gap), bottom
            axes = figure.add_axes(np.array([x, y, side, side]) / inches)
            where = np.array([x + 0.08 * side, y + side + 0.1, 0.84 * side, 0.09])
            bar = figure.add_axes(where / inches)
            if square is not None:
                square = square.reindex(index=domains, columns=domains)
            _panel(axes, bar, square, *_PANELS[panel])
            axes.set(xlim=(0, len(domains)), ylim=(len(domains), 0))
            ticks = np.arange(len(domains)) + 0.5
            turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor", "linespacing": 0.9}
            axes.set_xticks(ticks, labels, **turned)
            axes.set_yticks(ticks, labels if i == 0 else [], rotation=0)
            axes.tick_params(length=0)
            axes.text(0.5, -(bottom - 0.62) / side, "source", transform=axes.transAxes, ha="center")
        where = (0.1 / size[0], (bottom + side / 2) / size[1])
        figure.text(*where, "client that learns", rotation=90, va="center", ha="left")
        figure.suptitle(title, y=1 - 0.12 / size[1], va="top")
        figure.text(0.5, 0.3 / size[1], _caption(numbers), ha="center", va="center")
    return figure


def _panel(
    axes: Axes, bar: Axes, square: pd.DataFrame | None, name: str, palette: str, missing: str
) -> None:
    """Draws one square with its colour bar; without a square, a word that says why."""
    if square is None:
        bar.set_axis_off()
        bar.set_title(name)
        axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center")
        for spine in axes.spines.values():
            spine.set(visible=True, color=style.FAINT, linewidth=0.8)
        return
    values = square.to_numpy(float)
    finite = values[np.isfinite(values) & ~np.eye(len(square), dtype=bool)]
    power, digits = _digits(finite)
    finite = finite / 10.0**power
    low, high = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
    if palette == _SIGNED:  # white is zero
        reach = float(np.abs(finite).max(initial=0.0)) or 1.0
        low, high = -reach, reach
    elif low >= high:
        low, high = 0.0, max(high, 1.0)
    look = {"palette": palette, "limits": (low, high), "bar": bar, "orientation": "horizontal"}
    drawing.heatmap(axes, square / 10.0**power, digits, **look)
    bar.set_title(name + (rf" ($\times 10^{{{power}}}$)" if power else ""))


def _digits(finite: np.ndarray) -> tuple[int, int]:
    """A power of ten to take out, and decimals that show the values and how they differ."""
    largest = float(np.abs(finite).max(initial=0.0))
    if largest == 0:
        return 0, 2
    exponent = math.floor(math.log10(largest))
    power = 0 if -2 <= exponent <= 3 else exponent
    digits = 2 + power - exponent - (power == 0 and exponent < 0)
    apart = float(np.ptp(finite)) / 10.0**power
    if apart > 0:
        digits = max(digits, 1 - math.floor(math.log10(apart)))
    return power, int(np.clip(digits, 0, 3))


def _caption(numbers: pd.DataFrame) -> str:
    alpha = numbers[numbers["panel"] == "alpha"]
    if alpha.empty:
        return "no finished run: nothing learned to compare with"
    rounds, layers, seeds = (
        str(alpha["rounds"].iloc[0]),
        *map(int, alpha[["layers", "seeds"]].iloc[0]),
    )
    first = (
        rf"$\alpha$: round{'s' * ('to' in rounds)} {rounds}, mean over "
        f"{layers} layer{'s' * (layers != 1)} and {seeds} seed{'s' * (seeds != 1)}"
    )
    parts, orders = [], []
    for row in correlations(numbers).itertuples():
        known = not math.isnan(row.spearman)
        value = style.number(row.spearman, 2, sign=True) if known else "n/a"
        parts.append(f"{row.against} {value} (n = {row.n})")
        orders.append(f"{row.against} {row.same_order} of {row.pairs}")
    if not parts:
        return first
    return (
        f"{first}\nSpearman, off-diagonal cells, with: {'; '.join(parts)}\n"
        f"two sources of a client in the same order as by: {'; '.join(orders)}"
    )


def _square(frame: pd.DataFrame, name: str) -> None:
    if list(frame.index) != list(frame.columns) or not frame.index.is_unique:
        raise ValueError(
            f"the {name} frame must be square with equal, unique row and column names; "
            f"rows {list(frame.index)}, columns {list(frame.columns)}"
        )
