"""Tables as they are in the world: quotes, separators, line ends, missing words, times, Parquet."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep
from data_prep import EmptyDomainError, FormatError, reading
from data_prep.missing import WORDS, present
from data_prep.times import Times

START = 1_400_000_000
ITEMS = "item,title\n" + "".join(f"{n},Title {n}\n" for n in range(1, 7))


def rows(time=lambda k: START + k):
    return [(f"u{n}", n + k, time(k)) for n in range(1, 4) for k in range(4) if n + k < 7]


def interactions(time=lambda k: START + k, separator=",", end="\n"):
    lines = [("user", "item", "timestamp"), *rows(time)]
    return end.join(separator.join(map(str, line)) for line in lines) + end


def write(folder, table=None, items=ITEMS, domain="shop"):
    folder.mkdir(parents=True, exist_ok=True)
    for role, text in (("interactions", table or interactions()), ("items", items)):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{domain}.{role}.csv").write_bytes(data)
    return folder


def prepare(folder, out, **choice):
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False} | choice
    data_prep.prepare("own", folder, out, **choice)
    meta = json.loads((out / "shop/meta.json").read_text())
    for table in ("interactions", "items"):
        counts = meta[table]
        assert sum(counts["rejected"].values()) + counts["accepted"] == counts["lines"]
        assert meta["examples"][table].keys() == counts["rejected"].keys()
    return meta


def titles(out):
    return dict(pd.read_parquet(out / "shop/items.parquet").values.tolist())


def test_an_open_quote_in_a_column_that_is_not_read_costs_nothing(tmp_path):
    lines = [f"u{u},{i},{START + i},fine" for u in range(3) for i in range(1, 21)]
    for place in (5, 25, 45):
        lines[place] = lines[place].replace("fine", '"fine')
    items = "item,title\n" + "".join(f"{n},Title {n}\n" for n in range(1, 22))
    table = "user,item,timestamp,review\n" + "\n".join(lines) + "\n"
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["interactions"] == {
        "lines": 60, "rejected": {}, "accepted": 60, "duplicates": 0
    }  # fmt: skip


def reviews(cells, quoted=(), columns=("user", "item", "timestamp", "review")):
    """A table of 60 rows with a review in its last column, `cells` at their rows; its items."""
    lines = [list(columns)]
    for place in range(60):
        user, item = divmod(place, 20)
        line = [f"u{user}", str(item + 1), str(START + item), cells.get(place, "fine")]
        lines.append([f'"{cell}"' if place in quoted and k != 3 else cell
                      for k, cell in enumerate(line)])  # fmt: skip
    items = "item,title\n" + "".join(f"{n},Title {n}\n" for n in range(1, 22))
    return "\n".join(map(",".join, lines)) + "\n", items


@pytest.mark.parametrize(
    ("cells", "quoted"),
    [
        ({5: '"', 15: '"'}, ()),
        ({5: '"fine', 15: 'fine"'}, ()),
        ({5: '"fine', 6: 'fine"'}, ()),
        ({5: '"', 15: '"'}, range(6)),
        ({5: '"fine', 15: 'fine"'}, [5, *range(16, 40)]),
        ({5: '"', 7: '""', 9: '"', 11: '"good", they say', 30: '"', 59: '"'}, [3]),
        ({5: '"fine', 7: "fine, really", 8: "", 9: "nan", 15: 'fine"'}, ()),
    ],
)
def test_lone_quotes_that_pair_swallow_no_rows(tmp_path, cells, quoted):
    table, items = reviews(cells, quoted)
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    broken = sum("," in cell for cell in cells.values())  # one field too many
    assert meta["interactions"]["lines"] == 60
    assert meta["interactions"]["accepted"] == 60 - broken
    assert meta["oddities"]["interactions"]["quote as a character"] >= 1
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert sorted(set(history.user_id)) == ["u0", "u1", "u2"]


@pytest.mark.parametrize("quoted", [(), range(60)])
@pytest.mark.parametrize(
    "text",
    [
        '"Great.\nWould buy again"',
        '"Pros:\n\n- cheap, light, small, red\n- it ""works"""',
        '"u0 said\nI like it, him, her, and you"',
        '"never\nagain"',
        '"first\none,two,three,four\nlast"',
    ],
)
def test_reviews_over_several_lines_stay_one_record(tmp_path, text, quoted):
    table, items = reviews(dict.fromkeys(range(60), text), quoted)
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["interactions"] == {
        "lines": 60, "rejected": {}, "accepted": 60, "duplicates": 0
    }  # fmt: skip


