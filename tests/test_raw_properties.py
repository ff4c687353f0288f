"""Random tables, written and read back: every record is accepted as written, or rejected."""

import csv
import io

import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_raw_tables import START, prepare

from data_prep import delimited, reading

cells = st.text(
    st.sampled_from("ab,;\t\"'\\\n\r |é") | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=8,
) | st.sampled_from(["nan", "NULL", "", '"', '""', "a\nb,c", 'x"'])  # fmt: skip


@settings(max_examples=120, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    table=st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=12),
    separator=st.sampled_from(",\t;"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    block=st.sampled_from([7, 64, 2**20]),
)
def test_every_record_of_any_table_is_accepted_as_written_or_rejected(
    tmp_path_factory, monkeypatch, table, separator, end, quoting, block
):
    if quoting == csv.QUOTE_MINIMAL:  # which leaves the other line break without quotes
        other = str.maketrans("\r\n", "  ") if end != "\r\n" else {}
        table = [tuple(cell.translate(other) for cell in row) for row in table]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerow(["item", "note", "title", "more"])
    writer.writerows(table)
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.getvalue().encode())
    monkeypatch.setattr(delimited, "blocks", lambda p, progress: reading.blocks(p, block=block))
    read = pa.concat_tables(
        delimited.table_batches(path, ["item", "title"], []), promote_options="permissive"
    )
    read = read.sort_by("line").to_pylist()
    assert len(read) == len(table)
    for row, (item, _, title, _) in zip(read, table, strict=True):
        if any(character in item + title for character in "\r\n"):
            assert row["broken"] == "line break in a field"
        else:
            assert row["broken"] is None
            assert (row["item"] or "").strip(" \t") == item.strip(" \t")
            assert (row["title"] or "").strip(" \t") == title.strip(" \t")


ids = st.sampled_from([*"abcdefgh", "nan", "", "é"])
stamps = st.integers(START, START + 10**6).map(str) | st.sampled_from(["NULL", "x", "1_0", ""])


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    drawn=st.lists(st.tuples(ids, ids, stamps, cells), max_size=10),
    kind=st.sampled_from(["csv", "parquet", "json"]),
    named=st.lists(st.tuples(ids, cells), max_size=6),
)
def test_accepted_and_rejected_are_all_lines_in_every_format(tmp_path_factory, drawn, kind, named):
    folder = tmp_path_factory.mktemp("raw")
    known = [(f"k{n}", f"i{n + k}", str(START + k), "") for n in range(3) for k in range(4)]
    named = [(f"i{n}", f"Title {n}") for n in range(7)] + named
    frame = pd.DataFrame(known + drawn, columns=["user", "item", "timestamp", "note"])
    items = pd.DataFrame(named, columns=["item", "title"])
    if kind == "json":
        frame.columns = ["user_id", "parent_asin", "timestamp", "note"]
        items.columns = ["parent_asin", "title"]
        frame.to_json(folder / "shop.jsonl", orient="records", lines=True)
        items.to_json(folder / "meta_shop.jsonl", orient="records", lines=True)
    elif kind == "csv":
        frame.to_csv(folder / "shop.interactions.csv", index=False)
        items.to_csv(folder / "shop.items.csv", index=False)
    else:
        frame.to_parquet(folder / "shop.interactions.parquet")
        items.to_parquet(folder / "shop.items.parquet")
    choice = {"kind": "amazon"} if kind == "json" else {}
    meta = prepare(folder, folder / "out", **choice)
    assert meta["interactions"]["lines"] == len(frame) and meta["items"]["lines"] == len(items)
    history = pd.read_parquet(folder / "out/shop/interactions.parquet")
    written = {(u, i, t) for u, i, t, _ in known + drawn}
    for row in history.itertuples():
        assert row.user_id.startswith("k") or row.user_id in "abcdefghé"
    merged = meta["items"]["merged_by_title"]
    if not merged:
        assert {(r.user_id, r.item_id, str(r.timestamp)) for r in history.itertuples()} <= written
