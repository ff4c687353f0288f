"""Times: dates as text, or numbers whose unit the whole column tells.

Seconds, milliseconds, microseconds and nanoseconds since 1970 do not overlap for the years 1970 to
2099 but at its very start, so a number's size tells its unit. A column has one unit; dates written
as numbers (20141231, 2014, 201412311530) and the day numbers of spreadsheets are refused, for as
seconds or milliseconds they would be some day of the 1970s. Small numbers of no calendar are taken
for an order.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from .reading import FormatError

LATEST = 4_102_444_800_000  # 2100-01-01 in milliseconds: later times are errors
# Unit -> its milliseconds. A number is of the first unit by which it lies before LATEST.
UNITS = {"seconds": 1000.0, "milliseconds": 1.0, "microseconds": 1e-3, "nanoseconds": 1e-6}
_EARLY = 1e8  # seconds; March 1973: fewer are no clock's where nearly all others have more
_SHARE = 0.1  # of the numbers that may be of another kind, each rejected; more refuse the file
# Part of a form -> its values. M is a month, m a minute. Two-digit years from 41 to 69 are in no
# log; without them a counter, which has every two last digits, is not taken for DDMMYY.
_PARTS = {
    "YYYY": "BETWEEN 1900 AND 2099",
    "YY": "NOT BETWEEN 41 AND 69",
    "MM": "BETWEEN 1 AND 12",
    "DD": "BETWEEN 1 AND 31",
    "hh": "BETWEEN 0 AND 23",
    "mm": "BETWEEN 0 AND 59",
    "ss": "BETWEEN 0 AND 59",
    "fff": "BETWEEN 0 AND 999",
}
_PART = re.compile("YYYY|YY|MM|DD|hh|mm|ss|fff")


def _form(form: str) -> str:
    """SQL: whether `number` is a date or time written as in the form, read as one integer."""
    whole, digits = "try_cast(number AS BIGINT)", len(form)
    least = 10 ** (digits - 2)  # a leading zero is lost where a table holds integers
    conditions = [f"number = {whole}"]
    for part in _PART.findall(form):
        digits -= len(part)
        conditions.append(f"{whole} // {10**digits} % {10 ** len(part)} {_PARTS[part]}")
    # Few numbers are so long; CASE spares the others the arithmetic.
    return (
        f"CASE WHEN number BETWEEN {least} AND {10 ** len(form) - 1} "
        f"THEN {' AND '.join(conditions)} ELSE false END"
    )


def _any(dates: dict[str, str]) -> str:
    return " OR ".join(f"({condition})" for condition in dates.values())


# What numbers below _EARLY may be instead: kind -> condition on `number` and, of YYMMDD, the text,
# for 101 to 131 are days of 2000 only where zeros stand before them.
_EARLY_DATES = {
    "years": _form("YYYY"),
    **{
        f"days written as {form}": _form(form)
        for form in ("YYYYMMDD", "DDMMYYYY", "MMDDYYYY", "YYMMDD", "DDMMYY", "MMDDYY")
    },
    "months written as YYYYMM": _form("YYYYMM"),
    "months written as MMYYYY": _form("MMYYYY"),
    "day numbers of a spreadsheet": "number BETWEEN 20000 AND 80000",
}
_EARLY_DATES["days written as YYMMDD"] += " OR time LIKE '00____' AND number BETWEEN 101 AND 1231"
# Larger numbers of these forms are days of the 1970s in their unit, so none is a time.
_LATE_DATES = {
    f"times written as {form.upper()}": _form(form)
    for form in ("YYYYMMDDhhmm", "DDMMYYYYhhmm", "YYYYMMDDhhmmss", "DDMMYYYYhhmmss",
                 "YYYYMMDDhhmmssfff")
}  # fmt: skip
# A time from 2030 on, or in milliseconds before 2001, may look like one of these; a column not.
_LIKELY_DATES = {
    f"times written as {form.upper()}": _form(form)
    for form in ("YYYYMMDDhh", "YYMMDDhhmmss", "DDMMYYhhmmss")
}
_DATES = _EARLY_DATES | _LATE_DATES | _LIKELY_DATES
_LATE = f"({_any(_LATE_DATES)})"
# Only numbers as long as a date are looked at further: of most columns none.
_SHORT = f"number < {_EARLY} OR {_any(_LATE_DATES | _LIKELY_DATES)}"
_NO_UNIT = {"early": "below 100000000", "calendar": "dates written as numbers"}
_KINDS = (*UNITS, *_NO_UNIT, "dated", *_DATES)
OUT_OF_RANGE = "{} out of range (before 1970 or after 2099)"


def kind_sql(number: str = "number") -> str:
    """SQL: the unit that a number's size tells, null beyond all and below 0."""
    cases = " ".join(
        f"WHEN {number} < {LATEST / scale!r} THEN '{unit}'" for unit, scale in UNITS.items()
    )
    return f"CASE WHEN {number} < 0 THEN NULL {cases} END"


