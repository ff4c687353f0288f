r"""Figure 3: one round of FeDecider, drawn by code, with the bytes of a real run on its arrows.

From left to right: each client trains its own LoRA and splits the update into a magnitude, which
it keeps, and a direction, which it sends; the server passes every direction on to the others and
averages nothing; back at the client the directions are mixed with weights alpha that it learns.
What the round does is that of ``fedecider.federation``; the drawing is our own.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import aggregate, drawing, select, style

_COLUMNS = ("dataset", "method", *select.METHOD, "seed", "round", "client", "bytes_up")
_COLUMNS += ("bytes_down", "run")
_MOST = 3  # clients drawn; more are counted
_WIDTH, _ROW, _HEAD, _FOOT = 12.2, 1.55, 1.3, 0.75  # inches
_LEFT, _SERVER, _RIGHT = (0.1, 3.5), (5.25, 6.95), (8.7, 12.1)  # from x to x


def numbers(rounds: pd.DataFrame, dataset: str, method: str = "fedecider") -> pd.DataFrame:
    """One client's payload in the last round, one row per client and one for their mean.

    Columns: client, method, label, family, color, order, round, bytes_up, bytes_down, seeds, runs.
    The last round of each seed, mean over seeds; ``round`` is the latest of them. Without runs
    there are no rows. Raises ValueError for a lacking column.
    """
    select.require(rounds, _COLUMNS, "rounds")
    rows = rounds[(rounds["dataset"] == dataset) & (rounds["method"] == method)]
    rows = aggregate.last_round(rows).astype({"bytes_up": float, "bytes_down": float})
    how = {
        "round": ("round", "max"),
        "bytes_up": ("bytes_up", "mean"),
        "bytes_down": ("bytes_down", "mean"),
        "seeds": ("seed", "nunique"),
        "runs": ("run", select.joined),
    }
    known = select.methods(rows)
    of_clients = rows.groupby("client", as_index=False).agg(**how)
    if of_clients.empty:
        return pd.DataFrame(columns=["client", "method", *select.METHOD, *how])
    mean = rows.assign(client=select.MEAN).groupby("client", as_index=False).agg(**how)
    out = pd.concat([of_clients, mean], ignore_index=True)
    out.insert(1, "method", method)
    return select.describe(out, known)


def plot(numbers: pd.DataFrame, dataset: str, domains: Sequence[str] | None = None) -> Figure:
    """The round with the clients of ``dataset``, at most three of them drawn.

    ``domains`` default to the clients of the numbers; without any they are three nameless ones, and
    the arrows say "not run".
    """
    clients = numbers.set_index("client")
    if domains is None:
        domains = [name for name in clients.index if name != select.MEAN]
    domains = list(domains) or [f"client {i + 1}" for i in range(_MOST)]
    shown = domains[:_MOST]
    with style.context():
        height = _HEAD + _ROW * len(shown) + _FOOT
        figure = style.canvas(_WIDTH, height)
        figure.set_layout_engine("none")
        axes = drawing.sheet(figure.add_axes((0, 0, 1, 1)), _WIDTH, height)
        rows_y = [_FOOT + _ROW * (len(shown) - i - 0.5) for i in range(len(shown))]
        colors = style.domain_colors(domains)
        _headings(axes, height, rows_y)
        more = len(domains) > len(shown)
        for i, domain in enumerate(shown):
            label = style.domain_label(domain)
            _trains(axes, i, label, rows_y[i], colors[domain])
            _mixes(axes, i, label, rows_y[i], [colors[d] for d in shown], more)
            up, down = (clients[name].get(domain) for name in ("bytes_up", "bytes_down"))
            _sends(axes, i, rows_y[i], colors[domain], up)
            _receives(axes, i, rows_y, [colors[d] for d in shown], down, len(domains) - 1)
        title = f"{style.dataset_label(dataset)}: one round of FeDecider"
        axes.text(_WIDTH / 2, height - 0.2, title, ha="center", va="center", fontsize=11)
        about = _about(clients, len(domains) - len(shown))
        axes.text(_WIDTH / 2, 0.33, about, ha="center", va="center", fontsize=8.5)
    return figure


def _headings(axes: Axes, height: float, rows_y: Sequence[float]) -> None:
    """What happens where, the server's box, and the two wires."""
    high, low = rows_y[0] + _ROW / 2 - 0.06, rows_y[-1] - _ROW / 2 + 0.06
    between = [(a[1] + b[0]) / 2 for a, b in ((_LEFT, _SERVER), (_SERVER, _RIGHT))]
    said = (
        (sum(_LEFT) / 2, "1  At home", "train own LoRA and $\\alpha$,\nthen split the update"),
        (between[0], "2  Wire", "the direction goes up,\nnothing else"),
        (sum(_SERVER) / 2, "3  Server", "passes directions on,\naverages nothing"),
        (between[1], "4  Wire", "the others' directions\ncome down"),
        (
            sum(_RIGHT) / 2,
            "5  At home again",
            "mix them with own $\\alpha$;\nthe next round trains on",
        ),
    )
    for x, name, text in said:
        axes.text(x, height - 0.55, name, ha="center", va="center", fontsize=9.5, weight="bold")
        axes.text(x, height - 0.92, text, ha="center", va="center", fontsize=8)
    drawing.box(
        axes,
        (_SERVER[0], low),
        (_SERVER[1] - _SERVER[0], high - low),
        face=drawing.PAPER,
        width=1.2,
    )
    for x in between:
        axes.plot([x, x], [low, high], color=style.FAINT, lw=0.9, ls=(0, (2, 3)), zorder=1)


