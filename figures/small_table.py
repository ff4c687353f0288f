r"""A table as this package prints it: rows of a frame, columns with labels and number formats.

The CSV file holds every column of the frame at full precision, the printed forms (GitHub Markdown,
a LaTeX ``table*`` with booktabs, a pandas Styler) those that are named. Missing values are a dash.
One column, ``sources``, names the folders that a row was computed from: it is in the CSV alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from pandas.io.formats.style import Styler

from figures import frames, style

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

    ``name`` is that of the frame, ``label`` what is printed, in it the unit. ``form`` is Python's
    format of a number (".2f", "+.3f", ",.0f") after multiplication by ``scale``; "" stands for
    words, printed as ``words`` turns them. ``spread`` names a column printed after ±, likewise.
    ``group`` is a heading over neighbouring columns; those without one are repeated where a wide
    table is cut. ``best`` says which values are bold. Leading columns with ``align`` "l" tell the
    rows apart.
    """

    name: str
    label: str
    form: str = ""
    scale: float = 1.0
    spread: str = ""
    group: str = ""
    best: Literal["", "max", "min"] = ""
    align: Literal["l", "r"] = "r"
    words: Callable[[str], str] = str


@dataclass(frozen=True)
class Table:
    """``columns`` of ``rows``, and what stands above and below them.

    ``label`` is an identifier (LaTeX, HTML), ``notes`` are sentences below the table. Neighbouring
    rows with one value of the column ``block`` belong together: a rule parts them from the next,
    the value is printed once, and the best value is that of the block. ``width`` is the largest
    number of grouped columns side by side. ``sources`` is the column of folders ("" for none).
    Raises ValueError for a column that ``rows`` lacks, for rows that read alike, and if the first
    column is not aligned to the left.
    """

    label: str
    caption: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    block: str = ""
    width: int | None = None
    sources: str = "runs"

    def __post_init__(self) -> None:
        named = [name for column in self.columns for name in (column.name, column.spread)]
        frames.require(self.rows, filter(None, [*named, self.block, self.sources]), self.label)
        names = [column.name for column in _leading(self)]
        if not names:
            raise ValueError(f"table {self.label} has no leading column of text")
        if self.rows.duplicated(names).any():
            first = self.rows[self.rows.duplicated(names)].iloc[0][names]
            raise ValueError(f"table {self.label} has several rows {' / '.join(map(str, first))}")


class Cell(NamedTuple):
    """One printed number or word."""

    text: str
    spread: str = ""
    bold: bool = False


def cells(table: Table) -> list[list[Cell]]:
    """Rows of cells as printed; values of a block that print alike are all bold if one is best."""
    return [list(row) for row in zip(*(_cells(table, c) for c in table.columns), strict=True)]


def to_csv(table: Table) -> str:
    """Every column of ``rows``, numbers at full precision and unscaled, gaps as empty cells."""
    return table.rows.to_csv(index=False, lineterminator="\n")


def to_frame(table: Table) -> pd.DataFrame:
    """The printed cells; the leading text columns are the index."""
    printed, lead = cells(table), len(_leading(table))
    texts = [[_text(cell) for cell in row[lead:]] for row in printed]
    columns: pd.Index = pd.Index([column.label for column in table.columns[lead:]])
    if any(column.group for column in table.columns):
        pairs = [(column.group, column.label) for column in table.columns[lead:]]
        columns = pd.MultiIndex.from_tuples(pairs)
    # Not the printed cells: what a block prints once must still tell its rows apart.
    words = [[_printed(v, c) for v in table.rows[c.name]] for c in _leading(table)]
    index = pd.Index(words[0]) if lead == 1 else pd.MultiIndex.from_arrays(words)
    return pd.DataFrame(texts, index=index, columns=columns, dtype=object)


