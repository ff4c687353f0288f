"""The Amazon reader: both published formats, their file names, counts and error messages."""

import gzip
import json

import pandas as pd
import pytest

import data_prep
from data_prep import FormatError, amazon

START = 1_400_000_000


def review(form, user="u", item="1", second=START, **fields):
    if form == 2018:
        record = {"overall": 5.0, "reviewerID": user, "asin": item, "unixReviewTime": second}
    else:
        record = {"rating": 5.0, "user_id": user, "asin": "variant", "parent_asin": item,
                  "timestamp": second * 1000 + 250, "title": "Nice"}  # fmt: skip
    return json.dumps(record | fields)


def product(form, item, **fields):
    return json.dumps({"asin" if form == 2018 else "parent_asin": item, "title": f"Item {item}"}
                      | fields)  # fmt: skip


def sound(form):
    return [
        review(form, user, item, START + k) for user in "uv" for k, item in enumerate("1234")
    ] + [review(form, "w", item, START + k) for k, item in enumerate("2345")]


def write(path, lines):
    data = "".join(text + "\n" for text in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def prepare(folder, out, **choice):
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False} | choice
    return data_prep.prepare("amazon", folder, out, **choice)


def meta(out, domain="office_products"):
    return json.loads((out / domain / "meta.json").read_text())


NAMES = [
    (2018, "Office_Products_5.json.gz", "meta_Office_Products.json.gz"),
    (2018, "Office_Products.json.gz", "meta_Office_Products.json.gz"),
    (2018, "Office_Products.json", "meta_Office_Products.json"),
    (2018, "reviews_Office_Products_5.json.gz", "meta_Office_Products.json.gz"),
    (2023, "Office_Products.jsonl.gz", "meta_Office_Products.jsonl.gz"),
    (2023, "Office_Products.jsonl", "meta_Office_Products.jsonl"),
    # The lines decide, not the name.
    (2023, "Office_Products.json.gz", "meta_Office_Products.json"),
    (2018, "Office_Products.jsonl", "meta_Office_Products.jsonl.gz"),
]


@pytest.mark.parametrize(("form", "reviews", "products"), NAMES)
def test_every_published_form_gives_the_same_domain(tmp_path, form, reviews, products):
    write(tmp_path / "raw" / reviews, sound(form))
    write(tmp_path / "raw" / products, [product(form, item) for item in "12345"])
    frame = prepare(tmp_path / "raw", tmp_path / "out")
    assert list(frame.domain) == ["office_products"]
    history = pd.read_parquet(tmp_path / "out/office_products/interactions.parquet")
    assert history.user_id.tolist() == [*"uuuuvvvvwwww"]
    assert history.item_id.tolist() == [*"123412342345"]
    assert history.timestamp.tolist() == [START + k for k in range(4)] * 3
    assert history.rating.tolist() == [5.0] * 12
    assert [source["format"] for source in meta(tmp_path / "out")["sources"]] == [
        f"amazon-{form}"
    ] * 2


@pytest.mark.parametrize("form", [2018, 2023])
def test_rejections_are_counted_exactly(tmp_path, form):
    user, item, stars, time = (
        ("reviewerID", "asin", "overall", "unixReviewTime")
        if form == 2018
        else ("user_id", "parent_asin", "rating", "timestamp")
    )
    faulty = [
        '{"overall": 5.0, ',
        "null",
        "",
        review(form, **{user: None}),
        review(form, **{item: "", "asin": ""}),
        review(form, **{time: None}),
        review(form, **{time: "yesterday"}),
        review(form, **{time: -1}),
        review(form, second=4_102_444_800),
        review(form, **{stars: "five"}),
        review(form, **{stars: "inf"}),
        review(form, item="6"),
        review(form, item="7"),
        review(form, item="8"),
    ]
    products = [product(form, number) for number in "12345"]
    products += [
        product(form, "6", title=""),
        product(form, "7", title="var aPageStart = (new Date()).getTime();"),
        product(form, "1", title="Again"),
        product(form, None),
        "}",
    ]
    # An absent rating is none, not a fault: feedback is implicit.
    rows = [*sound(form)[:-1], review(form, "w", "5", START + 3, **{stars: None})]
    write(tmp_path / "raw/Office_Products.jsonl", faulty + rows + [rows[0]])
    write(tmp_path / "raw/meta_Office_Products.jsonl", products)
    prepare(tmp_path / "raw", tmp_path / "out")
    got = meta(tmp_path / "out")
    assert got["interactions"] == {
        "lines": 27,
        "rejected": {
            "broken line": 2,
            "empty line": 1,
            f"missing {item}": 1,
            f"missing {time}": 1,
            f"missing {user}": 1,
            f"{time} out of range (before 1970 or after 2099)": 2,
            f"unreadable {time}": 1,
            "item without title": 2,
            "item not in the items file": 1,
        },
        "accepted": 15,
        "duplicates": 3,
    }
    assert got["oddities"]["interactions"] == {"unreadable rating": 2}
    assert got["items"]["rejected"] == {
        "broken line": 1,
        f"missing {item}": 1,
        "no title": 2,
        "repeated item": 1,
    }
    history = pd.read_parquet(tmp_path / "out/office_products/interactions.parquet")
    # w 5 and u 1, whose first line has an unreadable one
    assert history.rating.isna().sum() == 2