def _trains(axes: Axes, i: int, label: str, y: float, color: str) -> None:
    """Own LoRA = magnitude (dashed: it stays) times direction (full colour: it travels)."""
    x, k = _LEFT[0], i + 1
    _home(axes, x, _LEFT[1] - x, label, y, color)
    _part(axes, x + 0.1, y, 1.15, rf"$\Delta W_{k}=\gamma B_{k}A_{k}$", drawing.tint(color))
    axes.text(x + 1.36, y - 0.05, "=", ha="center", va="center", fontsize=10)
    _part(axes, x + 1.48, y, 0.75, f"$m_{k}$", "white", line="--")
    axes.text(x + 2.36, y - 0.05, r"$\times$", ha="center", va="center", fontsize=10)
    _part(axes, x + 2.5, y, 0.75, f"$D_{k}$", color)
    for middle, text in ((0.675, "own LoRA"), (1.855, "norm, stays"), (2.875, "direction")):
        axes.text(x + middle, y - 0.47, text, ha="center", va="center", fontsize=7.5)


def _mixes(axes: Axes, i: int, label: str, y: float, colors: Sequence[str], more: bool) -> None:
    """The adapted layer: frozen weights, own LoRA, and the others' directions times alpha."""
    x, k = _RIGHT[0], i + 1
    _home(axes, x, _RIGHT[1] - x, label, y, colors[i])
    parts = [("$W_0x$", drawing.FROZEN), (rf"$\gamma B_{k}A_{k}x$", drawing.tint(colors[i]))]
    for j, color in enumerate(colors):
        if j != i:
            parts.append((rf"$\alpha_{{{k}{j + 1}}}D_{j + 1}x$", color))
    plus, width = (0.15, 0.55) if more else (0.17, 0.62)
    at = x + 0.32
    axes.text(x + 0.17, y - 0.05, "$y=$", ha="center", va="center", fontsize=9)
    for n, (text, face) in enumerate(parts):
        if n:
            axes.text(at + plus / 2, y - 0.05, "+", ha="center", va="center", fontsize=9)
            at += plus
        _part(axes, at, y, width, text, face, fontsize=7.5 if more else 8)
        at += width
    if more:
        axes.text(at + 0.04, y - 0.05, r"$+\cdots$", va="center", fontsize=8)
    first, step, others = x + 0.32, width + plus, len(parts) - 2
    named = [(first + width / 2, "frozen"), (first + step + width / 2, "own")]
    if others:
        text = "the others' directions" if others > 1 else "the other's"
        named.append((first + 2 * step + (others * step - plus) / 2, text))
    for middle, text in named:
        axes.text(middle, y - 0.47, text, ha="center", va="center", fontsize=7.5)


def _home(axes: Axes, x: float, width: float, label: str, y: float, color: str) -> None:
    box = (x, y - _ROW / 2 + 0.06), (width, _ROW - 0.12)
    drawing.box(axes, *box, face=drawing.PAPER, edge=color, width=1.4)
    axes.text(x + width / 2, y + 0.47, label, ha="center", va="center", weight="bold", fontsize=8.5)


def _part(
    axes: Axes, x: float, y: float, width: float, text: str, face, line: str = "-", fontsize=9.0
) -> None:
    drawing.box(axes, (x, y - 0.3), (width, 0.5), text, face=face, line=line, fontsize=fontsize)


def _sends(axes: Axes, i: int, y: float, color: str, count: float | None) -> None:
    """From the client's direction to the server."""
    start, end = _LEFT[1] + 0.03, _SERVER[0] - 0.03
    drawing.arrow(axes, (start, y - 0.05), (end, y - 0.05), color, width=2)
    label = rf"$D_{i + 1}$: {drawing.size_label(count)}"
    _on_wire(axes, (start + end) / 2, y + 0.16, label)


def _receives(
    axes: Axes,
    i: int,
    rows_y: Sequence[float],
    colors: Sequence[str],
    count: float | None,
    directions: int,
) -> None:
    """Through the server, one line per direction in its source's colour, and on to client i."""
    others = [j for j in range(len(rows_y)) if j != i]
    for n, j in enumerate(others):
        y = rows_y[i] - 0.05 + 0.16 * ((len(others) - 1) / 2 - n)
        inner = (_SERVER[0] + 0.12, _SERVER[1] - 0.12)
        axes.plot(
            [_SERVER[0], inner[0], inner[1], _SERVER[1]],
            [rows_y[j] - 0.05, rows_y[j] - 0.05, y, y],
            color=colors[j],
            lw=1.6,
            zorder=3,
            solid_joinstyle="round",
        )
        drawing.arrow(axes, (_SERVER[1], y), (_RIGHT[0] - 0.03, y), colors[j], width=1.6)
    if directions:
        label = f"{directions} direction{'s' * (directions > 1)}: {drawing.size_label(count)}"
        _on_wire(axes, (_SERVER[1] + _RIGHT[0]) / 2, rows_y[i] + 0.24, label)


def _on_wire(axes: Axes, x: float, y: float, text: str) -> None:
    edge = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=edge, zorder=5)


def _about(clients: pd.DataFrame, left_out: int) -> str:
    if clients.empty:
        return "No finished run of FeDecider: no bytes to show."
    mean = clients.loc[select.MEAN]
    seeds = int(mean["seeds"])
    of = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    text = f"Bytes per client in the last round (round {int(mean['round'])}), {of}"
    if left_out:
        text += f"; {left_out} more client{'s' * (left_out > 1)} not drawn"
    up, down = (drawing.size_label(mean[name]) for name in ("bytes_up", "bytes_down"))
    return f"{text}.\nMean over all clients: {up} up, {down} down."
