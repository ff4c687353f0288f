"""What a drawn figure shows (texts, bars, cells, nothing covered), and a printed table."""

import io
from itertools import combinations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from figures import table as printed


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def laid_out(figure: Figure) -> None:
    """No visible text leaves the figure; no two upright texts lie on each other."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.bbox.width, figure.bbox.height
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):  # ticks outside the view are not drawn
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high or not axes.axison:
                    drawn = [text for text in drawn if text not in (tick.label1, tick.label2)]
        if not axes.get_visible():
            drawn = [text for text in drawn if text.axes is not axes]
    boxes = []
    for text in drawn:
        box = text.get_window_extent(renderer)
        if box.width <= 1 or box.height <= 1:
            continue
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} leaves the figure"
        if text.get_rotation() % 90 == 0:  # the box of a slanted text is larger than the text
            boxes.append((text.get_text(), box))
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        dx = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        dy = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert dx <= 1 or dy <= 1, f"{a!r} lies on {b!r}"


def bars(figure: Figure) -> list[float]:
    """Heights of the first axes' bars from left to right."""
    patches = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    return [p.get_height() for p in sorted(patches, key=Rectangle.get_x)]


def cells(axes) -> dict[tuple[int, int], str]:
    return {
        (int(t.get_position()[1]), int(t.get_position()[0])): t.get_text()
        for t in axes.texts
        if t.get_transform() == axes.transData and t.get_text()
    }


def csv(table):
    return pd.read_csv(io.StringIO(printed.to_csv(table)))


def lines(table):
    """Rows of the Markdown form as lists of cells, the heading first."""
    rows = [row for row in printed.to_markdown(table).splitlines() if row.startswith("|")]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in rows if not set("".join(row)) <= set("-:")]


def line(table, *start):
    """The cells of the one row that has these first words, "" for what a block prints once."""
    (row,) = [row for row in lines(table) if tuple(row[: len(start)]) == start]
    return row[len(start) :]
