"""Records of CSV whose quotes are not as the standard asks, line by line.

A record is read as RFC 4180 says where that gives the header's number of fields; else, or where it
takes fewer lines, with quotes that backslashes escape; else, where quotes stand within a field that
no quote opens or do not pair in a column that nobody reads, with these quotes as characters. What
stays is broken: its own line, or, between two quotes of a read column that do not pair, every line,
for nobody can tell which of them are rows. A backslash before a quote in a field without quotes of
its own is no part of the text.

Two quotes that have nothing to do with each other look like one field over several lines. What lies
between tells. Of a text, hardly a line has as many fields as the header and, where the record's own
first line has them, numbers, dates, ids and no leading blanks. Of rows, nearly every line has. So
where the first line, split by itself, has the header's fields and most lines behind it are rows
like it, the quotes are characters, or, in a read column, every line is rejected.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .missing import present
from .reading import TOO_LONG, FormatError, line_ends

SEPARATORS = ",\t;|"
_NAMED = re.compile(rb'"?sep=([^\w"\r\n\x80-\xff])"?(?:\r\n?|\n|$)', re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?|[0-9]{4}[-/][0-9].*")  # or a date
Record = tuple[int, str | None, str | None, list[str]]  # line's index, broken, value, the fields


def named_separator(data: bytes) -> tuple[str | None, int]:
    """(separator, where the header begins) if a table's first line is `sep=;`, as Excel writes."""
    match = _NAMED.match(data)
    return (match[1].decode(), match.end()) if match else (None, 0)


def split_header(
    path: Path, data: bytes, required: list[str], line: int = 1, separator: str | None = None
) -> tuple[list[str], str, int]:
    """(column names, separator, where the rows begin) of the bytes that begin with the header.

    Of the separators that one counts under which all required columns are there, else the most,
    unless `separator` says which. line: the header's number, for the error.
    """
    end = int(line_ends(data)[0]) if data else 0
    try:
        text = data[:end].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: line {line}: expected a UTF-8 CSV header") from None
    headers = {}
    for mark in [separator] if separator else SEPARATORS:
        fields, _, _ = _scan([text].__getitem__, 1, mark, backslash=False)
        fields = text.split(mark) if fields is None else fields
        headers[mark] = [name.strip().strip('"').strip() for name in fields] if text else []
    separator = max(
        headers, key=lambda mark: (set(required) <= set(headers[mark]), len(headers[mark]))
    )
    return headers[separator], separator, end


def _scan(
    line: Callable[[int], str], count: int, separator: str, backslash: bool
) -> tuple[list[str] | None, int, list[int]]:
    """(fields, lines used, columns) of the record that begins with line(0), of `count` lines.

    fields is None if a closing quote is followed by more text, or if the lines end in quotes: then
    lines used is 0. columns: those whose quotes run over several lines, else the one that failed.
    """
    fields: list[str] = []
    over: list[int] = []
    used, place, text = 1, 0, line(0)
    blank = " " if separator == "\t" else " \t"
    while True:
        start = place
        while place < len(text) and text[place] in blank:
            place += 1
        if not text.startswith('"', place):
            end = text.find(separator, start)
            if end < 0:
                return [*fields, _unquoted(text[start:].rstrip("\r\n"))], used, over
            fields.append(_unquoted(text[start:end]))
            place = end + 1
            continue
        parts: list[str] = []
        place += 1
        while True:
            quote = text.find('"', place)
            escape = text.find("\\", place, quote if quote >= 0 else len(text)) if backslash else -1
            if escape >= 0 and text[escape + 1 : escape + 2] in ('"', "\\"):
                parts.append(text[place:escape] + text[escape + 1])
                place = escape + 2
            elif escape >= 0:
                parts.append(text[place : escape + 1])
                place = escape + 1
            elif quote < 0:
                parts.append(text[place:])
                if len(fields) not in over:
                    over.append(len(fields))
                if used == count:
                    return None, 0, over
                text, place, used = line(used), 0, used + 1
            elif text.startswith('""', quote):
                parts.append(text[place : quote + 1])
                place = quote + 2
            else:
                parts.append(text[place:quote])
                place = quote + 1
                break
        while place < len(text) and text[place] in blank:
            place += 1
        fields.append("".join(parts))
        if not text[place:].rstrip("\r\n"):
            return fields, used, over
        if not text.startswith(separator, place):
            return None, used, over or [len(fields) - 1]
        place += 1


def _unquoted(field: str) -> str:
    return field.replace('\\"', '"')