def test_2023_falls_back_to_asin_and_keeps_the_order_within_a_second(tmp_path):
    rows = [json.loads(text) for text in sound(2023)]
    for k, row in enumerate(rows):
        row["asin"] = row.pop("parent_asin")
        row["timestamp"] = START * 1000 + 900 - k
    write(tmp_path / "raw/Toys.jsonl", map(json.dumps, rows))
    write(tmp_path / "raw/meta_Toys.jsonl", [product(2023, item) for item in "12345"])
    prepare(tmp_path / "raw", tmp_path / "out")
    history = pd.read_parquet(tmp_path / "out/toys/interactions.parquet")
    assert history.item_id.tolist() == [*"432143215432"]
    assert set(history.timestamp) == {START}


@pytest.mark.parametrize("name", ["Toys.json.gz", "meta_Toys.json.gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gzip.compress(b"a,b\n1,2\n", mtime=0),
            "line 1 and the 1 after it: expected one JSON object per line",
        ),
        (
            gzip.compress(b'{"a": 1}', mtime=0),
            r"line 1 .*\(amazon-2018\) or .*\(amazon-2023\), found '{\"a\"",
        ),
        (b"{}", "expected a gzip file"),
        (gzip.compress(b"{}" * 999, mtime=0)[:-9], "the gzip stream is truncated or damaged"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, name, data, message):
    write(tmp_path / "Toys.json.gz", sound(2018))
    write(tmp_path / "meta_Toys.json.gz", [product(2018, item) for item in "12345"])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=f"{name}: {message}"):
        prepare(tmp_path, tmp_path / "out")


def test_missing_and_doubled_files(tmp_path):
    (tmp_path / "planted.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"expected <Category>.json\(l\).gz and meta_"):
        prepare(tmp_path, tmp_path / "out")
    write(tmp_path / "Toys_5.json.gz", sound(2018))
    with pytest.raises(FileNotFoundError, match="expected meta_Toys.json.gz beside Toys_5.json.gz"):
        prepare(tmp_path, tmp_path / "out")
    write(tmp_path / "Toys.jsonl", sound(2023))
    with pytest.raises(FormatError, match="Toys_5.json.gz: Toys.jsonl holds the same category's"):
        prepare(tmp_path, tmp_path / "out")
    for path in tmp_path.glob("Toys*"):
        path.unlink()
    write(tmp_path / "meta_Toys.json.gz", [product(2018, "1")])
    with pytest.raises(FileNotFoundError, match="expected the reviews of toys beside meta_Toys"):
        prepare(tmp_path, tmp_path / "out")


def test_categories_are_named_in_lower_case(tmp_path):
    for name in ("Video_Games", "Industrial_and_Scientific"):
        write(tmp_path / f"{name}.jsonl", [])
        write(tmp_path / f"meta_{name}.jsonl", [])
    assert list(amazon.find(tmp_path)) == ["industrial_and_scientific", "video_games"]
    with pytest.raises(FormatError, match="the file is empty; expected JSON lines with reviewerID"):
        prepare(tmp_path, tmp_path / "out", domains=["video_games"])
