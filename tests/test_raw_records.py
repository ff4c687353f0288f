"""JSON lines, file names, titles and manifests as they are in the world."""

import gzip
import json
import shutil
import time

import pandas as pd
import pytest

import data_prep
from data_prep import EmptyDomainError, FormatError, amazon, goodreads, reading, records
from data_prep.names import is_name
from data_prep.titles import clean_title, full_title, short_title

START = 1_400_000_000
DATE = "Thu Mar 30 10:59:{:02d} -0700 2017"
PAIRS = [(f"u{n}", f"B{n + k}", k) for n in range(1, 4) for k in range(4)]
CHOICE = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False}


def review(user="u1", item="B1", second=0, **fields):
    record = {"user_id": user, "parent_asin": item, "rating": 5.0, "text": "fine",
              "timestamp": (START + second) * 1000}  # fmt: skip
    return json.dumps(record | fields)


REVIEWS = [review(user, item, k) for user, item, k in PAIRS]
PRODUCTS = [json.dumps({"parent_asin": f"B{n}", "title": f"Title {n}"}) for n in range(1, 8)]


def write(folder, reviews=REVIEWS, products=PRODUCTS, name="Shop.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    for path, lines in ((name, reviews), (f"meta_{name}", products)):
        data = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (folder / path).write_bytes(b"\n".join(data) + b"\n")
    return folder


def prepare(folder, out, **choice):
    data_prep.prepare("amazon", folder, out, **CHOICE | choice)
    meta = json.loads((out / "shop/meta.json").read_text())
    for table in ("interactions", "items"):
        counts = meta[table]
        assert sum(counts["rejected"].values()) + counts["accepted"] == counts["lines"]
    return meta


def titles(out, domain="shop"):
    return dict(pd.read_parquet(out / domain / "items.parquet").values.tolist())


@pytest.mark.parametrize(
    ("line", "oddity"),
    [
        (review(text="half \ud83d"), "half a surrogate pair"),  # json.dumps writes the escape
        (review(text="x").encode()[:-1] + b', "more": "\xf0\x9f"}', None),
        (review(rating=float("nan")), None),
        (review(text="Deep")[:-1] + ', "d": ' + "[" * 5000 + "]" * 5000 + "}", None),
        ('{"user_id": "nobody", ' + review()[1:], "key twice"),
        (review(rating="NULL"), None),
        (review(rating=None), None),
        (review() + ",", "line of a JSON array"),
        (str(json.loads(review())), "Python dict"),
        ("\ufeff" + review(), None),
    ],
)
def test_a_line_is_not_lost_for_what_nobody_reads(tmp_path, line, oddity):
    meta = prepare(write(tmp_path, [*REVIEWS[1:], line]), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12 and meta["interactions"]["rejected"] == {}
    assert oddity is None or meta["oddities"]["interactions"] == {oddity: 1}
    history = pd.read_parquet(tmp_path / "out/shop/interactions.parquet")
    assert set(history.user_id) == {"u1", "u2", "u3"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (review(user="half \ud83d"), "broken line"),
        (review(user="x").encode().replace(b'"x"', b'"\xff"'), "broken line"),
        (review(user="nan"), "missing user_id"),
        (review(user=["u1"]), "user_id is no text"),
        (review(item={"a": 1}), "parent_asin is no text"),
        ("[" * 5000, "broken line"),
        ("{'a': " * 5000, "broken line"),
        (review(timestamp="1_400_000_000"), "unreadable timestamp"),
        ("[", "bracket of a JSON array"),
    ],
)
def test_a_line_is_rejected_and_shown(tmp_path, line, reason):
    meta = prepare(write(tmp_path, [*REVIEWS, line]), tmp_path / "out")
    assert meta["interactions"]["rejected"] == {reason: 1}
    example = meta["examples"]["interactions"][reason]
    assert example["file"] == "Shop.jsonl" and example["line"] == 13


def test_a_line_that_is_too_long_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST", 4000)
    monkeypatch.setattr(reading.line_batches, "__defaults__", (False, 1000))
    lines = [*REVIEWS[:5], review(text="x" * 9000), *REVIEWS[5:]]
    meta = prepare(write(tmp_path, lines), tmp_path / "out")
    assert meta["interactions"]["rejected"] == {"line too long": 1}
    assert meta["examples"]["interactions"]["line too long"]["line"] == 6


def test_an_array_one_object_per_line_is_read(tmp_path):
    lines = ["[", *(f"{line}," for line in REVIEWS[:-1]), REVIEWS[-1], "]"]
    meta = prepare(write(tmp_path, lines), tmp_path / "out")
    assert meta["interactions"]["rejected"] == {"bracket of a JSON array": 2}
    assert meta["interactions"]["lines"] == 14
    write(tmp_path, [json.dumps([json.loads(line) for line in REVIEWS])])
    with pytest.raises(FormatError, match="a JSON array: write its objects one per line"):
        prepare(tmp_path, tmp_path / "out")


def test_line_ends_of_old_machines(tmp_path):
    folder = write(tmp_path)
    for path in list(folder.glob("*.jsonl")):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    assert prepare(folder, tmp_path / "out")["interactions"]["accepted"] == 12


def test_python_dicts_of_2014_are_read(tmp_path):
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": START + k, "overall": 4})
        for user, item, k in PAIRS
    ]
    products = [str({"asin": f"B{n}", "title": f'It\'s "{n}"'}) for n in range(1, 8)]
    write(tmp_path, reviews, products, "Shop.json")
    (tmp_path / "Shop.json").rename(tmp_path / "reviews_Shop_5.json")
    meta = prepare(tmp_path, tmp_path / "out")
    assert meta["oddities"]["items"] == {"Python dict": 7}
    assert titles(tmp_path / "out")["B2"] == 'It\'s "2"'