def to_styler(table: Table) -> Styler:
    """:func:`to_frame` for a notebook, best cells bold, caption and notes above."""
    frame, lead = to_frame(table), len(_leading(table))
    marks = [
        ["font-weight: bold" if cell.bold else "" for cell in row[lead:]] for row in cells(table)
    ]
    bold = pd.DataFrame(marks, index=frame.index, columns=frame.columns, dtype=object)
    frame = frame.map(lambda text: text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"))
    caption = " ".join([table.caption, *table.notes])
    # A fixed id: equal tables give equal HTML.
    return Styler(frame, uuid=table.label).apply(lambda _: bold, axis=None).set_caption(caption)


def to_markdown(table: Table) -> str:
    """GitHub Markdown, cut into parts of whole groups of columns where ``width`` says so."""
    printed = cells(table)
    lines = [table.caption, ""]
    for part in _parts(table):
        columns = [table.columns[c] for c in part]
        heads = [f"{column.group} {column.label}".strip() for column in columns]
        lines.append("| " + " | ".join(heads) + " |")
        lines.append("|" + "|".join("---:" if c.align == "r" else "---" for c in columns) + "|")
        for row in printed:
            lines.append("| " + " | ".join(_text(row[c], "**") for c in part) + " |")
        lines.append("")
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def to_latex(table: Table) -> str:
    """A ``table*`` with one booktabs ``tabular`` for each part of :func:`to_markdown`."""
    printed = cells(table)
    starts = _starts(table)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{tex(table.caption)}}}",
        f"\\label{{tab:{table.label}}}",
    ]
    for number, part in enumerate(_parts(table)):
        if number:
            lines.append("\\par\\medskip")
        columns = [table.columns[c] for c in part]
        lines.append(f"\\begin{{tabular}}{{{''.join(column.align for column in columns)}}}")
        lines.append("\\toprule")
        lines += _headings(columns)
        lines.append(" & ".join(tex(column.label) for column in columns) + " \\\\")
        lines.append("\\midrule")
        for r, row in enumerate(printed):
            if r in starts[1:]:
                lines.append("\\midrule")
            lines.append(" & ".join(_math(row[c]) for c in part) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}"]
    if table.notes:
        lines.append(f"\\par\\smallskip\\footnotesize {tex(' '.join(table.notes))}")
    lines.append("\\end{table*}")
    return "\n".join(lines) + "\n"


def write(
    table: Table, folder: str | Path, name: str, csv: str | None = None
) -> tuple[Path, Path, Path]:
    """Write ``<folder>/<name>.csv``, ``.md`` and ``.tex``, each whole or not at all.

    ``csv`` stands in for :func:`to_csv` where the printed rows are not the tidy ones.
    """
    folder = Path(folder)
    return (
        style.write(folder / f"{name}.csv", to_csv(table) if csv is None else csv),
        style.write(folder / f"{name}.md", to_markdown(table)),
        style.write(folder / f"{name}.tex", to_latex(table)),
    )


def tex(text: str) -> str:
    """Plain text for LaTeX."""
    return text.translate(_TEX)


def _leading(table: Table) -> list[Column]:
    """The columns before the first that is not aligned to the left."""
    columns = [*table.columns, Column("", "")]
    return columns[: next(i for i, column in enumerate(columns) if column.align == "r")]


def _starts(table: Table) -> list[int]:
    """Places of the first rows of the blocks."""
    if not table.block:
        return [0]
    values = table.rows[table.block]
    return [r for r in range(len(values)) if r == 0 or values.iloc[r] != values.iloc[r - 1]]


def _cells(table: Table, column: Column) -> list[Cell]:
    values = table.rows[column.name]
    texts = [_printed(value, column) for value in values]
    spreads = [""] * len(texts)
    if column.spread:
        known = zip(texts, table.rows[column.spread], strict=True)
        plain = replace(column, form=column.form.lstrip("+"))
        spreads = ["" if t == GAP or pd.isna(s) else _printed(s, plain) for t, s in known]
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
    if not column.form:
        return column.words(value)
    text = format(value * column.scale, column.form)
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def _number(text: str) -> float:
    return float(text.replace(_MINUS, "-").replace(",", ""))


def _parts(table: Table) -> Iterator[list[int]]:
    """Places of the columns of each part: those without a group, then whole groups."""
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


def _headings(columns: list[Column]) -> list[str]:
    """The row of spanning headings and its rules; nothing if no column has a group."""
    groups = list(dict.fromkeys(column.group for column in columns if column.group))
    if not groups:
        return []
    spans = ["" for column in columns if not column.group]
    rules, first = "", len(spans) + 1
    for group in groups:
        each = sum(column.group == group for column in columns)
        spans.append(f"\\multicolumn{{{each}}}{{c}}{{{tex(group)}}}")
        rules += f"\\cmidrule(lr){{{first}-{first + each - 1}}}"
        first += each
    return [" & ".join(spans) + " \\\\", rules]


def _text(cell: Cell, mark: str = "") -> str:
    text = f"{mark}{cell.text}{mark}" if cell.bold else cell.text
    return text + (f" ± {cell.spread}" if cell.spread else "")


def _math(cell: Cell) -> str:
    text = f"\\textbf{{{tex(cell.text)}}}" if cell.bold else tex(cell.text)
    return text + (f"{{\\scriptsize$\\,\\pm\\,${tex(cell.spread)}}}" if cell.spread else "")
