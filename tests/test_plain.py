"""Own data: plain tables in, with the checks of the dumps; the real samples where they lie."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

import data_prep
from data_prep import FormatError

SAMPLES = Path(__file__).parents[2] / "shared" / "data"


def rows(users="uvw", items="12345", each=4):
    return [
        {"user": user, "item": item, "rating": 3.5, "timestamp": 1_000_000 + k, "position": k}
        for n, user in enumerate(users)
        for k, item in enumerate((items * 2)[n : n + each])
    ]


def save(frame, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def write(folder, frame, items="12345", end="csv", domain="shop"):
    save(frame, folder / f"{domain}.interactions.{end}")
    titles = pd.DataFrame({"item": [*items], "title": [f'The "{i}", a title' for i in items]})
    save(titles, folder / f"{domain}.items.{end}")
    return folder


def prepare(folder, out, **choice):
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False} | choice
    data_prep.prepare("own", folder, out, **choice)
    domain = out / "shop"
    meta = json.loads((domain / "meta.json").read_text())
    return pd.read_parquet(domain / "interactions.parquet"), meta


@pytest.mark.parametrize("end", ["csv", "csv.gz", "parquet"])
def test_round_trip(tmp_path, end):
    frame = pd.DataFrame(rows())
    got, meta = prepare(write(tmp_path / "raw", frame, end=end), tmp_path / "out")
    expected = frame.rename(columns={"user": "user_id", "item": "item_id"})
    pd.testing.assert_frame_equal(
        got, expected[got.columns], check_dtype=False, check_index_type=False
    )
    assert meta["interactions"]["rejected"] == {} and meta["dataset"] == "own"
    titles = pd.read_parquet(tmp_path / "out/shop/items.parquet")
    assert titles.title.tolist() == [f'The "{i}", a title' for i in "12345"]
    # A prepared domain read back as own data is itself.
    write(tmp_path / "again", got.rename(columns={"user_id": "user", "item_id": "item"}))
    assert prepare(tmp_path / "again", tmp_path / "out2")[0].equals(got)


def test_columns_may_be_absent_reordered_or_more(tmp_path):
    frame = pd.DataFrame(rows())[["position", "item", "user"]].assign(comment="x, y\nz")
    got, meta = prepare(write(tmp_path, frame), tmp_path / "out")
    assert got.rating.isna().all() and got.timestamp.isna().all()
    assert meta["order"] == "position" and len(got) == 12


@pytest.mark.parametrize("end", ["csv", "csv.gz"])
@pytest.mark.parametrize(
    ("head", "separator"),
    [
        ("user, item, rating, timestamp, position", ", "),
        ("\ufeff user ,\titem,rating , timestamp,  position ", " ,"),
        ('"user", "item","rating","a, b",position', ","),
    ],
)
def test_spaces_around_names_and_values_do_not_count(tmp_path, head, separator, end):
    frame = pd.DataFrame(rows())
    expected, _ = prepare(write(tmp_path / "plain", frame), tmp_path / "out")
    lines = [head, *(separator.join(map(str, row)) for row in frame.itertuples(index=False))]
    path = write(tmp_path / "spaced", frame, end=end) / f"shop.interactions.{end}"
    text = "\r\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if end == "csv.gz" else text)
    got, meta = prepare(tmp_path / "spaced", tmp_path / "out2")
    if "timestamp" not in head:
        expected["timestamp"] = float("nan")
    pd.testing.assert_frame_equal(got, expected, check_dtype=False)
    assert meta["interactions"]["rejected"] == {}


def test_numbers_as_ids_and_dates_as_times(tmp_path):
    frame = pd.DataFrame(rows()).drop(columns="position")
    frame["user"] = frame.user.map(ord)
    frame["item"] = frame["item"].astype(int)
    frame["timestamp"] = pd.to_datetime(frame.timestamp, unit="s")
    for end in ("csv", "parquet"):
        folder = write(tmp_path / end, frame, end=end)
        got, _ = prepare(folder, tmp_path / "out")
        assert got.user_id.unique().tolist() == ["117", "118", "119"]
        assert got.timestamp.tolist() == [1_000_000 + k for k in range(4)] * 3


def test_rejections_are_counted_exactly(tmp_path):
    sound = pd.DataFrame(rows()).to_csv(index=False)
    faulty = [
        "u,1",
        "u,1,5,1000,1,extra",
        ",1,5,1000,1",
        "u,,5,1000,1",
        "u,1,5,,",
        "u,1,5,never,1",
        "u,1,5,-3,1",
        "u,1,5,1500000000000,1",
        "u,1,five,1000,1",
        "u,1,inf,1000,1",
        "u,1,5,1000,first",
        "u,9,5,1000,1",
    ]
    folder = write(tmp_path, pd.DataFrame(rows()))
    (folder / "shop.interactions.csv").write_text(sound + "\n".join(faulty) + "\n")
    items = (folder / "shop.items.csv").read_text()
    (folder / "shop.items.csv").write_text(items + "6,\n7,<p></p>\n,Nameless\n1,Again\n8\n")
    _, meta = prepare(folder, tmp_path / "out")
    assert meta["interactions"] == {
        "lines": 24,
        "rejected": {
            "broken line": 2,
            "missing item": 1,
            "missing timestamp and position": 1,
            "missing user": 1,
            "timestamp out of range (before 1970 or after 2099)": 2,
            "unreadable position": 1,
            "unreadable timestamp": 1,
            "item not in the items file": 1,
        },
        "accepted": 14,
        "duplicates": 2,
    }
    assert meta["oddities"]["interactions"] == {"unreadable rating": 2}
    assert meta["items"]["lines"] == 10
    assert meta["items"]["rejected"] == {
        "broken line": 1,
        "missing item": 1,
        "no title": 2,
        "repeated item": 1,
    }


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("shop.interactions.csv", b"user,title\n1,2\n",
         "line 1: expected the columns user, item, item is missing .found user, title"),
        ("shop.interactions.csv", b"user,item\n1,2\n",
         "line 1: expected a column timestamp or position"),
        ("shop.items.csv", b"",
         "the file is empty; expected a CSV header with the columns item, title"),
        ("shop.items.csv", b"item,title\n1,\xff\n", "expected a UTF-8 CSV file with the columns"),
        ("shop.items.csv", b"item,title\n", "expected items, none of its 0 lines is usable"),
        ("shop.items.csv", b"\xff\xfe\n", "line 1: expected a UTF-8 CSV header"),
        ("shop.interactions.csv.gz", gzip.compress(b"user,item,position\n" * 9, mtime=0)[:-9],
         "the gzip stream is truncated or damaged"),
        ("shop.interactions.csv.gz", b"user,item,position\n", "expected a gzip file"),
        ("shop.interactions.parquet", b"user,item,position\n", "expected a Parquet file"),
    ],
)  # fmt: skip
def test_a_foreign_file_is_named(tmp_path, name, data, message):
    write(tmp_path, pd.DataFrame(rows()))
    (tmp_path / f"{'.'.join(name.split('.')[:2])}.csv").unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=f"{name}: {message}"):
        prepare(tmp_path, tmp_path / "out")


def test_an_open_quote_costs_its_lines_and_no_others(tmp_path):
    folder = write(tmp_path, pd.DataFrame(rows()))
    path = folder / "shop.items.csv"
    path.write_text(path.read_text() + '6,"open\n7,seven\n8,"closed\n9,nine\n')
    _, meta = prepare(folder, tmp_path / "out")
    assert meta["items"] == {
        "lines": 9, "rejected": {"broken line": 3}, "accepted": 6, "merged_by_title": 0
    }  # fmt: skip


def test_a_gz_cut_in_its_body_is_named(tmp_path):
    frame = pd.DataFrame(rows(users=[f"u{k}" for k in range(4000)]))
    path = write(tmp_path, frame, end="csv.gz") / "shop.interactions.csv.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match="shop.interactions.csv.gz: the gzip stream is truncated"):
        prepare(tmp_path, tmp_path / "out")


def test_half_times_and_half_positions_have_no_order(tmp_path):
    frame = pd.DataFrame(rows()).astype(object)
    frame.loc[0, "timestamp"] = None
    frame.loc[1, "position"] = None
    with pytest.raises(FormatError, match="1 rows lack the one and 1 the other"):
        prepare(write(tmp_path, frame), tmp_path / "out")


def test_missing_and_doubled_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected <domain>.interactions.csv and"):
        prepare(tmp_path, tmp_path / "out")
    write(tmp_path, pd.DataFrame(rows()))
    (tmp_path / "shop.items.csv").rename(tmp_path / "shop.txt")
    with pytest.raises(FileNotFoundError, match="expected shop.items.csv, .csv.gz or .parquet"):
        prepare(tmp_path, tmp_path / "out")
    write(tmp_path, pd.DataFrame(rows()))
    write(tmp_path, pd.DataFrame(rows()), end="parquet")
    with pytest.raises(FormatError, match="the same table as shop.interactions.csv; keep one"):
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not here")
@pytest.mark.parametrize(("dataset", "item_core"), [("goodreads", 5), ("amazon", 1)])
def test_real_samples(tmp_path, dataset, item_core):
    frame = data_prep.prepare(
        dataset, SAMPLES / dataset, tmp_path, kind="plain", item_core=item_core, progress=False
    )
    assert len(frame) == 3 and frame.users.min() > 300 and not frame.rejected_items.any()
    for domain in frame.domain:
        raw = pd.read_csv(SAMPLES / dataset / f"{domain}.interactions.csv.gz", dtype=str)
        meta = json.loads((tmp_path / domain / "meta.json").read_text())
        assert meta["interactions"]["lines"] == len(raw)
        assert meta["order"] == "position"
        history = pd.read_parquet(tmp_path / domain / "interactions.parquet")
        titles = pd.read_parquet(tmp_path / domain / "items.parquet")
        assert titles.title.is_unique and titles.item_id.is_monotonic_increasing
        assert history.groupby("user_id").size().min() >= 5
        assert set(history.item_id) == set(titles.item_id)
        # The order within a user is the source's, whatever was filtered out between.
        raw["position"] = raw.position.astype(int)
        place = raw.groupby(["user", "item"]).position.min()
        direct = history[[pair in place.index for pair in history[["user_id", "item_id"]]
                          .itertuples(index=False, name=None)]]  # fmt: skip
        source = place[list(direct[["user_id", "item_id"]].itertuples(index=False, name=None))]
        steps = direct.assign(source=source.to_numpy()).groupby("user_id").source.diff().dropna()
        assert len(direct) > 0.9 * len(history)
        assert (steps > 0).mean() > 0.99