def _first(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


@dataclass
class Times:
    """What one column of times holds, batch by batch; `unit` and `low` once all is in."""

    name: str
    path: Path
    dates: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0))
    first: dict[str, tuple[int, str]] = field(default_factory=dict)  # kind -> line and text
    unit: str | None = None
    low: float = 0.0  # smaller numbers are rejected

    def note(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Count the numbers of the accepted rows of the temporary table `sorted`."""
        (dates,) = _first(connection, "SELECT count(moment) FROM sorted WHERE reason IS NULL")
        self.dates += dates
        groups = {unit: f"kind = '{unit}' AND NOT late" for unit in UNITS}
        groups["seconds"] += f" AND number >= {_EARLY}"
        groups |= {"early": f"number < {_EARLY}", "calendar": "late"}
        rows = f"SELECT *, {kind_sql()} AS kind, {_LATE} AS late FROM sorted WHERE reason IS NULL"
        self._count(connection, groups, rows)
        flags = {kind: f"is_{place}" for place, kind in enumerate(_DATES)}
        columns = ", ".join(f"{_DATES[kind]} AS {flag}" for kind, flag in flags.items())
        rows = f"SELECT *, {columns} FROM sorted WHERE reason IS NULL AND ({_SHORT})"
        self._count(connection, flags | {"dated": " OR ".join(flags.values())}, rows)

    def _count(
        self, connection: duckdb.DuckDBPyConnection, conditions: dict[str, str], rows: str
    ) -> None:
        """Add to `counts` and `first` which of the rows hold each kind's condition."""
        parts = ", ".join(
            f"count(*) FILTER ({c}), min(line) FILTER ({c}), arg_min(time, line) FILTER ({c})"
            for c in conditions.values()
        )
        row = _first(connection, f"SELECT {parts} FROM ({rows})")
        for place, kind in enumerate(conditions):
            count, line, text = row[3 * place : 3 * place + 3]
            self.counts[kind] += count
            if count:
                self.first.setdefault(kind, (line, text))

    @property
    def scale(self) -> float:
        """Milliseconds of the unit."""
        return UNITS[self.unit or "seconds"]

    @property
    def groups(self) -> dict[str, int]:
        """How many numbers there are of each unit, too early for a clock, and of the calendar."""
        return {group: self.counts[group] for group in (*UNITS, *_NO_UNIT)}

    def settle(self) -> None:
        """Decide the unit of the numbers; raises FormatError if there is none or there are two."""
        groups = self.groups
        total = sum(groups.values())
        if not total:
            return
        if self.counts["dated"] >= (1 - _SHARE) * total:
            line, text = self.first["dated"]
            raise FormatError(
                f"{self.path}: line {line}: {self.name} {text!r}: expected seconds since 1970 or "
                f"ISO dates, these numbers look like {self._dates(total)}; write dates as "
                "2014-12-31"
            )
        main = max(groups, key=lambda group: groups[group])
        if total - groups[main] > _SHARE * total:
            examples = ", ".join(
                f"{count} {_NO_UNIT.get(group, group)}"
                f" (line {self.first[group][0]}: {self.first[group][1]!r})"
                for group, count in groups.items()
                if count
            )
            raise FormatError(
                f"{self.path}: {self.name}: expected one unit of time, found {examples}"
            )
        self.unit = "seconds" if main == "early" else main
        # Small numbers are an order, if not a clock's; among those of a clock they are a slip.
        self.low = _EARLY if main == "seconds" else 0.0

    def _dates(self, total: int) -> str:
        """The kinds of dates that nearly all numbers may be of, or the most common with a line."""
        kinds = sorted(_DATES, key=lambda kind: -self.counts[kind])
        of_all = [kind for kind in kinds if self.counts[kind] >= (1 - _SHARE) * total]
        if of_all:
            return " or ".join(of_all)
        return " and ".join(
            f"{kind} (line {self.first[kind][0]}: {self.first[kind][1]!r})"
            for kind in kinds
            if self.counts[kind] > _SHARE * total
        )

    def misfits(self) -> dict[str, tuple[str, list[str]]]:
        """Reason -> (SQL condition on `number`, the kinds it holds) for numbers not of the unit."""
        if self.unit is None:
            return {}
        units = list(UNITS)
        place = units.index(self.unit)
        least = max(self.low, LATEST / UNITS[units[place - 1]] if place else 0.0)
        return {
            OUT_OF_RANGE.format(self.name): (
                f"number >= {LATEST / UNITS[self.unit]!r} AND NOT {_LATE}", units[place + 1 :]
            ),
            f"{self.name} in another unit": (
                f"number < {least!r} OR {_LATE}",
                ["early" if place == 0 else "seconds", *units[1:place], "calendar"],
            ),
        }  # fmt: skip