def test_text_with_a_line_like_a_row_is_counted(tmp_path):
    table, items = reviews({5: '"The log:\nu1,2,3,four\nand so on\nand so forth"'})
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["interactions"]["accepted"] == meta["interactions"]["lines"] == 60
    assert meta["oddities"]["interactions"] == {"text with lines like rows": 1}


def test_lone_quotes_of_a_read_column_reject_every_line_between(tmp_path):
    items = ITEMS + '7,"Seven\n8,Eight\n9,Nine"\n10,Ten\n'
    meta = prepare(write(tmp_path, items=items), tmp_path / "out")
    assert meta["items"]["lines"] == 10
    assert meta["items"]["rejected"] == {"line break in a field": 3}


def test_escaped_quotes_over_several_lines_are_one_record(tmp_path):
    said = '"he said\nit is \\"good\\", and\nleft"'
    table, items = reviews({5: said, 7: '"a \\"b\\""', 59: '"the\nend\\""'})
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["interactions"]["accepted"] == meta["interactions"]["lines"] == 60
    assert meta["oddities"]["interactions"] == {"backslash before a quote": 3}


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "\ufeffsep=;", "SEP=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_first_line_may_name_the_separator(tmp_path, line, end):
    items = ITEMS.replace(",", ";").replace("Title", "One, two").replace("\n", end)
    meta = prepare(write(tmp_path, items=line + end + items + f"7;{end}"), tmp_path / "out")
    assert meta["items"]["rejected"] == {"no title": 1} and meta["items"]["accepted"] == 6
    assert meta["examples"]["items"]["no title"]["line"] == 9
    assert titles(tmp_path / "out")["5"] == "One, two 5"
    write(tmp_path, items=f"{line}{end}item;name{end}")
    with pytest.raises(FormatError, match="csv: line 2: expected the columns item, title"):
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "\ufeff", "\n \n", "sep=;\n", "sep=,"])
def test_an_empty_table_is_said_to_be_empty(tmp_path, text):
    write(tmp_path, items=text)
    (tmp_path / "shop.items.csv").write_text(text)
    with pytest.raises(FormatError, match="items.csv: the file is empty; expected a CSV header "
                       "with the columns item, title"):  # fmt: skip
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ('5,12" ruler', '12" ruler'),
        ('5,"Quoted" title', '"Quoted" title'),
        ('5,"The ""best"" one"', 'The "best" one'),
        ('5,"The \\"best\\" one"', 'The "best" one'),
        ('5,"The \\"best\\", they say"', 'The "best", they say'),
        ('5, "spaced, too" ', "spaced, too"),
        ('5,"ends with a backslash\\"', "ends with a backslash\\"),
        ("5,it's", "it's"),
        ('5,12\\" ruler', '12" ruler'),
    ],
)
def test_a_title_is_as_its_writer_meant_it(tmp_path, line, title):
    items = ITEMS.replace("5,Title 5", line)
    meta = prepare(write(tmp_path, items=items), tmp_path / "out")
    assert titles(tmp_path / "out")["5"] == title
    assert meta["items"]["lines"] == meta["items"]["accepted"] == 6


def test_what_cannot_be_told_is_rejected_with_its_line(tmp_path):
    items = ITEMS + '7,"Seven\nand a half"\n8,"eight" or, so\n9,"never closed\n10,Ten\n\n'
    meta = prepare(write(tmp_path, items=items), tmp_path / "out")
    assert meta["items"]["rejected"] == {
        "broken line": 2, "empty line": 1, "line break in a field": 1
    }  # fmt: skip
    assert meta["items"]["lines"] == 11
    first = meta["examples"]["items"]["broken line"]
    assert first == {"file": "shop.items.csv", "line": 10, "value": '8,"eight" or, so'}
    shown = data_prep.rejections(tmp_path / "out", first=True).set_index("reason")
    assert shown.loc["line break in a field", ["line", "value"]].tolist() == [8, '7,"Seven']


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_separators_and_line_ends(tmp_path, separator, end):
    items = ITEMS.replace(",", separator).replace("\n", end)
    table = interactions(separator=separator, end=end)
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12 and meta["items"]["accepted"] == 6
    empty = {"empty line": 13} if end == "\r\r\n" else {}
    assert meta["interactions"]["rejected"] == empty


