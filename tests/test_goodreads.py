"""The Goodreads reader: exact counts on a crafted dump, and every error message."""

import gzip
import json

import pandas as pd
import pytest

import data_prep
from data_prep import FormatError, goodreads

DATE = "Thu Mar 30 10:59:26 -0700 2017"
SECONDS = 1490896766


def line(user="u", book="1", **fields):
    record = {"user_id": user, "book_id": book, "is_read": True, "rating": 4, "date_added": DATE,
              "read_at": ""}  # fmt: skip
    return json.dumps(record | fields)


def book(number, title="", **fields):
    title = title or f"Book {number}"
    return json.dumps({"book_id": number, "title": title, "title_without_series": title} | fields)


def write(folder, interactions, books, genre="poetry", end=".json.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for role, lines in (("interactions", interactions), ("books", books)):
        data = "".join(text + "\n" for text in lines).encode()
        path = folder / f"goodreads_{role}_{genre}{end}"
        path.write_bytes(gzip.compress(data) if end.endswith(".gz") else data)
    return folder


def prepare(folder, out, **choice):
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False} | choice
    data_prep.prepare("goodreads", folder, out, **choice)
    domain = out / "poetry"
    return pd.read_parquet(domain / "interactions.parquet"), json.loads(
        (domain / "meta.json").read_text()
    )


def stamp(day, zone="-0700"):
    return f"Sat Apr {day:02d} 00:00:00 {zone} 2017"


def sound(users=("u", "v"), books="12345"):
    """Histories of four of five books, so that every user has an unseen one."""
    return [
        line(user, number, date_added=stamp(k + 1))
        for user in users
        for k, number in enumerate(books[:4])
    ]


BOOKS = [book(number) for number in "12345"]


@pytest.mark.parametrize("end", [".json.gz", ".json"])
def test_rejections_are_counted_exactly(tmp_path, end):
    faulty = [
        "{broken",
        "[]",
        "",
        "   ",
        json.dumps({"book_id": "1", "date_added": DATE}),
        line(user="  "),
        line(book=None),
        line(date_added="", read_at=None),
        line(date_added="last week"),
        line(date_added="Thu Mar 30 10:59:26 -0700 2217"),
        line(date_added="Thu Mar 30 10:59:26 -0700 1917"),
        line(rating="great"),
        line(book="6"),
        line(book="7"),
        line(book="99"),
    ]
    books = [
        *BOOKS, json.dumps({"book_id": "6", "title": ""}), book("7", title="<br>"), "{",
        book("1", "A second title"), json.dumps({"title": "Nobody's"})
    ]  # fmt: skip
    duplicate = line("u", "1", date_added=stamp(20))
    folder = write(tmp_path / "raw", [*faulty, *sound(), duplicate], books, end=end)
    frame, meta = prepare(folder, tmp_path / "out")
    assert meta["interactions"] == {
        "lines": 24,
        "rejected": {
            "broken line": 2,
            "date_added out of range (before 1970 or after 2099)": 2,
            "empty line": 2,
            "missing book_id": 1,
            "missing date_added": 1,
            "missing user_id": 2,
            "unreadable date_added": 1,
            "item without title": 2,
            "item not in the items file": 1,
        },
        "accepted": 10,
        "duplicates": 2,
    }
    assert meta["oddities"]["interactions"] == {"unreadable rating": 1}
    assert sum(meta["interactions"]["rejected"].values()) + 10 == 24
    assert meta["items"] == {
        "lines": 10,
        "rejected": {"broken line": 1, "missing book_id": 1, "no title": 2, "repeated item": 1},
        "accepted": 5,
        "merged_by_title": 0,
    }
    titles = pd.read_parquet(tmp_path / "out/poetry/items.parquet")
    assert "A second title" not in set(titles.title)
    assert len(frame) == 8
    assert meta["sources"][0] == {
        "role": "interactions",
        "name": f"goodreads_interactions_poetry{end}",
        "bytes": (folder / f"goodreads_interactions_poetry{end}").stat().st_size,
        "format": "goodreads",
    }


def test_time_is_read_at_else_date_added_in_utc(tmp_path):
    rows = [
        line("u", "1", date_added=DATE),
        line("u", "2", date_added=stamp(20), read_at=stamp(1)),
        line("u", "3", date_added=stamp(2), read_at="unknown"),
        line("u", "4", date_added=stamp(3), read_at="Sat Apr 01 00:00:00 -0700 0201"),
        *sound(users=("v",)),
    ]
    frame, _ = prepare(write(tmp_path, rows, BOOKS), tmp_path / "out")
    user = frame[frame.user_id == "u"].set_index("item_id")
    assert user.timestamp["1"] == SECONDS
    april = 1491030000  # 2017-04-01 07:00 UTC
    assert user.timestamp[["2", "3", "4"]].tolist() == [april, april + 86400, april + 2 * 86400]
    assert user.index.tolist() == ["1", "2", "3", "4"]


def test_time_zones_are_respected(tmp_path):
    zones = {"1": stamp(5, "-0700"), "2": stamp(5, "+0000"), "3": stamp(5, "+1400")}
    rows = [line("u", number, date_added=text) for number, text in zones.items()]
    frame, _ = prepare(write(tmp_path, rows, BOOKS), tmp_path / "out")
    assert frame.item_id.tolist() == ["3", "2", "1"]
    assert frame.timestamp.diff().dropna().tolist() == [14 * 3600, 7 * 3600]