def test_python_dicts_with_bare_words_are_read(tmp_path):
    reviews = [
        f"{{'reviewerID': '{user}', 'asin': '{item}', 'unixReviewTime': {START + k}, "
        "'overall': nan, 'ok': true}"
        for user, item, k in PAIRS
    ]
    products = [
        f"{{'asin': 'B{n}', 'title': 'nan, or true {n}', 'price': -inf, 'brand': null}}"
        for n in range(1, 8)
    ]
    meta = prepare(write(tmp_path, reviews, products, "Shop.json"), tmp_path / "out")
    assert meta["oddities"] == {
        "interactions": {"Python dict": 12}, "items": {"Python dict": 7}
    }  # fmt: skip
    assert meta["interactions"]["accepted"] == 12 and meta["items"]["accepted"] == 7
    assert titles(tmp_path / "out")["B2"] == "nan, or true 2"


def test_python_that_is_no_literal_is_named(tmp_path):
    write(tmp_path, products=["{'asin': 'B1', 'title': Title(1)}"] * 3)
    with pytest.raises(FormatError, match="meta_Shop.jsonl: line 1 .*a Python dict whose values"):
        prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("python", [False, True])
def test_a_file_whose_every_line_is_deep_is_read(tmp_path, python):
    deep = "[" * 2000 + "{'a': ')'}" * python + "]" * 2000
    lines = [f"{str(json.loads(line)) if python else line}"[:-1] + f', "d": {deep}}}'
             for line in REVIEWS]  # fmt: skip
    meta = prepare(write(tmp_path, lines), tmp_path / "out")
    assert meta["interactions"]["accepted"] == 12 and meta["interactions"]["rejected"] == {}


def test_an_error_carries_the_first_of_each_reason(tmp_path):
    lines = [*REVIEWS[:2], *(line[:-1] for line in REVIEWS[2:7]), review(user=None)]
    write(tmp_path, lines)
    with pytest.raises(EmptyDomainError) as error:
        prepare(tmp_path, tmp_path / "out")
    said = str(error.value)
    assert "Shop.jsonl: 6 of 8 lines were rejected: 5 broken line (first: line 3, '{" in said
    assert "1 missing user_id (first: line 8, 'B1')" in said


def test_lists_are_no_titles(tmp_path):
    odd = [json.dumps({"parent_asin": "B8", "title": ["a", "b"]}),
           json.dumps({"parent_asin": "B9", "title": "[Untitled]"})]  # fmt: skip
    meta = prepare(write(tmp_path, products=PRODUCTS + odd), tmp_path / "out")
    assert meta["items"]["rejected"] == {"title is no text": 1} and meta["items"]["accepted"] == 8


