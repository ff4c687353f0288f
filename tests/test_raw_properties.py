"""Random tables, written and read back: every record is accepted as written, or rejected."""

import csv
import io
import json
from collections import Counter

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_raw_tables import START

import data_prep
from data_prep import delimited, reading
from data_prep.missing import present
from data_prep.titles import clean_title

cells = st.text(
    st.sampled_from("ab,;\t\"'\\\n\r |é") | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=8,
) | st.sampled_from(["nan", "NULL", "", '"', '""', "a\nb,c", 'x"'])  # fmt: skip
several = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
separators = st.sampled_from(",\t;|")
ends = st.sampled_from(["\n", "\r\n", "\r"])
blocks = st.sampled_from([7, 64, 2**20])
HEADER = ["item", "note", "title", "more"]


def read_back(folder, text, block):
    """The rows that the reader makes of a table, by line."""
    path = folder.getbasetemp() / "any.csv"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "blocks", lambda p, progress: reading.blocks(p, block=block))
        batches = list(delimited.table_batches(path, ["item", "title"], []))
    return pa.concat_tables(batches, promote_options="permissive").sort_by("line").to_pylist()


def written(table, separator, end, **dialect):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, **dialect)
    writer.writerow(HEADER)
    writer.writerows(table)
    return text.getvalue()


def one_line(cell):
    return " ".join(cell.replace("\r", "\n").split("\n"))


@settings(several, max_examples=120)
@given(
    table=st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=12),
    separator=separators,
    end=ends,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    escaped=st.booleans(),
    block=blocks,
)
def test_every_record_of_any_table_is_accepted_as_written_or_rejected(
    tmp_path_factory, table, separator, end, quoting, escaped, block
):
    if quoting == csv.QUOTE_MINIMAL:  # which leaves the other line break without quotes
        other = str.maketrans("\r\n", "  ") if end != "\r\n" else {}
        table = [tuple(cell.translate(other) for cell in row) for row in table]
    # The last column of text like rows is another test's.
    table = [(*row, last if one_line(last) == last else last.replace(separator, " "))
             for *row, last in table]  # fmt: skip
    dialect = {"quoting": quoting}
    if escaped:  # a backslash may mean itself, and a separator beside one stand for RFC's quotes
        dialect |= {"doublequote": False, "escapechar": "\\"}
        plain = str.maketrans({"\\": "/", separator: " "})
        table = [tuple(cell.translate(plain) for cell in row) for row in table]
    read = read_back(tmp_path_factory, written(table, separator, end, **dialect), block)
    assert len(read) == len(table)
    for row, (item, _, title, _) in zip(read, table, strict=True):
        if any(character in item + title for character in "\r\n"):
            assert row["broken"] == "line break in a field"
        else:
            assert row["broken"] is None
            assert (row["item"] or "").strip(" \t") == item.strip(" \t")
            assert (row["title"] or "").strip(" \t") == title.strip(" \t")


stray = st.text(st.sampled_from("ab \"'\\é"), max_size=8).map(str.strip) | st.sampled_from(
    ['"', '""', '"fine', 'fine"', '12" x', '"a" b', '"a"']
)


@settings(several, max_examples=150)
@given(
    drawn=st.lists(st.tuples(stray, stray, stray), min_size=1, max_size=12),
    quoted_title=st.booleans(),
    separator=separators,
    end=ends,
    block=blocks,
)
def test_stray_and_lone_quotes_lose_no_line(
    tmp_path_factory, drawn, quoted_title, separator, end, block
):
    table = [(str(n), note, f"T{title}", more) for n, (note, title, more) in enumerate(drawn)]
    lines = [separator.join(HEADER)]
    for item, note, title, more in table:
        title = '"' + title.replace('"', '""') + '"' if quoted_title else title
        lines.append(separator.join([item, note, title, more]))
    read = read_back(tmp_path_factory, end.join(lines) + end, block)
    assert [row["line"] for row in read] == list(range(2, len(table) + 2))
    for row, (item, note, title, more) in zip(read, table, strict=True):
        # A row is lost at most to a title whose quotes do not pair.
        if '"' not in note + more and (quoted_title or not any('"' in row[2] for row in table)):
            assert row["broken"] is None
        if row["broken"] is None:
            meant = title if quoted_title else title.replace('\\"', '"')
            assert row["item"] == item and row["title"] == meant


ids = st.sampled_from([*"abcdefgh", "nan", "", "é"])
stamps = st.integers(START, START + 10**6).map(str) | st.sampled_from(["NULL", "x", "1_0", ""])
notes = cells | st.sampled_from([float("nan"), True, None, [[1]], {"a": "b"}])
AMAZON = {"2023": ("user_id", "parent_asin", "timestamp"),
          "2018": ("reviewerID", "asin", "unixReviewTime")}  # fmt: skip