def test_no_stars_is_no_rating_and_only_read_drops_shelved_books(tmp_path):
    rows = sound() + [line("u", "5", is_read=False, rating=0, date_added=stamp(9))]
    rows += [line("v", "6", date_added=stamp(10)), line("w", "6"), line("w", "1"), line("w", "2")]
    folder = write(tmp_path, rows, [*BOOKS, book("6")])
    frame, meta = prepare(folder, tmp_path / "all")
    rating = frame.set_index(["user_id", "item_id"]).rating
    assert pd.isna(rating["u", "5"]) and rating["u", "1"] == 4.0
    assert "not read" not in meta["interactions"]["rejected"]
    frame, meta = prepare(folder, tmp_path / "read", only_read=True)
    assert meta["interactions"]["rejected"] == {"not read": 1}
    assert ("u", "5") not in set(zip(frame.user_id, frame.item_id, strict=True))


def test_every_genre_of_a_folder_and_a_choice_of_them(tmp_path):
    rows = sound() + [line("w", n, date_added=stamp(9)) for n in "2345"]
    for genre in ("poetry", "history_biography"):
        write(tmp_path, rows, BOOKS, genre)
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False}
    assert list(goodreads.find(tmp_path)) == ["history_biography", "poetry"]
    with pytest.raises(FileNotFoundError, match="no domain manga; found history_biography, poetry"):
        data_prep.prepare("goodreads", tmp_path, tmp_path / "o", domains=["manga"], **choice)
    frame = data_prep.prepare("goodreads", tmp_path, tmp_path / "o", **choice)
    assert list(frame.domain) == ["history_biography", "poetry"]
    frame = data_prep.prepare("goodreads", tmp_path, tmp_path / "p", domains=["poetry"], **choice)
    assert list(frame.domain) == ["poetry"] and not (tmp_path / "p/history_biography").exists()


def broken_gzip(path):
    path.write_bytes(path.read_bytes()[:-20])


def no_gzip(path):
    path.write_text("\n".join(sound()))


def other_json(path):
    path.write_bytes(gzip.compress(b'\n{"name": "x"}\n' * 300))


def no_json(path):
    path.write_bytes(gzip.compress("user;book;näh\n".encode("latin-1") * 300))


def empty(path):
    path.write_bytes(gzip.compress(b""))


@pytest.mark.parametrize("role", ["interactions", "books"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_gzip, "the gzip stream is truncated or damaged .*expected a complete file"),
        (no_gzip, "expected a gzip file, but it does not begin as one"),
        (
            other_json,
            "line 2 and the 99 after it: expected one JSON object per line with the fields ",
        ),
        (no_json, "line 1 and the 99 after it: expected one JSON object per line .*'user;book;"),
        (empty, "the file is empty; expected JSON lines with "),
    ],
)
def test_a_foreign_file_is_named(tmp_path, role, spoil, message):
    folder = write(tmp_path, sound() * 40, BOOKS * 40)
    spoil(folder / f"goodreads_{role}_poetry.json.gz")
    with pytest.raises(FormatError, match=f"goodreads_{role}_poetry.json.gz: {message}"):
        prepare(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_readable_file_without_one_usable_line(tmp_path):
    folder = write(tmp_path, [line(date_added="no")] * 3, BOOKS)
    with pytest.raises(FormatError, match=r"none of its 3 lines is usable \(3 unreadable date_a"):
        prepare(folder, tmp_path / "out")
    folder = write(tmp_path, sound(), [book("77")])
    with pytest.raises(FormatError, match="expected items of goodreads_books_poetry.json.gz, none"):
        prepare(folder, tmp_path / "out")


def test_missing_and_doubled_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with the raw files of goodr"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="goodreads_interactions_<genre>.json.gz"):
        prepare(tmp_path, tmp_path / "out")
    folder = write(tmp_path / "raw", sound(), BOOKS)
    write(folder, sound(), BOOKS, end=".json")
    with pytest.raises(FormatError, match="the same file as goodreads_books_poetry.json; keep"):
        prepare(folder, tmp_path / "out")
    for path in folder.glob("*books*"):
        path.unlink()
    (folder / "goodreads_interactions_poetry.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected goodreads_books_poetry.json.gz beside"):
        prepare(folder, tmp_path / "out")


def test_undecodable_lines_and_a_missing_last_line_end(tmp_path):
    folder = write(tmp_path, sound(), BOOKS)
    path = folder / "goodreads_interactions_poetry.json.gz"
    text = b"\xef\xbb\xbf" + "\n".join(sound()).encode() + b'\n{"user_id": "\xff"}'
    path.write_bytes(gzip.compress(text))
    books = "\r\n".join(BOOKS).encode()
    (folder / "goodreads_books_poetry.json.gz").write_bytes(gzip.compress(books))
    frame, meta = prepare(folder, tmp_path / "out")
    assert meta["interactions"]["rejected"] == {"broken line": 1}
    assert meta["interactions"]["accepted"] == 8 and len(frame) == 8
