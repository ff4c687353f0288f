"""Times: dates as text, or numbers whose unit the whole column tells.

Seconds, milliseconds, microseconds and nanoseconds since 1970 do not overlap for the years 1970 to
2099 but at its very start, so a number's size tells its unit. A column has one unit; years, days
written as numbers and the day numbers of spreadsheets are refused, for as seconds they would be
some day of 1970.
"""

from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from .reading import FormatError

LATEST = 4_102_444_800_000  # 2100-01-01 in milliseconds: later times are errors
# Unit -> its milliseconds. A number is of the first unit by which it lies before LATEST.
UNITS = {"seconds": 1000.0, "milliseconds": 1.0, "microseconds": 1e-3, "nanoseconds": 1e-6}
_EARLY = 1e8  # seconds; March 1973: fewer are no clock's where nearly all others have more
_SHARE = 0.1  # of the numbers that may be of another kind, each rejected; more refuse the file
_DAY, _MONTH = "BETWEEN 1 AND 31", "BETWEEN 1 AND 12"
_YEAR = "BETWEEN 1900 AND 2099"
_WHOLE = "number = whole"
# What numbers below _EARLY may be instead: condition on number and whole (its integer), the hint.
_DATES = {
    "years": (f"{_WHOLE} AND whole {_YEAR}", "years"),
    "YYYYMMDD": (
        f"{_WHOLE} AND whole // 10000 {_YEAR} AND whole // 100 % 100 {_MONTH} "
        f"AND whole % 100 {_DAY}",
        "days written as YYYYMMDD",
    ),
    "DDMMYYYY": (
        f"{_WHOLE} AND whole % 10000 {_YEAR} AND whole // 10000 % 100 {_MONTH} "
        f"AND whole // 1000000 {_DAY}",
        "days written as DDMMYYYY",
    ),
    "MMDDYYYY": (
        f"{_WHOLE} AND whole % 10000 {_YEAR} AND whole // 10000 % 100 {_DAY} "
        f"AND whole // 1000000 {_MONTH}",
        "days written as MMDDYYYY",
    ),
    "days": ("number BETWEEN 20000 AND 80000", "day numbers of a spreadsheet"),
}
_KINDS = (*UNITS, "early", *_DATES)
OUT_OF_RANGE = "{} out of range (before 1970 or after 2099)"


def kind_sql(number: str = "number") -> str:
    """SQL: the unit that a number's size tells, null beyond all and below 0."""
    cases = " ".join(
        f"WHEN {number} < {LATEST / scale!r} THEN '{unit}'" for unit, scale in UNITS.items()
    )
    return f"CASE WHEN {number} < 0 THEN NULL {cases} END"


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
        early = f"kind = 'seconds' AND number < {_EARLY}"
        conditions = {unit: f"kind = '{unit}'" for unit in UNITS} | {"early": early}
        conditions["seconds"] += f" AND number >= {_EARLY}"
        conditions |= {kind: f"{early} AND {dates}" for kind, (dates, _) in _DATES.items()}
        parts = ", ".join(
            f"count(*) FILTER ({c}), min(line) FILTER ({c}), arg_min(time, line) FILTER ({c})"
            for c in conditions.values()
        )
        row = connection.execute(
            f"SELECT count(moment), {parts} FROM (SELECT *, {kind_sql()} AS kind, "
            "try_cast(number AS BIGINT) AS whole FROM sorted "
            "WHERE reason IS NULL)"
        ).fetchone()
        assert row is not None
        self.dates += row[0]
        for place, kind in enumerate(conditions):
            count, line, text = row[1 + 3 * place : 4 + 3 * place]
            self.counts[kind] += count
            if count:
                self.first.setdefault(kind, (line, text))

    @property
    def scale(self) -> float:
        """Milliseconds of the unit."""
        return UNITS[self.unit or "seconds"]

    @property
    def groups(self) -> dict[str, int]:
        """How many numbers there are of each unit, and too early for a clock."""
        return {group: self.counts[group] for group in (*UNITS, "early")}

    def settle(self) -> None:
        """Decide the unit of the numbers; raises FormatError if there is none or there are two."""
        groups = self.groups
        total = sum(groups.values())
        if not total:
            return
        for kind, (_, hint) in _DATES.items():
            if self.counts[kind] >= (1 - _SHARE) * total:
                line, text = self.first[kind]
                raise FormatError(
                    f"{self.path}: line {line}: {self.name} {text!r}: expected seconds since 1970 "
                    f"or ISO dates, these numbers look like {hint}; write dates as 2014-12-31"
                )
        main = max(groups, key=lambda group: groups[group])
        if total - groups[main] > _SHARE * total:
            examples = ", ".join(
                f"{count} {'below 100000000' if group == 'early' else group}"
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

    def misfits(self) -> dict[str, tuple[str, list[str]]]:
        """Reason -> (SQL condition on `number`, the kinds it holds) for numbers not of the unit."""
        if self.unit is None:
            return {}
        units = list(UNITS)
        place = units.index(self.unit)
        least = max(self.low, LATEST / UNITS[units[place - 1]] if place else 0.0)
        return {
            OUT_OF_RANGE.format(self.name): (
                f"number >= {LATEST / UNITS[self.unit]!r}", units[place + 1 :]
            ),
            f"{self.name} in another unit": (
                f"number < {least!r}", ["early" if place == 0 else "seconds", *units[1:place]]
            ),
        }  # fmt: skip
