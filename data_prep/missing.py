"""Missing values: what no file means as a value, written as a word instead of nothing.

pandas, R, Spark, MySQL and Excel write such words where a cell is empty. Everything that is read
passes `present` (SQL), so a word counts as missing in every column of every format alike.
"""

import duckdb

BLANK = " \t\r\n"
# Every spelling by itself: "Nan" and "none" may stand in a file, "na" and "Na" may be a name.
WORDS = frozenset(
    spelling
    for word in ("nan", "none", "null", "n/a", "#n/a", "<na>", "nat")
    for spelling in (word, word.upper(), word.capitalize())
) | {"NaN", "-nan", "-NaN", "NaT", "NA", "\\N"}


def present(text: str | None) -> str | None:
    """The text without surrounding white space; None if it is blank or a word for "missing"."""
    text = (text or "").strip(BLANK)
    return None if not text or text in WORDS else text


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Define the SQL macro present(x), the same as the function above, on a connection."""
    words = ", ".join("'" + word + "'" for word in sorted(WORDS | {""}))
    longest = max(map(len, WORDS))
    known = f"CASE WHEN strlen(x) > {longest} OR x NOT IN ({words}) THEN x END"
    connection.execute(f"CREATE OR REPLACE MACRO known(x) AS {known}")
    # Trimming costs more than looking whether there is anything to trim.
    connection.execute(f"""CREATE OR REPLACE MACRO present(x) AS CASE
        WHEN regexp_matches(x, '^[{BLANK}]|[{BLANK}]$') THEN known(trim(x, '{BLANK}'))
        ELSE known(x) END""")
