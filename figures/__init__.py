"""One module a figure or table of the paper: a pure function from results frames to a picture.

The functions take the tidy frames of ``fedecider.runs`` and know nothing else of the package.
Layouts follow the captions of the paper (FeDecider, arXiv 2602.16034); definitions that the
captions leave open are our own reconstruction and stand in the docstring of each module.
"""

from figures import figure_1, figure_4, figure_5, frames, main_table, style

__all__ = ["figure_1", "figure_4", "figure_5", "frames", "main_table", "style"]
