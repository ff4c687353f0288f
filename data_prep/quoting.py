"""Records of CSV whose quotes are not as the standard asks, line by line.

A record is read as RFC 4180 says where that gives the header's number of fields; else with quotes
that backslashes escape; else, where quotes stand within a field that no quote opens or do not pair
in a column that nobody reads, with every quote as a character. What stays is broken: its own line,
or, between two quotes of a read column that do not pair, every line, for nobody can tell which of
them are rows.
"""

from pathlib import Path

import numpy as np

from .reading import TOO_LONG, FormatError, line_ends

SEPARATORS = ",\t;|"
Record = tuple[int, str | None, str | None, list[str]]  # line's index, broken, value, the fields


def split_header(path: Path, data: bytes, required: list[str]) -> tuple[list[str], str, int]:
    """(column names, separator, where the rows begin) of a table's first bytes.

    Of the separators that one counts under which all required columns are there, else the most.
    """
    end = int(line_ends(data)[0]) if data else 0
    try:
        text = data[:end].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: line 1: expected a UTF-8 CSV header") from None
    headers = {}
    for separator in SEPARATORS:
        fields, _, _ = _scan([text], separator, backslash=False)
        fields = text.split(separator) if fields is None else fields
        headers[separator] = [name.strip().strip('"').strip() for name in fields] if text else []
    separator = max(
        SEPARATORS, key=lambda s: (set(required) <= set(headers[s]), len(headers[s]), s == ",")
    )
    return headers[separator], separator, end


def _scan(
    lines: list[str], separator: str, backslash: bool
) -> tuple[list[str] | None, int, int | None]:
    """(fields, lines used, column) of the record that begins with the first line.

    fields is None if a closing quote is followed by more text, or if the lines end in quotes: then
    lines used is 0. column: the first whose quotes run over several lines, else where it failed.
    """
    fields: list[str] = []
    used, place, text, over = 1, 0, lines[0], None
    blank = " " if separator == "\t" else " \t"
    while True:
        start = place
        while place < len(text) and text[place] in blank:
            place += 1
        if not text.startswith('"', place):
            end = text.find(separator, start)
            if end < 0:
                return [*fields, text[start:].rstrip("\r\n")], used, over
            fields.append(text[start:end])
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
                over = len(fields) if over is None else over
                if used == len(lines):
                    return None, 0, over
                text, place, used = lines[used], 0, used + 1
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
            return None, used, len(fields) - 1 if over is None else over
        place += 1


class Scanner:
    """Records of a piece of a table that begin at a given line; see the module for the rules."""

    def __init__(
        self,
        data: bytes,
        starts: np.ndarray,
        ends: np.ndarray,
        separator: str,
        width: int,
        places: list[int],
    ):
        self._data, self._starts, self._ends = data, starts, ends
        self._separator, self._width, self._places = separator, width, places

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
        # A line that closes its quotes needs no other.
        fields, used, column = _scan([line], self._separator, backslash=False)
        lines = [line]
        if not used:
            lines = [self._text(number) for number in range(first, stop)]
            fields, used, column = _scan(lines, self._separator, backslash=False)
            if not used and not ended:
                return None
        if fields is not None and len(fields) == self._width:
            return used, [self._row(first, fields)]
        if "\\" in line:
            escaped, more, _ = _scan(lines, self._separator, backslash=True)
            if escaped is not None and len(escaped) == self._width:
                return more, [self._row(first, escaped)]
        literal = line.rstrip("\r\n").split(self._separator)
        is_read = column in self._places
        if fields is None and len(literal) == self._width and (used == 1 or not is_read):
            return 1, [self._row(first, literal)]
        if used > 1 and is_read:
            return used, [self._broken(first + k, "broken line") for k in range(used)]
        return 1, [self._broken(first, "broken line")]

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