def test_bytes_that_are_no_utf8_matter_only_where_they_are_read(tmp_path):
    table = "user,item,timestamp,review\n" + "".join(f"{u},{i},{t},x\n" for u, i, t in rows())
    table = table.encode().replace(b",x\n", b',caf\xe9 "\xff\n')
    meta = prepare(write(tmp_path, table), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12
    for title in (b"Caf\xe9", b'Caf\xe9 "x'):
        write(tmp_path, items=ITEMS.encode() + b"7," + title + b"\n")
        with pytest.raises(
            FormatError, match=r"items.csv: expected a UTF-8 .*line 8 is in another"
        ):
            prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "None", "NULL", "N/A", "n/a", "null", "<NA>", "\\N"]
)
def test_a_word_for_missing_is_missing(tmp_path, word):
    items = ITEMS + f"7,{word}\n8, {word} \n{word},Nameless\n"
    table = "user,item,rating,timestamp\n"
    table += "".join(f"{u},{i},{word},{t}\n" for u, i, t in rows())
    table += f"{word},1,4,{START}\nu1,{word},4,{START}\nu1,1,4,{word}\nu1,7,4,{START}\n"
    meta = prepare(write(tmp_path, table, items), tmp_path / "out")
    assert meta["items"]["rejected"] == {"missing item": 1, "no title": 2}
    assert meta["interactions"]["rejected"] == {
        "item without title": 1, "missing item": 1, "missing timestamp and position": 1,
        "missing user": 1,
    }  # fmt: skip
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert len(history) == 12 and history.rating.isna().all()
    assert all(present(word) is None for word in WORDS) and present(" Nana ") == "Nana"


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)],
)
def test_the_unit_of_times_is_that_of_the_column(tmp_path, unit, scale):
    meta = prepare(write(tmp_path, interactions(lambda k: (START + k) * scale)), tmp_path / "out")
    assert meta["time"] == {"field": "timestamp", "unit": unit, "numbers": 12, "dates": 0}
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert history.timestamp.tolist() == [START + k for k in range(4)] * 3


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (["31122014", "01012015", "15022015", "02032015"], "days written as DDMMYYYY"),
        (["12312014", "01152015", "02152015", "03162015"], "days written as MMDDYYYY"),
        (["20141231", "20150101", "20150215", "20150302"], "days written as YYYYMMDD"),
        (["2011", "2012", "2013", "2014"], "years"),
        (["41990", "41991.5", "42000", "42030"], "day numbers of a spreadsheet"),
        (["201412", "201501", "201502", "201503"], "months written as YYYYMM"),
        (["141231", "150101", "150215", "150302"], "days written as YYMMDD"),
        (["001231", "000101", "000215", "010302"], "days written as YYMMDD"),
        (["311214", "010115", "150215", "020315"], "days written as DDMMYY"),
        (["123114", "011515", "021515", "031615"], "days written as MMDDYY"),
        (["2014123115", "2015010109", "2015021500", "2015030223"], "times written as YYYYMMDDHH"),
        (["201412311530", "201501010900", "201502150000", "201503022359"], "as YYYYMMDDHHMM"),
        (["311220141530", "010120150900", "150220150000", "020320152359"], "as DDMMYYYYHHMM"),
        (["141231153000", "150101090000", "150215000000", "150302235959"], "as YYMMDDHHMMSS"),
        (
            ["20141231153000", "20150101090000", "20150215000000", "20150302235959"],
            "times written as YYYYMMDDHHMMSS",
        ),
        (
            ["20141231153000123", "20150101090000000", "20150215000000999", "20150302235959001"],
            "times written as YYYYMMDDHHMMSSFFF",
        ),
        (
            ["2014", "2015", "20150215", "20150302"],
            "years (line 2: '2014') and days written as YYYYMMDD (line 4: '20150215')",
        ),
        (
            ["20141231", "201501010900", "201502150000", "20150302"],
            "times written as YYYYMMDDHHMM (line 3: '201501010900')",
        ),
    ],
)
def test_numbers_that_are_no_times_are_refused(tmp_path, values, hint):
    write(tmp_path, interactions(values.__getitem__))
    with pytest.raises(FormatError) as error:
        prepare(tmp_path, tmp_path / "out")
    said = str(error.value)
    assert f"shop.interactions.csv: line 2: timestamp '{values[0]}'" in said and hint in said