def test_only_items_of_one_full_title_are_merged(tmp_path):
    long = "A kettle of steel with a lid and a handle of wood for the stove at home, colour "
    names = {
        "B1": "Ninja Tale (Ninja Tale, #1)", "B2": "Ninja Tale (Ninja Tale, #2)",
        "B3": f"{long} red", "B4": f"{long} blue", "B5": "Dune (Dune, #1)", "B6": "Twin &amp; Co",
        "B7": "Twin & Co", "B8": "Ninja Tale",
    }  # fmt: skip
    products = [json.dumps({"parent_asin": i, "title": t}) for i, t in names.items()]
    reviews = [review(f"u{n}", item, k) for n in range(3) for k, item in enumerate(names)]
    reviews += [review("u9", item, k) for k, item in enumerate(["B1", "B2", "B3"])]
    meta = prepare(write(tmp_path, reviews, products), tmp_path / "out", title_length=60)
    assert meta["items"]["merged_by_title"] == 1
    assert meta["titles"] == {"with_series": 2, "uncut": 2}
    assert titles(tmp_path / "out") == {
        "B1": names["B1"], "B2": names["B2"], "B3": " ".join(names["B3"].split()),
        "B4": " ".join(names["B4"].split()), "B5": "Dune", "B6": "Twin & Co", "B8": "Ninja Tale",
    }  # fmt: skip


@pytest.mark.parametrize(
    "title",
    ["<" * 24000, "<!--" * 6000, "(" * 24000 + "#1)", "(a #1" * 5000 + ")", "( #" * 8000 + ")",
     "&amp;" * 5000, "a " * 12000 + "(x, #1)"],
)  # fmt: skip
def test_long_titles_take_linear_time(title):
    began = time.perf_counter()
    full = full_title(title)
    assert len(short_title(full)) <= 80
    assert time.perf_counter() - began < 1
    assert clean_title("x" + title, 80) == short_title(full_title("x" + title), 80)


def test_ties_do_not_follow_the_order_of_items(tmp_path):
    days = [
        json.dumps({"reviewerID": f"u{n:03d}", "asin": f"B{k}", "unixReviewTime": START,
                    "overall": 5})
        for k in range(6) for n in range(200)
    ]  # fmt: skip
    products = [json.dumps({"asin": f"B{k}", "title": f"Title {k}"}) for k in range(7)]
    write(tmp_path, days, products)
    meta = prepare(tmp_path, tmp_path / "out")
    assert meta["ties"] == {"steps": 1000, "users_with_a_tied_split": 200}
    splits = pd.read_parquet(tmp_path / "out/shop/splits.parquet")
    test = splits[splits["split"] == "test"].item_id.value_counts()
    assert len(test) == 6 and test.between(12, 60).all()
    write(tmp_path, days[::-1], products[::-1])
    prepare(tmp_path, tmp_path / "turned")
    assert pd.read_parquet(tmp_path / "turned/shop/splits.parquet").equals(splits)
    prepare(tmp_path, tmp_path / "seed", seed=1)
    assert not pd.read_parquet(tmp_path / "seed/shop/splits.parquet").equals(splits)


def test_stray_files_are_let_be_and_listed(tmp_path):
    write(tmp_path)
    (tmp_path / "asin2category.json").write_text("{}")
    (tmp_path / "._Shop.jsonl").write_bytes(b"\0\1")
    (tmp_path / "notes.json").write_text('{"mine": 1}\n')
    prepare(tmp_path, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest["domains"]) == ["shop"]
    assert manifest["left_alone"] == ["._Shop.jsonl", "asin2category.json", "notes.json"]
    (tmp_path / "Toys.jsonl").write_text(REVIEWS[0] + "\n")
    with pytest.raises(FileNotFoundError, match="expected meta_Toys.jsonl beside Toys.jsonl"):
        prepare(tmp_path, tmp_path / "out", domains=["toys"])
    prepare(tmp_path, tmp_path / "out", domains=["shop"])
    assert list(amazon.find(tmp_path, ["shop"])) == ["shop"]


