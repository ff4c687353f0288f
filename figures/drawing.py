"""What several figures draw alike: bars, heat maps, boxes and arrows, labels that keep apart."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from figures import style

FROZEN = "#dfe3e8"  # what no client trains
PAPER = "#f7f7f5"  # the inside of a party's box
NOT_RUN = "not run"

_GAP = 2.0  # pixels between a label and what is next to it
_ANGLES = np.deg2rad(np.arange(0, 360, 15))
_DISTANCES = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 65.0, 85.0, 110.0, 140.0)  # points


def sheet(axes: Axes, width: float, height: float) -> Axes:
    """Axes to draw on, in units of an inch, origin at the lower left."""
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return axes


def box(
    axes: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    text: str = "",
    *,
    face: str | tuple = "white",
    edge: str = style.INK,
    line: str = "-",
    fontsize: float = 8,
    weight: str = "normal",
    width: float = 0.9,
    zorder: float = 2,
) -> FancyBboxPatch:
    """A rounded box from its lower left corner, with a text in its middle."""
    patch = FancyBboxPatch(
        corner,
        *size,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=face,
        edgecolor=edge,
        linestyle=line,
        linewidth=width,
        zorder=zorder,
    )
    axes.add_patch(patch)
    if text:
        axes.text(
            corner[0] + size[0] / 2,
            corner[1] + size[1] / 2,
            text,
            ha="center",
            va="center",
            fontsize=fontsize,
            weight=weight,
            color=style.ink_on(face),
            linespacing=1.15,
            zorder=zorder + 0.1,
        )
    return patch


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = style.INK,
    *,
    width: float = 1.4,
    bend: float = 0.0,
    line: str = "-",
    head: str = "-|>",
    zorder: float = 3,
) -> None:
    """An arrow from start to end; ``bend`` is the height of its arc as a share of its length."""
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle=head,
        connectionstyle=f"arc3,rad={bend}",
        mutation_scale=9,
        shrinkA=0,
        shrinkB=0,
        color=color,
        linewidth=width,
        linestyle=line,
        zorder=zorder,
    )
    axes.add_patch(patch)


def tint(color: str, share: float = 0.25) -> tuple[float, float, float]:
    """The colour thinned with white, of which ``share`` is left."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def size_label(count: float | None) -> str:
    """Bytes for people, three digits, 1 KiB = 1024 bytes; None or NaN: not run."""
    if count is None or count != count:
        return NOT_RUN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.5 or unit == "GiB":
            break
        count /= 1024
    digits = 0 if unit == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
    text = f"{count:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def say(axes: Axes, text: str = NOT_RUN) -> None:
    """A word in the middle of axes that have nothing to show, and no ticks along x."""
    axes.set_xticks([])
    middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, text, color=style.FAINT, **middle)


