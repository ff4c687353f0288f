"""Generated dumps in the published raw formats, with a known truth about who can help whom.

Every item belongs to one of eight themes, which its title shows. A user stays in a theme with
probability 0.45, moves to the domain's next theme with 0.45 and anywhere with 0.10, and takes an
unseen item of the theme by long-tailed popularity. A domain's "next" is drawn from a mixture of
fixed permutations of the themes that agree nowhere: in each data set the first two domains share
one of them to the planted affinity, the third has its own.

The affinity of two domains is the overlap of their next-theme distributions, the sum over themes
of the smaller probability, averaged over the current theme: 1 for a domain with itself.

The dumps carry a few lines of every kind that a reader has to reject or repair.
"""

import gzip
import json
import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from .planted_titles import THEMES, titles

DATASETS = {
    "goodreads": ("children", "comics_graphic", "mystery_thriller_crime"),
    "amazon": ("office_products", "industrial_and_scientific", "video_games"),
}
PERSIST, MOVE = 0.45, 0.45  # the rest is noise: any theme with equal probability
_START = 1_325_376_000  # 2012-01-01, seconds
_DAY = 86_400


def write_dumps(
    folder: str | Path,
    seed: int = 0,
    users: int = 400,
    items: int = 320,
    history: int = 14,
    affinity: float = 0.9,
) -> Path:
    """Write folder/goodreads, folder/amazon and folder/planted.json; the same bytes every time.

    users, items: of each of the six domains, before any filter. history: mean interactions a user
    (at least 6 each). affinity: in [0, 1], between the first two domains of each data set.
    Raises ValueError if the folder holds something that is not planted dumps, or if the
    vocabulary is too small for `items`.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "planted.json").is_file():
        raise ValueError(f"{folder}: expected an empty folder or planted dumps (planted.json)")
    if not 0 <= affinity <= 1:
        raise ValueError(f"affinity {affinity}: expected a number from 0 to 1")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    truth = {}
    for number, (dataset, domains) in enumerate(DATASETS.items()):
        place = partial / dataset
        place.mkdir(parents=True)
        moves = _moves(np.random.default_rng([seed, number]), affinity)
        for k, domain in enumerate(domains):
            generator = np.random.default_rng([seed, number, k])
            catalogue = _catalogue(domain, items, generator)
            events = _histories(catalogue, moves[k], users, history, generator)
            _WRITERS[domain](place, catalogue, events, generator)
        truth[dataset] = {"domains": list(domains), "affinity": _overlap(moves).tolist()}
    text = {"seed": seed, "parameters": _parameters(users, items, history, affinity)}
    (partial / "planted.json").write_text(
        json.dumps(text | {"datasets": truth}, indent=2) + "\n", encoding="utf-8"
    )
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return folder


def ensure_dumps(folder: Path, seed: int, users: int, items: int, history: int) -> Path:
    """write_dumps, unless the folder already holds the dumps of these parameters."""
    planted = folder / "planted.json"
    if planted.is_file():
        known = json.loads(planted.read_text(encoding="utf-8"))
        if (known["seed"], known["parameters"]) == (seed, _parameters(users, items, history)):
            return folder
    return write_dumps(folder, seed, users, items, history)


def _parameters(users: int, items: int, history: int, affinity: float = 0.9) -> dict:
    return {"users": users, "items": items, "history": history, "affinity": affinity}


def _moves(generator: np.random.Generator, affinity: float) -> np.ndarray:
    """Next-theme distributions (3 domains x themes x themes), rows sum to 1.

    Three cycles through all themes that agree nowhere: one is the first domain's, the second
    takes it with weight `affinity` and a cycle of its own otherwise, the third is unrelated.
    """
    count = len(THEMES)
    order = generator.permutation(count)
    # Steps 1, 3 and 5 around one random circle of 8: each visits all themes, no two agree.
    cycles = np.zeros((3, count, count))
    for cycle, step in zip(cycles, (1, 3, 5), strict=True):
        cycle[order, np.roll(order, -step)] = 1.0
    shared, own, unrelated = cycles
    return np.stack([shared, affinity * shared + (1 - affinity) * own, unrelated])


def _overlap(moves: np.ndarray) -> np.ndarray:
    """The affinity matrix (domains x domains) of next-theme distributions."""
    return np.minimum(moves[:, None], moves[None]).sum(axis=3).mean(axis=2).round(6)


def transitions(moves: np.ndarray) -> np.ndarray:
    """One domain's theme transition matrix: persist, move, noise."""
    count = len(moves)
    noise = (1 - PERSIST - MOVE) / count
    return PERSIST * np.eye(count) + MOVE * moves + noise