def test_half_pairs_beside_a_whole_one_are_let_be_and_listed_with_the_reason(tmp_path):
    raw, out = write(tmp_path / "raw"), tmp_path / "out"
    named = {
        "All_Amazon_Review.json": "expected meta_All_Amazon_Review.json beside",
        "All_Amazon_Review_5.json": "expected meta_All_Amazon_Review.json beside",
        "aggressive_dedup.json": "expected meta_aggressive_dedup.json beside aggressive_dedup.json",
        "kcore_5.json": "expected meta_kcore.json beside kcore_5.json",
        "meta_Toys.jsonl": "expected the reviews of toys beside meta_Toys.jsonl, as Toys.jsonl",
    }
    for name in named:
        lines = PRODUCTS if name.startswith("meta_") else REVIEWS
        (raw / name).write_text("\n".join(lines) + "\n")
    (raw / "All_Amazon_Meta.json").write_text("\n".join(PRODUCTS) + "\n")
    with pytest.warns(UserWarning, match="kcore_5.json is left alone: expected meta_kcore.json"):
        prepare(raw, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert list(manifest["domains"]) == ["shop"]
    assert manifest["left_alone"] == sorted([*named, "All_Amazon_Meta.json"])
    assert manifest["half_pairs"].keys() == named.keys()
    assert all(said.startswith(named[name]) for name, said in manifest["half_pairs"].items())
    # Without a whole one the halves are the mistake.
    for path in (*raw.glob("*hop.jsonl"), raw / "aggressive_dedup.json"):
        path.unlink()
    with pytest.raises(FormatError, match="All_Amazon_Review.json holds the same category's"):
        prepare(raw, out)
    (raw / "All_Amazon_Review_5.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected meta_All_Amazon_Review.json beside"):
        prepare(raw, out)


def shelf(user, book, second):
    return json.dumps({"user_id": user, "book_id": book, "is_read": True, "rating": 4,
                       "date_added": DATE.format(second), "read_at": ""})  # fmt: skip


def whole_set(folder, genres, of_books=({"poetry": 3},) * 5 + ({}, {})):
    folder.mkdir(exist_ok=True)
    shelves = "\n".join(shelf(user, item, k) for user, item, k in PAIRS) + "\n"
    books = "\n".join(json.dumps({"book_id": f"B{n}", "title": f"Title {n}"}) for n in range(1, 8))
    (folder / "goodreads_interactions_dedup.json.gz").write_bytes(gzip.compress(shelves.encode()))
    (folder / "goodreads_books.json.gz").write_bytes(gzip.compress(books.encode()))
    if genres:
        lines = [
            json.dumps({"book_id": f"B{n}", "genres": held}) for n, held in enumerate(of_books, 1)
        ]
        (folder / "goodreads_book_genres_initial.json.gz").write_bytes(
            gzip.compress("\n".join(lines).encode())
        )
    return folder


def test_the_whole_of_goodreads_is_one_domain_or_parts(tmp_path):
    whole_set(tmp_path, genres=False)
    frame = data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE)
    assert frame.domain.tolist() == ["all"] and frame.interactions.tolist() == [12]
    whole_set(tmp_path, genres=True)
    assert list(goodreads.find(tmp_path)) == ["poetry"]
    choice = CHOICE | {"domains": ["poetry"]}
    frame = data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **choice)
    assert frame.domain.tolist() == ["poetry"] and frame["items"].tolist() == [5]
    meta = json.loads((tmp_path / "out/poetry/meta.json").read_text())
    assert meta["interactions"]["rejected"] == {"book of another genre": 1}
    assert not (tmp_path / "out/all").exists()
    for name in ("books_dedup", "books_genres", "interactions_fiction"):
        (tmp_path / f"goodreads_{name}.json").write_text("{}\n")
    assert list(goodreads.find(tmp_path)) == ["poetry"]
    # A genre's own files come before its part of the whole set.
    for role, name in (("interactions", "interactions_dedup"), ("books", "books")):
        shutil.copy(tmp_path / f"goodreads_{name}.json.gz",
                    tmp_path / f"goodreads_{role}_poetry.json.gz")  # fmt: skip
    assert goodreads.find(tmp_path)["poetry"].part is None
    assert list(goodreads.find(tmp_path)) == ["poetry"]
    with pytest.warns(UserWarning, match="is left alone: expected goodreads_"):
        data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest["domains"]) == ["poetry"]
    half = "goodreads_interactions_fiction.json"
    assert manifest["half_pairs"][half] == f"expected goodreads_books_fiction.json.gz beside {half}"
    assert len(manifest["half_pairs"]) == 3 and set(manifest["half_pairs"]) <= {
        *manifest["left_alone"]
    }
    with pytest.raises(FileNotFoundError, match=f"books_fiction.json.gz beside {half}"):
        goodreads.find(tmp_path, ["fiction"])


