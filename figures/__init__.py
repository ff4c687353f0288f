"""One module a figure or table of the paper: a pure function from results frames to a picture.

The functions take the tidy frames of ``fedecider.runs`` and know nothing else of the package.
Layouts follow the captions of the paper (FeDecider, arXiv 2602.16034); definitions that the
captions leave open are our own reconstruction and stand in the docstring of each module.
"""

from figures import (
    benchmark,
    figure_1,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    frames,
    main_table,
    small_table,
    style,
    summary,
    table_1,
    table_4,
    table_5,
    table_6,
    table_7,
    table_8,
    table_9,
)

__all__ = [
    "benchmark",
    "figure_1",
    "figure_2",
    "figure_3",
    "figure_4",
    "figure_5",
    "figure_6",
    "figure_7",
    "frames",
    "main_table",
    "small_table",
    "style",
    "summary",
    "table_1",
    "table_4",
    "table_5",
    "table_6",
    "table_7",
    "table_8",
    "table_9",
]