class Scanner:
    """Records of a piece of a table that begin at a given line; see the module for the rules.

    oddities: counts what was read though it is not as RFC 4180 asks, or was in doubt.
    """

    def __init__(
        self,
        data: bytes,
        starts: np.ndarray,
        ends: np.ndarray,
        separator: str,
        width: int,
        places: list[int],
        oddities: Counter[str],
    ):
        self._data, self._starts, self._ends = data, starts, ends
        self._separator, self._width, self._places = separator, width, places
        self._oddities = oddities
        mark = re.escape(separator)
        blank = " " if separator == "\t" else " \t"
        self._quoted = re.compile(f'[{blank}]*"([^"]*(?:""[^"]*)*)"[{blank}]*(?={mark}|$)')

    def record(self, first: int, stop: int, ended: bool) -> tuple[int, list[Record]] | None:
        """(lines used, the rows) from line `first`, looking at lines before `stop` at most.

        None if the record may go on behind `stop` and not all has been `ended` there.
        """
        line = self._text(first)
        if not line.strip():
            return 1, [self._broken(first, "empty line")]
        if line.strip() == TOO_LONG:
            return 1, [self._broken(first, "line too long")]
        if '"' not in line:
            return 1, [self._broken(first, "broken line")]
        standard = self._read(first, stop, backslash=False)
        readings = [standard]
        last = first + standard[1] if standard[1] else stop
        if self._data.find(b"\\", self._starts[first], self._ends[last - 1]) >= 0:
            readings.append(self._read(first, stop, backslash=True))
        fitting = [reading for reading in readings if len(reading[0] or []) == self._width]
        fields, used, columns = min(fitting, key=lambda reading: reading[1], default=(None, 0, []))
        if used != 1 and not ended and not all(length for _, length, _ in readings):
            return None
        are_rows = used > 1 and self._are_rows(first, used)
        if fields and not are_rows:
            if fields is not standard[0]:
                self._oddities["backslash before a quote"] += 1
            return used, [self._row(first, fields)]
        if are_rows and self._is_read(columns):
            reason = "line break in a field"
            return used, [self._broken(first + k, reason) for k in range(used)]
        _, used, columns = standard
        literal = self._split(line)
        if len(literal) == self._width and (used == 1 or not self._is_read(columns)):
            self._oddities["quote as a character"] += 1
            return 1, [self._row(first, literal)]
        if used > 1 and self._is_read(columns):
            return used, [self._broken(first + k, "broken line") for k in range(used)]
        return 1, [self._broken(first, "broken line")]

    def _read(
        self, first: int, stop: int, backslash: bool
    ) -> tuple[list[str] | None, int, list[int]]:
        return _scan(lambda k: self._text(first + k), stop - first, self._separator, backslash)

    def _is_read(self, columns: list[int]) -> bool:
        return bool(set(columns) & set(self._places))

    def _are_rows(self, first: int, used: int) -> bool:
        """Whether the lines of what may be one record are rows of their own, most of them."""
        own, *others = (self._cells(self._text(first + k)) for k in range(used))
        if len(own) != self._width:
            return False
        like = sum(self._is_like(cells, own) for cells in others)
        if like and 2 * like < used:
            self._oddities["text with lines like rows"] += 1
        return 2 * like >= used

    def _is_like(self, fields: list[str], own: list[str]) -> bool:
        """Whether fields may be those of a row beside the row `own`; the read ones tell."""
        if len(fields) != self._width:
            return False
        for place in self._places:
            field, pattern = fields[place], own[place]
            if _NUMBER.fullmatch(pattern.strip()):
                like = present(field) is None or bool(_NUMBER.fullmatch(field.strip()))
            else:
                like = bool(field.strip()) or not pattern.strip()
            if not like or field[:1].isspace() and not pattern[:1].isspace():
                return False
        return True

    def _cells(self, line: str) -> list[str]:
        """A line's fields to look at: split at every separator where that alone gives the width."""
        fields = self._split(line)
        return fields if len(fields) == self._width else line.split(self._separator)

    def _split(self, line: str) -> list[str]:
        """A line's fields, each by itself: quotes that do not pair around it are characters."""
        line = line.rstrip("\r\n")
        fields, place = [], 0
        while True:
            quoted = self._quoted.match(line, place)
            end = quoted.end() if quoted else line.find(self._separator, place)
            end = len(line) if end < 0 else end
            fields.append(quoted[1].replace('""', '"') if quoted else _unquoted(line[place:end]))
            if end == len(line):
                return fields
            place = end + 1

    def _text(self, number: int) -> str:
        line = self._data[self._starts[number] : self._ends[number]]
        return line.decode("utf-8", "surrogateescape")

    def _row(self, number: int, fields: list[str]) -> Record:
        chosen = [fields[place] for place in self._places]
        if any("\n" in field or "\r" in field for field in chosen):
            return self._broken(number, "line break in a field")
        return number, None, None, chosen

    def _broken(self, number: int, reason: str) -> Record:
        value = self._text(number)[:80].strip("\r\n").encode("utf-8", "backslashreplace").decode()
        return number, reason, value, []