@pytest.mark.parametrize(
    "values", [range(1, 5), range(100, 104), range(101, 105), range(1000, 1004), range(5, 400, 99),
               [11, 222, 3333, 123456], [10, 100, 1_000, 10_000]]
)  # fmt: skip
def test_small_numbers_are_an_order(tmp_path, values):
    meta = prepare(write(tmp_path, interactions(values.__getitem__)), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12 and meta["time"]["unit"] == "seconds"
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert history.timestamp.tolist() == list(values) * 3


def test_a_counter_of_a_long_file_is_an_order():
    connection = duckdb.connect()
    for start, stop in ((0, 10**6), (1, 1000), (10_000, 20_000), (100_000, 110_000)):
        connection.execute(
            "CREATE OR REPLACE TABLE sorted AS SELECT NULL::DOUBLE AS moment, n::DOUBLE AS number, "
            f"n::VARCHAR AS time, n AS line, NULL AS reason FROM range({start}, {stop}) t(n)"
        )
        column = Times("time", Path("a file"))
        column.note(connection)
        column.settle()
        assert column.unit == "seconds" and column.groups["early"] == stop - start


def test_times_among_dates_written_as_numbers(tmp_path):
    half = interactions(lambda k: f"2015010{k + 1}090000" if k % 2 else (START + k) * 10**6)
    with pytest.raises(FormatError) as error:
        prepare(write(tmp_path, half), tmp_path / "out")
    assert f"6 microseconds (line 2: '{START}000000'), 6 dates written as numbers (line 3: " in str(
        error.value
    )
    table = interactions(lambda k: (START + k) * 10**6) + "u1,6,20150101090000\n"
    meta = prepare(write(tmp_path, table), tmp_path / "out")
    assert meta["interactions"]["rejected"] == {"timestamp in another unit": 1}
    assert meta["examples"]["interactions"]["timestamp in another unit"]["value"][:8] == "20150101"
    assert meta["time"]["unit"] == "microseconds"


@pytest.mark.parametrize("date", ["31.12.2014", "12/31/2014", "31-12-2014 15:30", "31 Dec 2014"])
def test_a_date_that_is_no_iso_date_is_answered_with_one(tmp_path, date):
    with pytest.raises(FormatError) as error:
        prepare(write(tmp_path, interactions(lambda k: date)), tmp_path / "out")
    said = str(error.value)
    assert f"line 2, '{date}'" in said and "write dates as 2014-12-31" in said


@pytest.mark.parametrize("rating", ["na", "-", '"4,5"', "five", "inf", "1_0", "4/5"])
def test_a_rating_costs_no_line(tmp_path, rating):
    table = "user,item,rating,timestamp\n"
    table += "".join(f"{u},{i},{rating if k else 3},{t}\n" for k, (u, i, t) in enumerate(rows()))
    meta = prepare(write(tmp_path, table), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12 and not meta["interactions"]["rejected"]
    assert meta["oddities"]["interactions"] == {"unreadable rating": 11}
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert history.rating.dropna().tolist() == [3.0] and len(history) == 12


def test_units_that_are_mixed_are_refused_and_a_slip_is_rejected(tmp_path):
    write(tmp_path, interactions(lambda k: (START + k) * (1000 if k % 2 else 1)))
    with pytest.raises(FormatError) as error:
        prepare(tmp_path, tmp_path / "out")
    assert f"6 seconds (line 2: '{START}'), 6 milliseconds (line 3: '{START + 1}000')" in str(
        error.value
    )
    table = interactions() + f"u1,5,{START}000\nu1,6,2014\n" + interactions()[20:] * 3
    meta = prepare(write(tmp_path, table), tmp_path / "out")
    lost = {"timestamp in another unit": 1, "timestamp out of range (before 1970 or after 2099)": 1}
    assert {reason: meta["interactions"]["rejected"].get(reason) for reason in lost} == lost
    assert meta["examples"]["interactions"]["timestamp in another unit"]["value"] == "2014"


def test_numbers_are_read_strictly(tmp_path):
    table = "user,item,timestamp,position\n"
    table += "".join(f"{u},{i},{t},{k % 4}.0\n" for k, (u, i, t) in enumerate(rows()))
    table += f"u1,5,1_400_000_000,1\nu1,5,epoch,1\nu1,5,infinity,1\nu1,5,{START},1.5\n"
    table += f"u1,5,{START},1_0\nu1,5,{START},nan\n"
    meta = prepare(write(tmp_path, table), tmp_path / "out")
    assert meta["interactions"]["rejected"] == {"unreadable position": 2, "unreadable timestamp": 3}
    assert meta["examples"]["interactions"]["unreadable position"]["value"] == "1.5"


def test_an_error_that_leaves_nothing_says_why(tmp_path):
    table = "user,item,timestamp\n" + "".join(f"{u},{i},soon\n" for u, i, _ in rows())
    write(tmp_path, table + f"u1,1,{START}\n")
    lost = r"12 of 13 lines were rejected: 12 unreadable timestamp \(first: line 2, 'soon'\)"
    with pytest.raises(EmptyDomainError, match=f"{tmp_path}/shop.interactions.csv: {lost}"):
        prepare(tmp_path, tmp_path / "out")
    write(tmp_path, items=ITEMS.replace("\n", ".0\n").replace("item,title.0", "item,title")
          .replace(",Title", ".0,Title"))  # fmt: skip
    with pytest.raises(FormatError, match=r"it has '1' \(line 2\), the items '1.0' \(line 2\)"):
        prepare(tmp_path, tmp_path / "out")


def parquet(folder, items, table=None):
    folder.mkdir(exist_ok=True)
    table = table or pa.table(
        {"user": [u for u, _, _ in rows()], "item": [i for _, i, _ in rows()],
         "timestamp": [t for _, _, t in rows()]}
    )  # fmt: skip
    pq.write_table(table, folder / "shop.interactions.parquet")
    pq.write_table(items, folder / "shop.items.parquet")
    return folder


IDS = [1, 2, 3, 4, 5, 6]
NAMES = [f"Café {n}" for n in IDS]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([name.encode() for name in NAMES], pa.binary()),
        pa.array([name.encode() for name in NAMES], pa.large_binary()),
        pa.array(NAMES).dictionary_encode(),
        pa.array([name.encode() for name in NAMES], pa.binary()).dictionary_encode(),
        pa.array(NAMES, pa.large_string()),
    ],
)
def test_parquet_titles_are_text(tmp_path, values):
    parquet(tmp_path, pa.table({"item": IDS, "title": values}))
    prepare(tmp_path, tmp_path / "out")
    assert titles(tmp_path / "out") == {str(n): f"Café {n}" for n in IDS}