def bars(
    axes: Axes,
    rows: pd.DataFrame,
    domains: Sequence[str],
    texts: Sequence[str],
    *,
    share: float = 0.82,
    turn: int = 0,
    lines: dict[str, float] | None = None,
) -> None:
    """Grouped bars, one group per domain, one bar per method, with sd as error bars.

    ``rows`` has one row per method and domain: method, label, color, domain, mean, sd, seeds; a
    missing mean is a gap marked "not run". ``texts`` stand at the ends of the bars, turned by
    ``turn`` degrees; one that would lie on its domain's dashed line (``lines``) goes above it.
    ``share`` is what the bars fill of a group.
    """
    labels = list(dict.fromkeys(rows["label"]))
    colors = dict(zip(rows["label"], rows["color"], strict=True))
    sns.barplot(
        rows.dropna(subset="mean"), x="domain", y="mean", hue="label", order=list(domains),
        hue_order=labels, palette=colors, saturation=1, errorbar=None, width=share, gap=0.06,
        edgecolor=style.INK, linewidth=0.6, legend=False, ax=axes,
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    low, high = axes.get_ylim()
    room = 0.06 * (high - low)
    halo = [withStroke(linewidth=2.2, foreground="white")]
    for row, text in zip(rows.itertuples(), texts, strict=True):
        offset = labels.index(row.label) - (len(labels) - 1) / 2
        x = list(domains).index(row.domain) + share * offset / len(labels)
        sides = {"ha": "center", "textcoords": "offset points", "fontsize": 7.5}
        if row.mean != row.mean:
            look = sides | {"va": "bottom", "rotation": 90, "color": style.FAINT}
            axes.annotate(NOT_RUN, (x, 0), xytext=(0, 4), **look)
            continue
        sd = row.sd if row.seeds > 1 else 0.0
        if row.seeds > 1:
            axes.errorbar(x, row.mean, sd, color=style.INK, capsize=2.5, lw=1, zorder=3)
        up = row.mean >= 0
        end = row.mean + (sd if up else -sd)
        line = (lines or {}).get(row.domain, end)
        end = line if end <= line <= end + room else end
        look = sides | {"va": "bottom" if up else "top", "rotation": turn, "zorder": 5}
        axes.annotate(text, (x, end), xytext=(0, 3 if up else -3), path_effects=halo, **look)
    axes.set_xlim(-0.5, len(domains) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def heatmap(
    axes: Axes,
    square: pd.DataFrame,
    digits: int,
    *,
    palette: str,
    limits: tuple[float, float],
    bar: Axes,
    orientation: str = "vertical",
    labels: Sequence[str] = (),
) -> None:
    """A square frame over domains by seaborn, numbers in the cells, the diagonal hatched.

    Colours span ``limits``, and their bar goes to the axes ``bar`` with three ticks. Missing cells
    are white with a dash.
    """
    values = square.to_numpy(float).copy()
    np.fill_diagonal(values, np.nan)
    texts = [[style.number(v, digits) if v == v else "" for v in row] for row in values]
    low, high = limits
    sns.heatmap(
        pd.DataFrame(values), annot=np.array(texts, dtype=object), fmt="", cmap=palette, vmin=low,
        vmax=high, linewidths=1, linecolor="white", annot_kws={"fontsize": 8}, cbar_ax=bar,
        cbar_kws={"orientation": orientation, "ticks": [low, (low + high) / 2, high]},
        xticklabels=list(labels), yticklabels=list(labels), ax=axes,
    )  # fmt: skip
    for i, j in zip(*np.nonzero(np.isnan(values)), strict=True):
        if i == j:
            look = {"facecolor": "white", "edgecolor": "#c8c8c8", "hatch": "////"}
            axes.add_patch(Rectangle((i, i), 1, 1, **look))
        else:
            axes.text(j + 0.5, i + 0.5, "–", ha="center", va="center", fontsize=8)
    digits = 0 if float(low).is_integer() and float(high).is_integer() else digits
    names = [style.number(v, digits) for v in (low, (low + high) / 2, high)]
    ticks = bar.xaxis if orientation == "horizontal" else bar.yaxis
    ticks.set_ticklabels(names)
    if orientation == "horizontal":
        ticks.set_ticks_position("top")
    bar.tick_params(labelsize=7, length=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=style.FAINT, linewidth=0.8)
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0)


def legend_below(axes: Axes, handles: list[Line2D], columns: int) -> None:
    """A legend under the axes, clear of what stands there."""
    axes.figure.draw_without_rendering()
    own, box = axes.get_window_extent(), axes.get_tightbbox()
    gap = (own.y0 - box.y0) / own.height + 0.03
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, -gap), "ncols": columns}
    axes.legend(handles=handles, fontsize=7.5, **where)


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colors: Sequence[str],
    *,
    obstacles: Sequence[tuple[float, float]] = (),
    fontsize: float = 7.5,
    marker: float = 4.0,
) -> list[Text]:
    """A label beside each point such that labels, points and leader lines keep apart.

    ``points`` and ``obstacles`` are in data coordinates; ``marker`` is the radius in points that
    each of them takes. The axes must have their final place and limits (see :func:`settle`).
    Candidates are rings around the point; each label takes the nearest one that hits nothing, in
    two passes over the points from left to right, so the outcome depends on the input alone.
    Where there is no room at all, the candidate that hits least is taken.
    """
    if not len(points):
        return []
    figure = axes.get_figure(root=True)
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    at = axes.transData.transform(np.asarray(points, float))
    others = axes.transData.transform(np.asarray([*points, *obstacles], float))
    marks = np.hstack([others - marker * scale, others + marker * scale])
    bounds = axes.get_window_extent(renderer)
    texts = [
        axes.text(0, 0, label, fontsize=fontsize, color=style.INK, ha="center", va="center")
        for label in labels
    ]
    sizes = [text.get_window_extent(renderer) for text in texts]
    order = sorted(range(len(points)), key=lambda i: (*at[i], labels[i]))
    boxes, lines = {}, {}
    for _ in range(2):
        for i in order:
            half = np.array([sizes[i].width, sizes[i].height]) / 2 + _GAP
            rings = [
                (np.cos(a) * (d * scale + half[0]), np.sin(a) * (d * scale + half[1]), d)
                for d in _DISTANCES
                for a in _ANGLES
            ]
            shift = np.array(rings)
            middle = at[i] + shift[:, :2]
            candidates = np.hstack([middle - half, middle + half])
            near = np.clip(at[i], candidates[:, :2], candidates[:, 2:])  # where the line ends
            cost = shift[:, 2] + 0.02 * np.abs(shift[:, 1]) / scale
            beyond = (candidates[:, :2] < [bounds.x0, bounds.y0]) | (
                candidates[:, 2:] > [bounds.x1, bounds.y1]
            )
            cost += 1e6 * beyond.any(axis=1)
            taken = np.array([boxes[j] for j in boxes if j != i]).reshape(-1, 4)
            drawn = [lines[j] for j in lines if j != i]
            cost += 1e4 * _hits(candidates, np.vstack([taken, marks])).sum(axis=1)
            path = at[i] + np.linspace(0, 1, 12)[1:, None, None] * (near - at[i])
            along = np.vstack([taken, marks])
            along = along[~_inside(at[i][None, None], along)[0, 0]]  # not those it starts in
            cost += 2e3 * _inside(path, along).any(axis=0).sum(axis=1)
            for line in drawn:
                cost += 2e3 * _inside(line[:, None], candidates).any(axis=0)[0]
            best = int(cost.argmin())
            boxes[i], lines[i] = candidates[best], path[:, best]
    back = axes.transData.inverted()
    for i, text in enumerate(texts):
        center = (boxes[i][:2] + boxes[i][2:]) / 2
        text.set_position(back.transform(center))
        end = lines[i][-1]
        if np.hypot(*(end - at[i])) > (marker + 6) * scale:
            x, y = zip(points[i], back.transform(end), strict=True)
            axes.plot(x, y, color=colors[i], lw=0.7, zorder=1.5)
    return texts


def settle(figure: Figure) -> None:
    """Arrange the axes once and keep them so: what is placed by pixel stays where it is."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _hits(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) boxes x0, y0, x1, y1 -> (n, m): whether they share an area."""
    a, b = boxes[:, None], others[None]
    return ((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=-1)


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points (k, n, 2) and boxes (m, 4) -> (k, n, m): whether the point lies in the box."""
    p = points[:, :, None]
    return ((boxes[:, :2] < p) & (p < boxes[:, 2:])).all(axis=-1)
