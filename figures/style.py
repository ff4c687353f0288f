"""The theme of all figures (seaborn's, with our fonts), colours, labels, and files.

Notable choices: colours of domains are those of Okabe and Ito (2008) and, where more are needed,
of Paul Tol's "muted" scheme, both readable with colour-vision deficiency; a domain has the same
colour in every figure, as a method has by its frame. Figures are made without pyplot, so nothing
global is kept. Files carry no dates: the same figure gives the same bytes.
"""

import io
import os
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

DPI = 160
INK = "#222222"
FAINT = "#8a8a8a"

# The eight genres of the UCSD Book Graph, and three Amazon categories: the two data sets never
# share a picture, so they may share colours.
DOMAIN_COLORS = {
    "children": "#0072B2",
    "comics_graphic": "#D55E00",
    "mystery_thriller_crime": "#009E73",
    "fantasy_paranormal": "#CC79A7",
    "history_biography": "#E69F00",
    "poetry": "#56B4E9",
    "romance": "#882255",
    "young_adult": "#999933",
    "video_games": "#0072B2",
    "office_products": "#D55E00",
    "industrial_scientific": "#009E73",
}

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#332288",
    "#44AA99",
    "#AA4499",
    "#DDCC77",
)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

_RC = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    "font.family": "sans-serif",
    # DejaVu comes with matplotlib: the same letters, hence the same bytes, on every machine.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "pdf.fonttype": 42,
    "pdf.compression": 6,
}


def context() -> AbstractContextManager:
    """The settings of all figures, for the length of a ``with`` block."""
    return matplotlib.rc_context(_RC)


def canvas(width: float, height: float) -> Figure:
    """An empty figure, width x height in inches, that arranges its axes itself."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    FigureCanvasAgg(figure)
    return figure


def note(text: str, title: str = "", width: float = 6.0, height: float = 2.2) -> Figure:
    """A figure that says why there is nothing to see."""
    with context():
        figure = canvas(width, height)
        figure.text(
            0.5, 0.45, textwrap.fill(text, 62), ha="center", va="center", color=INK, fontsize=10
        )
        if title:
            figure.suptitle(title)
    return figure


def domain_label(domain: str) -> str:
    """``comics_graphic`` -> ``Comics graphic``."""
    words = str(domain).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def dataset_label(dataset: str) -> str:
    """``goodreads`` -> ``Goodreads``."""
    return domain_label(dataset)


def metric_label(metric: str) -> str:
    """``hit@5`` -> ``Hit@5``, ``ndcg@10`` -> ``NDCG@10``."""
    name, at, cut = metric.partition("@")
    return (name.capitalize() if name == "hit" else name.upper()) + at + cut


def wrapped(label: str, width: int) -> str:
    """The label broken into lines of at most ``width`` characters, at spaces only."""
    return textwrap.fill(label, width, break_long_words=False, break_on_hyphens=False)


def domain_colors(domains: Iterable[str]) -> dict[str, str]:
    """A colour for each domain; the known ones always have the same."""
    names = list(dict.fromkeys(domains))
    colors = {name: DOMAIN_COLORS[name] for name in names if name in DOMAIN_COLORS}
    spare = [color for color in PALETTE if color not in colors.values()] or list(PALETTE)
    unknown = sorted(name for name in names if name not in DOMAIN_COLORS)
    colors |= {name: spare[i % len(spare)] for i, name in enumerate(unknown)}
    return {name: colors[name] for name in names}


def number(value: float, digits: int, sign: bool = False) -> str:
    """Fixed digits, a true minus sign, and no minus before a zero."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def ink_on(color: Sequence[float] | str) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2 ratio) on ``color``."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def save(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``<folder>/<name>.png`` and ``.pdf``, each whole or not at all; returns both paths.

    No date and no version goes into the files, so equal figures give equal bytes.
    """
    without_dates = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    }
    paths = []
    for kind, metadata in without_dates.items():
        content = io.BytesIO()
        with context():
            figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        paths.append(write(Path(folder) / f"{name}.{kind}", content.getvalue()))
    return paths[0], paths[1]


def write(path: str | Path, content: bytes | str) -> Path:
    """Write a file under another name and rename it, so that no reader ever sees half of it.

    As ``fedecider.runs.atomic`` does: figures read the results of runs, not the code that runs.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(beside, 0o644)  # mkstemp's 0600 would keep others from reading the results
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return path