def test_parquet_missing_values_and_ids_as_floats(tmp_path):
    items = pa.table({"item": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None], "title": [*NAMES, "lost"]})
    table = pa.table(
        {"user": [u for u, _, _ in rows()], "item": pa.array([float(i) for _, i, _ in rows()]),
         "rating": [np.nan] * 12,
         "timestamp": pa.array([t * 10**9 + 1 for _, _, t in rows()], pa.timestamp("ns"))}
    )  # fmt: skip
    meta = prepare(parquet(tmp_path, items, table), tmp_path / "out")
    assert meta["items"]["rejected"] == {"missing item": 1}
    assert meta["interactions"]["accepted"] == 12 and meta["time"]["dates"] == 12


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (pa.table({"item": IDS, "title": [[name] for name in NAMES]}), "column title: .*list"),
        (pa.table({"item": IDS, "title": [{"en": name} for name in NAMES]}), "title: .*struct"),
        (pa.table({"item": IDS, "title": [b"Caf\xe9"] * 6}), r"column title, row 1: .*Caf\\xe9"),
        (pa.table([IDS, NAMES, NAMES], ["item", "title", "title"]), "one column title, found 2"),
        (pa.table([IDS, NAMES, NAMES], ["item", "title", " title"]), "one column title, found 2"),
    ],
)
def test_parquet_that_is_no_table_of_text_is_named(tmp_path, items, message):
    parquet(tmp_path, items)
    with pytest.raises(FormatError, match=f"shop.items.parquet: .*{message}"):
        prepare(tmp_path, tmp_path / "out")


def test_a_damaged_parquet_page_is_named(tmp_path):
    items = pa.table({"item": list(range(5000)), "title": [f"Title {n}" for n in range(5000)]})
    parquet(tmp_path, items)
    pq.write_table(items, tmp_path / "shop.items.parquet", write_page_checksum=True)
    path = tmp_path / "shop.items.parquet"
    meta = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[meta.dictionary_page_offset + meta.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(
        FormatError, match="shop.items.parquet: column title, .*the file is damaged"
    ):
        prepare(tmp_path, tmp_path / "out")


def test_doubled_columns_of_a_csv_file_are_named(tmp_path):
    write(tmp_path, items=ITEMS.replace("item,title", "item,title,title").replace("\n", ",x\n"))
    with pytest.raises(FormatError, match="line 1: expected one column title, found 2"):
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_blocks_lose_no_line(tmp_path, monkeypatch, block):
    text = "\ufeffa\rb\r\nc\n\n\rd" + "x" * 40 + "\r\ne\r" + "y" * 40 + "\nf" + "z" * 90
    (tmp_path / "lines").write_bytes(text.encode())
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    read = [line for batch in reading.line_batches(tmp_path / "lines", block=block)
            for line in batch["text"].to_pylist()]  # fmt: skip
    assert [line.rstrip("\r\n") for line in read] == expected
    monkeypatch.setattr(reading, "LONGEST", 30)
    read = [line for batch in reading.line_batches(tmp_path / "lines", block=block)
            for line in batch["text"].to_pylist()]  # fmt: skip
    kept = [line if len(line) < 30 else reading.TOO_LONG for line in expected]
    if block < 30:
        assert [line.rstrip("\r\n") for line in read] == kept
