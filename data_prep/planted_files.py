"""The planted dumps' files, in the published forms of Goodreads and Amazon, faults included."""

import gzip
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

DAY = 86_400  # seconds

History = list[tuple[int, int, int]]  # (item id, seconds, stars) in order of time
Writer = Callable[[Path, list[dict], list[History], np.random.Generator], None]


def _hex(generator: np.random.Generator, digits: int) -> str:
    return "".join("0123456789abcdef"[k] for k in generator.integers(16, size=digits))


def _spoil(rows: list[str], faults: list[str]) -> list[str]:
    """The rows with the faulty ones at even distances between them."""
    for k, line in enumerate(faults, start=1):
        rows.insert(len(rows) * k // (len(faults) + 1), line)
    return rows


def _write(path: Path, rows: Iterable[str]) -> None:
    data = "".join(row + "\n" for row in rows).encode("utf-8")
    if path.suffix == ".gz":
        # No time and no name in the header: the same rows give the same bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            packed.write(data)
    else:
        path.write_bytes(data)


_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _stamp(seconds: int) -> str:
    """Goodreads' form of a time, seven hours west of Greenwich, whatever the locale."""
    t = datetime.fromtimestamp(seconds, timezone(timedelta(hours=-7)))
    return f"{_WEEKDAYS[t.weekday()]} {_MONTHS[t.month - 1]} {t:%d %H:%M:%S} -0700 {t.year:04d}"


def _goodreads(domain: str, series: str) -> Writer:
    def write(
        folder: Path,
        catalogue: list[dict],
        histories: list[History],
        generator: np.random.Generator,
    ) -> None:
        book = [str(100_000 + 37 * item["id"]) for item in catalogue]
        rows = []
        for history in histories:
            user = _hex(generator, 32)
            # The published files list each user's newest book first.
            for index, moment, stars in reversed(history):
                read = moment + int(generator.integers(DAY // 2))
                record = {
                    "user_id": user,
                    "book_id": book[index],
                    "review_id": _hex(generator, 32),
                    "is_read": True,
                    "rating": stars,
                    "review_text_incomplete": "",
                    "date_added": _stamp(moment),
                    "date_updated": _stamp(read),
                    "read_at": _stamp(read) if generator.random() < 0.6 else "",
                    "started_at": "",
                }
                rows.append(json.dumps(record))
        sound = json.loads(rows[0])
        faults = [
            rows[1][: len(rows[1]) // 2],
            "not a JSON line",
            json.dumps({k: v for k, v in sound.items() if k != "user_id"}),
            json.dumps(sound | {"book_id": ""}),
            json.dumps(sound | {"book_id": "1"}),
            json.dumps(sound | {"book_id": "2"}),
            json.dumps(sound | {"book_id": "999"}),
            json.dumps(sound | {"date_added": "yesterday", "read_at": ""}),
            json.dumps(sound | {"date_added": "", "read_at": ""}),
            json.dumps(sound | {"date_added": _stamp(-DAY), "read_at": ""}),
            rows[2],
            rows[3],
        ]
        _write(folder / f"goodreads_interactions_{domain}.json.gz", _spoil(rows, faults))
        books = []
        for item in catalogue:
            title = item["title"]
            if item["id"] % 5 == 0:
                title += f" ({series}, #{1 + item['id'] % 7})"
            if item["id"] % 9 == 0:
                title = title.replace(" and ", " &amp; ").replace("The ", "<i>The</i> ", 1)
            books.append(
                json.dumps({"book_id": book[item["id"]], "title": title,
                            "title_without_series": title, "language_code": "eng"})
            )  # fmt: skip
        untitled = [
            json.dumps({"book_id": "1", "title": "", "title_without_series": ""}),
            json.dumps({"book_id": "2", "language_code": "eng"}),
        ]
        faults = [*untitled, '{"book_id": "3", "title": ', books[4]]
        _write(folder / f"goodreads_books_{domain}.json.gz", _spoil(books, faults))

    return write


def _amazon(reviews: str, meta: str, published: int) -> Writer:
    user_key, item_key, stars_key, time_key, scale = (
        ("reviewerID", "asin", "overall", "unixReviewTime", 1)
        if published == 2018
        else ("user_id", "parent_asin", "rating", "timestamp", 1000)
    )

    def write(
        folder: Path,
        catalogue: list[dict],
        histories: list[History],
        generator: np.random.Generator,
    ) -> None:
        asin = [f"B0{7919 * (item['id'] + 1) % 10**8:08d}" for item in catalogue]
        reviewed = []
        for history in histories:
            user = "A" + _hex(generator, 13).upper()
            for index, moment, stars in history:
                record = {
                    stars_key: float(stars),
                    "verified_purchase" if published == 2023 else "verified": True,
                    user_key: user,
                    "asin": asin[index],
                    time_key: moment * scale + (int(generator.integers(1000)) if scale > 1 else 0),
                }
                if published == 2023:
                    # A variant's own number, its parent is what the meta file knows.
                    record |= {"asin": "V" + asin[index][1:], "parent_asin": asin[index]}
                reviewed.append((asin[index], moment, json.dumps(record)))
        # The published reviews are grouped by product.
        rows = [row for _, _, row in sorted(reviewed)]
        sound = json.loads(rows[0])
        faults = [
            rows[1][: len(rows[1]) // 2],
            "[]",
            json.dumps({k: v for k, v in sound.items() if k != user_key}),
            json.dumps(sound | {item_key: "B000000001"}),
            json.dumps(sound | {item_key: "B000000002"}),
            json.dumps(sound | {item_key: "B999999999"}),
            json.dumps(sound | {time_key: None}),
            json.dumps(sound | {time_key: "soon"}),
            json.dumps(sound | {time_key: -scale}),
            json.dumps(sound | {stars_key: "five"}),
            rows[2],
            rows[3],
        ]
        _write(folder / reviews, _spoil(rows, faults))
        products = []
        for item in catalogue:
            title = item["title"]
            if item["id"] % 9 == 0:
                title = f"<span>{title.replace(' for ', '&nbsp;for ')}</span>"
            record = {item_key: asin[item["id"]], "title": title, "category": []}
            products.append(json.dumps(record))
        faults = [
            json.dumps({item_key: "B000000001", "title": ""}),
            json.dumps(
                {item_key: "B000000002", "title": "var aPageStart = (new Date()).getTime();"}
            ),
            '{"title": "cut',
            products[4],
        ]
        _write(folder / meta, _spoil(products, faults))

    return write


WRITERS: dict[str, Writer] = {
    "children": _goodreads("children", "Bedtime Tales"),
    "comics_graphic": _goodreads("comics_graphic", "Panel Heroes"),
    "mystery_thriller_crime": _goodreads("mystery_thriller_crime", "Cold Cases"),
    "office_products": _amazon("Office_Products_5.json.gz", "meta_Office_Products.json.gz", 2018),
    "industrial_and_scientific": _amazon(
        "Industrial_and_Scientific.jsonl.gz", "meta_Industrial_and_Scientific.jsonl.gz", 2023
    ),
    "video_games": _amazon("Video_Games.json", "meta_Video_Games.json", 2018),
}