def test_of_a_smaller_whole_set_the_genres_that_it_has_are_domains(tmp_path):
    both = {"poetry": 1, "history, historical fiction, biography": 2}
    whole_set(tmp_path, genres=True, of_books=(both,) * 6 + ({"fiction": 0},))
    assert list(goodreads.find(tmp_path)) == ["fiction", "history_biography", "poetry"]
    whole_set(tmp_path, genres=True, of_books=(both,) * 6 + ({},))
    frame = data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE)
    assert frame.domain.tolist() == ["history_biography", "poetry"]
    with pytest.raises(FileNotFoundError, match="no domain romance; found all, history_biography"):
        data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE, domains=["romance"])
    whole_set(tmp_path, genres=True, of_books=({"Poesie": 1},) * 7)
    with pytest.raises(FormatError, match="genres_initial.json.gz: expected .* found 'Poesie'"):
        data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE)


def test_half_a_character_in_a_title_is_counted(tmp_path):
    write(tmp_path)
    path = tmp_path / "meta_Shop.jsonl"
    path.write_text(path.read_text().replace('"title": "', '"title": "\\ud83d ', 1))
    meta = prepare(tmp_path, tmp_path / "out")
    assert meta["items"]["rejected"] == {}
    assert meta["oddities"]["items"] == {"half a surrogate pair": 1}
    assert sum(title.startswith("\ufffd ") for title in titles(tmp_path / "out").values()) == 1


def test_volumes_of_a_series_stay_apart_where_another_field_drops_the_mark(tmp_path):
    whole_set(tmp_path, genres=False)
    books = [
        json.dumps({"book_id": f"B{n}", "title": f"Tale (Tale, #{n % 3})",
                    "title_without_series": "Tale" if n % 3 else "Tale Zero"})
        for n in range(1, 7)
    ]  # fmt: skip
    (tmp_path / "goodreads_books.json.gz").write_bytes(gzip.compress("\n".join(books).encode()))
    data_prep.prepare("goodreads", tmp_path, tmp_path / "out", **CHOICE | {"user_core": 3})
    assert titles(tmp_path / "out", "all") == {
        "B1": "Tale (Tale, #1)", "B2": "Tale (Tale, #2)", "B3": "Tale Zero"
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["Games, PC", "a/b", "..", ".hidden", "", " x", "a.b", "x" * 101, "a  b", "a\nb"]
)
def test_names_that_break_later_are_refused_at_once(tmp_path, name):
    assert not is_name(name)
    with pytest.raises(ValueError, match="expected letters, digits"):
        data_prep.prepare(name, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="domain .*: expected letters, digits"):
        data_prep.prepare("amazon", write(tmp_path / "raw"), tmp_path / "out", domains=[name])
    assert not (tmp_path / "out").exists()


def test_lists_of_domains_are_checked(tmp_path):
    write(tmp_path / "raw")
    for domains, message in (([], "at least one name"), (["shop", "Shop"], "'shop', 'Shop'")):
        with pytest.raises(ValueError, match=message):
            data_prep.prepare("amazon", tmp_path / "raw", tmp_path / "out", domains=domains)
    assert is_name("comics_graphic") and is_name("Belletristik für Kinder") and is_name("a-1")
    for role in ("interactions", "items"):
        (tmp_path / f"Games, PC.{role}.csv").write_text("user,item,position,title\n")
    with pytest.raises(ValueError, match="domain 'Games, PC': expected letters"):
        data_prep.prepare("own", tmp_path, tmp_path / "out")


def test_a_line_in_python_is_an_object_or_nothing():
    assert records.record('{"a": 1.50, "b": 1_0}') == (None, None)
    assert records.record('{"a": 1.50}') == ({"a": "1.50"}, None)
    assert records.record("{'a': __import__('os')}") == (None, None)
    assert records.record('"text"') == (None, None)