def _catalogue(domain: str, items: int, generator: np.random.Generator) -> list[dict]:
    """Items in random order, as {"id", "title", "theme", "weight"}; weights are long-tailed."""
    catalogue = []
    sizes = [len(part) for part in np.array_split(np.arange(items), len(THEMES))]
    for number, (theme, size) in enumerate(zip(THEMES, sizes, strict=True)):
        for rank, title in enumerate(titles(domain, theme, size, generator)):
            weight = (rank + 2) ** -0.8
            catalogue.append({"title": title, "theme": number, "weight": weight})
    numbers = generator.permutation(len(catalogue))
    for item, number in zip(catalogue, numbers, strict=True):
        item["id"] = int(number)
    return sorted(catalogue, key=lambda item: item["id"])


def _histories(
    catalogue: list[dict], moves: np.ndarray, users: int, mean: int, generator: np.random.Generator
) -> list[list[tuple[int, int, int]]]:
    """A list a user of (item id, seconds, stars), in order of time."""
    matrix = transitions(moves)
    themes = np.array([item["theme"] for item in catalogue])
    weights = np.array([item["weight"] for item in catalogue])
    members = [np.flatnonzero(themes == theme) for theme in range(len(matrix))]
    histories = []
    for _ in range(users):
        length = min(6 + int(generator.poisson(mean - 6)), len(catalogue) // 2)
        theme = int(generator.integers(len(matrix)))
        moment = _START + int(generator.integers(4 * 365)) * _DAY + int(generator.integers(_DAY))
        left = weights.copy()
        history = []
        while len(history) < length:
            pool = members[theme]
            if left[pool].sum() == 0:  # everything of the theme is taken
                theme = int(generator.integers(len(matrix)))
                continue
            item = int(generator.choice(pool, p=left[pool] / left[pool].sum()))
            left[item] = 0.0
            history.append((item, moment, int(generator.choice([3, 4, 5], p=[0.2, 0.4, 0.4]))))
            moment += _DAY + int(generator.exponential(12 * _DAY))
            theme = int(generator.choice(len(matrix), p=matrix[theme]))
        histories.append(history)
    return histories


def _hex(generator: np.random.Generator, digits: int) -> str:
    return "".join("0123456789abcdef"[k] for k in generator.integers(16, size=digits))


def _spoil(rows: list[str], broken: list[str]) -> list[str]:
    """The rows with the faulty ones at even distances between them."""
    for k, line in enumerate(broken, start=1):
        rows.insert(len(rows) * k // (len(broken) + 1), line)
    return rows


def _write(path: Path, rows: Iterable[str]) -> None:
    data = "".join(row + "\n" for row in rows).encode("utf-8")
    if path.suffix == ".gz":
        # No time and no name in the header: the same rows give the same bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            packed.write(data)
    else:
        path.write_bytes(data)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _stamp(seconds: int) -> str:
    """Goodreads' form of a time, seven hours west of Greenwich, whatever the locale."""
    t = datetime.fromtimestamp(seconds, timezone(timedelta(hours=-7)))
    return f"{_DAYS[t.weekday()]} {_MONTHS[t.month - 1]} {t:%d %H:%M:%S} -0700 {t.year:04d}"


def _goodreads(domain: str, series: str):
    def write(place: Path, catalogue: list[dict], events: list, generator) -> None:
        book = [str(100_000 + 37 * item["id"]) for item in catalogue]
        rows = []
        for history in events:
            user = _hex(generator, 32)
            # The published files list a user's newest book first.
            for item, moment, stars in reversed(history):
                read = moment + int(generator.integers(_DAY // 2))
                record = {
                    "user_id": user,
                    "book_id": book[item],
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
        whole = json.loads(rows[0])
        faults = [
            rows[1][: len(rows[1]) // 2],
            "not a JSON line",
            json.dumps({k: v for k, v in whole.items() if k != "user_id"}),
            json.dumps(whole | {"book_id": ""}),
            json.dumps(whole | {"book_id": "1"}),
            json.dumps(whole | {"book_id": "2"}),
            json.dumps(whole | {"book_id": "999"}),
            json.dumps(whole | {"date_added": "yesterday", "read_at": ""}),
            json.dumps(whole | {"date_added": "", "read_at": ""}),
            json.dumps(whole | {"date_added": _stamp(-_DAY), "read_at": ""}),
            rows[2],
            rows[3],
        ]
        _write(place / f"goodreads_interactions_{domain}.json.gz", _spoil(rows, faults))
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
        _write(place / f"goodreads_books_{domain}.json.gz", _spoil(books, faults))

    return write


def _amazon(reviews: str, meta: str, published: int):
    user_key, item_key, stars_key, time_key, scale = (
        ("reviewerID", "asin", "overall", "unixReviewTime", 1)
        if published == 2018
        else ("user_id", "parent_asin", "rating", "timestamp", 1000)
    )

    def write(place: Path, catalogue: list[dict], events: list, generator) -> None:
        asin = [f"B0{7919 * (item['id'] + 1) % 10**8:08d}" for item in catalogue]
        rows = []
        for history in events:
            user = "A" + _hex(generator, 13).upper()
            for item, moment, stars in history:
                record = {
                    stars_key: float(stars),
                    "verified_purchase" if published == 2023 else "verified": True,
                    user_key: user,
                    "asin": asin[item],
                    time_key: moment * scale + (int(generator.integers(1000)) if scale > 1 else 0),
                }
                if published == 2023:
                    # A variant's own number, its parent is what the meta file knows.
                    record |= {"asin": "V" + asin[item][1:], "parent_asin": asin[item]}
                rows.append((asin[item], moment, json.dumps(record)))
        # The published reviews are grouped by product.
        rows = [row for _, _, row in sorted(rows)]
        whole = json.loads(rows[0])
        faults = [
            rows[1][: len(rows[1]) // 2],
            "[]",
            json.dumps({k: v for k, v in whole.items() if k != user_key}),
            json.dumps(whole | {item_key: "B000000001"}),
            json.dumps(whole | {item_key: "B000000002"}),
            json.dumps(whole | {item_key: "B999999999"}),
            json.dumps(whole | {time_key: None}),
            json.dumps(whole | {time_key: "soon"}),
            json.dumps(whole | {time_key: -scale}),
            json.dumps(whole | {stars_key: "five"}),
            rows[2],
            rows[3],
        ]
        _write(place / reviews, _spoil(rows, faults))
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
        _write(place / meta, _spoil(products, faults))

    return write


_WRITERS = {
    "children": _goodreads("children", "Bedtime Tales"),
    "comics_graphic": _goodreads("comics_graphic", "Panel Heroes"),
    "mystery_thriller_crime": _goodreads("mystery_thriller_crime", "Cold Cases"),
    "office_products": _amazon("Office_Products_5.json.gz", "meta_Office_Products.json.gz", 2018),
    "industrial_and_scientific": _amazon(
        "Industrial_and_Scientific.jsonl.gz", "meta_Industrial_and_Scientific.jsonl.gz", 2023
    ),
    "video_games": _amazon("Video_Games.json", "meta_Video_Games.json", 2018),
}
