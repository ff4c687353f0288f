r"""A printable table: rows of a frame, columns with labels and number formats, by pandas' Styler.

The CSV file holds the numbers at full precision; HTML, GitHub Markdown and a LaTeX ``table*`` with
booktabs show the columns that are named. Missing values are a dash. One column, ``sources``, names
the folders that a row was computed from: it is in the CSV alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from pandas.io.formats.style import Styler

from figures import select, style

GAP = "–"
NO_RUN = "No finished run."
_MINUS = "\N{MINUS SIGN}"
_TEX = str.maketrans(
    {
        "\\": "\\textbackslash ",
        "&": "\\&",
        "%": "\\%",
        "_": "\\_",
        "#": "\\#",
        "$": "\\$",
        "±": "$\\pm$",
        "–": "--",
        _MINUS: "$-$",
        "×": "$\\times$",
        "Δ": "$\\Delta$",
        "α": "$\\alpha$",
    }
)


@dataclass(frozen=True)
class Column:
    """One printed column.

    ``name`` is that of the frame, ``label`` what is printed, in it the unit. ``number_format``
    is Python's (".2f", "+.3f", ",.0f"), after multiplication by ``scale``; "" stands for words,
    printed as ``words`` turns them. ``spread`` names a column printed after ±, likewise.
    ``group`` is a heading over neighbouring columns; those without one are repeated where a wide
    table is cut. ``best`` says which values are bold. Leading columns with ``align`` "l" tell the
    rows apart.
    """

    name: str
    label: str
    number_format: str = ""
    scale: float = 1.0
    spread: str = ""
    group: str = ""
    best: Literal["", "max", "min"] = ""
    align: Literal["l", "r"] = "r"
    words: Callable[[str], str] = str


class Cell(NamedTuple):
    """One printed number or word."""

    text: str
    spread: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """``columns`` of ``rows``, and what stands above and below them.

    ``label`` is an identifier (LaTeX, HTML), ``notes`` are sentences below the table. Neighbouring
    rows with one value of the column ``block`` belong together: a rule parts them from the next,
    the value is printed once, and the best value is that of the block. ``width`` is the largest
    number of grouped columns side by side. ``sources`` is the column of folders ("" for none).
    ``numbers`` are what the CSV file holds where that is another frame than ``rows``. Raises
    ValueError for a column that ``rows`` lacks, for rows that read alike, and if the first column
    is not aligned to the left.
    """

    label: str
    caption: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    block: str = ""
    width: int | None = None
    sources: str = "runs"
    numbers: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        used = [name for column in self.columns for name in (column.name, column.spread)]
        select.require(self.rows, filter(None, [*used, self.block, self.sources]), self.label)
        ends = [i for i, column in enumerate(self.columns) if column.align == "r"]
        names = [column.name for column in self.columns[: min(ends, default=None)]]
        if not names:
            raise ValueError(f"table {self.label} has no leading column of text")
        if self.rows.duplicated(names).any():
            first = self.rows[self.rows.duplicated(names)].iloc[0][names]
            raise ValueError(f"table {self.label} has several rows {' / '.join(map(str, first))}")


def cells(table: Table) -> pd.DataFrame:
    """Cells as printed; values of a block that print alike are all bold if one is best.

    Columns are labels, or (group, label) where a column has a group.
    """
    rows = list(zip(*(_cells(table, column) for column in table.columns), strict=True))
    headings: pd.Index = pd.Index([column.label for column in table.columns])
    if any(column.group for column in table.columns):
        pairs = [(column.group, column.label) for column in table.columns]
        headings = pd.MultiIndex.from_tuples(pairs)
    out = pd.DataFrame(index=range(len(rows)), columns=range(len(headings)), dtype=object)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            out.iat[r, c] = cell
    return out.set_axis(headings, axis=1)


def to_csv(table: Table) -> str:
    """Numbers at full precision and unscaled, gaps as empty cells."""
    numbers = table.rows if table.numbers is None else table.numbers
    return numbers.to_csv(index=False, lineterminator="\n")


def to_styler(table: Table) -> Styler:
    """The table for a notebook, best cells bold, caption and notes above."""
    frame = cells(table)
    # A fixed id: equal tables give equal HTML.
    styler = Styler(frame, uuid=table.label, caption=" ".join([table.caption, *table.notes]))
    left = [c for c, column in enumerate(table.columns) if column.align == "l"]
    aligned = [{"selector": f"td.col{c}", "props": "text-align: left"} for c in left]
    bold = frame.map(lambda cell: "font-weight: bold" * cell.bold)
    styler = styler.format(lambda cell: _text(cell).replace(" ± ", "\u00a0±\u00a0"))
    return styler.apply(lambda _: bold, axis=None).set_table_styles(aligned).hide(axis="index")


def to_markdown(table: Table) -> str:
    """GitHub Markdown, cut into parts of whole groups of columns where ``width`` says so."""
    frame = cells(table)
    lines = [table.caption, ""]
    for part in _parts(table):
        columns = [table.columns[c] for c in part]
        heads = [f"{column.group} {column.label}".strip() for column in columns]
        rows = [[_text(cell, "**") for cell in row] for _, row in frame.iloc[:, part].iterrows()]
        lines += [*markdown_lines(heads, rows, "".join(c.align for c in columns)), ""]
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def markdown_lines(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """Lines of a GitHub Markdown table; ``align`` has an "l" or "r" per column."""
    rules = ("---:" if side == "r" else "---" for side in align)
    body = ("| " + " | ".join(row) + " |" for row in (heads, *rows))
    return [next(body), "|" + "|".join(rules) + "|", *body]


def to_latex(table: Table) -> str:
    """A ``table*`` with one booktabs ``tabular`` for each part of :func:`to_markdown`."""
    tabulars = [_tabular(table, cells(table), part) for part in _parts(table)]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{tex(table.caption)}}}",
        f"\\label{{tab:{table.label}}}",
        "\n\\par\\medskip\n".join(tabulars),
    ]
    if table.notes:
        lines.append(f"\\par\\smallskip\\footnotesize {tex(' '.join(table.notes))}")
    lines.append("\\end{table*}")
    return "\n".join(lines) + "\n"


def write(table: Table, folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """Write ``<folder>/<name>.csv``, ``.md`` and ``.tex``, each whole or not at all."""
    folder = Path(folder)
    return (
        style.write(folder / f"{name}.csv", to_csv(table)),
        style.write(folder / f"{name}.md", to_markdown(table)),
        style.write(folder / f"{name}.tex", to_latex(table)),
    )


def tex(text: str) -> str:
    """Plain text for LaTeX."""
    return text.translate(_TEX)


def _tabular(table: Table, frame: pd.DataFrame, part: list[int]) -> str:
    """The columns of one part, by Styler; rules under the groups and between the blocks."""
    columns = [table.columns[c] for c in part]
    styler = Styler(frame.iloc[:, part]).hide(axis="index").format(_latex)
    for level in range(frame.columns.nlevels):
        styler = styler.format_index(tex, axis=1, level=level)
    align = "".join(column.align for column in columns)
    text = styler.to_latex(hrules=True, column_format=align, multicol_align="c")
    lines = text.rstrip("\n").split("\n")
    body = lines.index("\\midrule") + 1
    for start in reversed(_starts(table)[1:]):
        lines.insert(body + start, "\\midrule")
    if any(column.group for column in columns):
        lines.insert(lines.index("\\toprule") + 2, _rules(columns))
    return "\n".join(lines)


def _rules(columns: list[Column]) -> str:
    rules = ""
    for group in dict.fromkeys(column.group for column in columns if column.group):
        numbers = [i for i, column in enumerate(columns, start=1) if column.group == group]
        rules += f"\\cmidrule(lr){{{numbers[0]}-{numbers[-1]}}}"
    return rules


def _starts(table: Table) -> list[int]:
    """Positions of the first rows of the blocks."""
    if not table.block:
        return [0]
    values = table.rows[table.block]
    return [r for r in range(len(values)) if r == 0 or values.iloc[r] != values.iloc[r - 1]]


def _cells(table: Table, column: Column) -> list[Cell]:
    values = table.rows[column.name]
    texts = [_printed(value, column) for value in values]
    spreads = [""] * len(texts)
    if column.spread:
        pairs = zip(texts, table.rows[column.spread], strict=True)
        plain = replace(column, number_format=column.number_format.lstrip("+"))
        spreads = ["" if t == GAP or pd.isna(s) else _printed(s, plain) for t, s in pairs]
    starts = _starts(table)
    if column.name == table.block:
        texts = [text if r in starts else "" for r, text in enumerate(texts)]
    bold: set[int] = set()
    if column.best:
        for start, stop in zip(starts, [*starts[1:], len(texts)], strict=True):
            numbers = {r: _number(texts[r]) for r in range(start, stop) if texts[r] != GAP}
            if table.block and len(numbers) < 2:
                continue  # nothing in the block to be better than
            best = (max if column.best == "max" else min)(numbers.values(), default=None)
            bold |= {r for r, number in numbers.items() if number == best}
    return [Cell(t, s, r in bold) for r, (t, s) in enumerate(zip(texts, spreads, strict=True))]


def _printed(value, column: Column) -> str:
    """A true minus sign, and no sign before a zero."""
    if pd.isna(value):
        return GAP
    if not column.number_format:
        return column.words(value)
    text = format(value * column.scale, column.number_format)
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def _number(text: str) -> float:
    return float(text.replace(_MINUS, "-").replace(",", ""))


def _parts(table: Table) -> Iterator[list[int]]:
    """Positions of the columns of each part: those without a group, then whole groups."""
    alone = [c for c, column in enumerate(table.columns) if not column.group]
    groups: dict[str, list[int]] = {}
    for c, column in enumerate(table.columns):
        if column.group:
            groups.setdefault(column.group, []).append(c)
    part: list[int] = []
    for group in groups.values():
        if part and table.width is not None and len(part) + len(group) > table.width:
            yield alone + part
            part = []
        part = part + group
    yield alone + part


def _text(cell: Cell, mark: str = "") -> str:
    text = f"{mark}{cell.text}{mark}" if cell.bold else cell.text
    return text + (f" ± {cell.spread}" if cell.spread else "")


def _latex(cell: Cell) -> str:
    text = f"\\textbf{{{tex(cell.text)}}}" if cell.bold else tex(cell.text)
    return text + (f"{{\\scriptsize$\\,\\pm\\,${tex(cell.spread)}}}" if cell.spread else "")