def dated(stamp):
    if not stamp.isdigit():
        return stamp
    return pd.Timestamp(int(stamp), unit="s", tz="UTC").strftime("%a %b %d %H:%M:%S +0000 %Y")


def write_form(folder, form, rows, items):
    """Files of one form; the keyword arguments to prepare them with."""
    if form in ("csv", "escaped", "parquet"):
        frame = pd.DataFrame(
            [(u, i, t, str(n)) for u, i, t, n in rows],
            columns=["user", "item", "timestamp", "note"],
        )
        titles = pd.DataFrame(items, columns=["item", "title"])
        for role, table in (("interactions", frame), ("items", titles)):
            if form == "parquet":
                table.to_parquet(folder / f"shop.{role}.parquet")
                continue
            dialect = {"doublequote": False, "escapechar": "\\"} if form == "escaped" else {}
            quoting = csv.QUOTE_ALL if form == "escaped" else csv.QUOTE_MINIMAL
            table.to_csv(folder / f"shop.{role}.csv", index=False, quoting=quoting, **dialect)
        return {"kind": "plain"}
    if form.startswith("goodreads"):
        names = ("user_id", "book_id", "date_added")
        rows = [(u, i, dated(t), n) for u, i, t, n in rows]
        whole = form == "goodreads-whole"
        files = ["goodreads_interactions_dedup.json" if whole else
                 "goodreads_interactions_poetry.json",
                 "goodreads_books.json" if whole else "goodreads_books_poetry.json"]  # fmt: skip
        more, choice = {"is_read": True, "rating": 4, "read_at": ""}, {"kind": "goodreads"}
    else:
        names = AMAZON["2023" if form == "2023" else "2018"]
        files = ["Shop.jsonl", "meta_Shop.jsonl"]
        if form == "2014":
            files = ["reviews_Shop_5.json", "meta_Shop.json"]
        more, choice = {"rating": 4.0, "overall": 4.0}, {"kind": "amazon"}
    dump = str if form == "2014" else json.dumps
    reviews = [dict(zip(names, row[:3], strict=True)) | more | {"note": row[3]} for row in rows]
    products = [{names[1]: i, "title": t, "note": rows[0][3]} for i, t in items]
    for name, records, write in zip(files, (reviews, products), (json.dumps, dump), strict=True):
        (folder / name).write_text("".join(write(record) + "\n" for record in records))
    return choice


@pytest.mark.parametrize(
    "form",
    ["csv", "escaped", "parquet", "2023", "2018", "2014", "goodreads", "goodreads-whole"],
)
@settings(several, max_examples=6)
@given(
    drawn=st.lists(st.tuples(ids, ids, stamps, notes), max_size=10),
    named=st.lists(st.tuples(ids, cells), max_size=6),
)
def test_accepted_and_rejected_are_all_lines_in_every_form(tmp_path_factory, form, drawn, named):
    folder = tmp_path_factory.mktemp("raw")
    rows = [(f"k{n}", f"i{n + k}", str(START + k), "") for n in range(3) for k in range(4)] + drawn
    items = [(f"i{n}", f"Title {n}") for n in range(7)]
    if form == "escaped":  # a backslash may mean itself
        named = [(i, t.replace("\\", "/").replace(",", " ")) for i, t in named]
        rows = [(u, i, t, str(n).replace("\\", "/").replace(",", " ")) for u, i, t, n in rows]
    if form in ("csv", "escaped"):  # text like rows is another test's
        rows = [(u, i, t, one_line(str(n)).replace(",", " ")) for u, i, t, n in rows]
        named = [(i, t.replace(",", " ")) for i, t in named]
    items += named
    choice = write_form(folder, form, rows, items)
    choice |= {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False}
    data_prep.prepare("own", folder, folder / "out", **choice)
    (path,) = (folder / "out").glob("*/meta.json")
    meta = json.loads(path.read_text())
    for table, count in (("interactions", len(rows)), ("items", len(items))):
        counts = meta[table]
        assert counts["lines"] == count
        assert sum(counts["rejected"].values()) + counts["accepted"] == count
    titles: dict[str, str] = {}
    for item, title in items:
        is_read = form not in ("csv", "escaped") or one_line(title) == title
        if is_read and present(item) and present(title) and clean_title(title):
            titles.setdefault(present(item), clean_title(title))
    prepared = dict(pd.read_parquet(path.parent / "items.parquet").values.tolist())
    assert prepared.items() <= titles.items()
    history = pd.read_parquet(path.parent / "interactions.parquet")
    if not meta["items"]["merged_by_title"]:
        read = Counter((r.user_id, r.item_id, str(r.timestamp)) for r in history.itertuples())
        assert set(read) <= {(u, i, t) for u, i, t, _ in rows}
