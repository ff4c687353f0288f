"""The common pipeline: filter, order, splits, candidates, determinism."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import data_prep
from data_prep import EmptyDomainError, Settings, candidates, export, reading
from data_prep.titles import clean_title

QUICK = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write_plain(folder, rows, titles=None, domain="shop"):
    """rows: (user, item, timestamp or None, position or None)."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp", "position"], dtype=object)
    frame.insert(2, "rating", None)
    frame.to_csv(folder / f"{domain}.interactions.csv", index=False)
    items = sorted({row[1] for row in rows})
    titles = titles or {item: f"Title {item}" for item in items}
    pd.DataFrame(titles.items(), columns=["item", "title"]).to_csv(
        folder / f"{domain}.items.csv", index=False
    )
    return folder


def prepared(folder, out, **choice):
    choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False} | choice
    data_prep.prepare("own", folder, out, threads=1, **choice)
    return read(out / "shop")


def read(folder):
    names = ("interactions", "items", "splits", "candidates")
    frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
    return frames | {"meta": json.loads((folder / "meta.json").read_text())}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def naive_core(pairs, user_core, item_core):
    """The k-core by removing one offending row set after the other until nothing changes."""
    pairs = set(pairs)
    while True:
        users, items = {}, {}
        for user, item in pairs:
            users[user] = users.get(user, 0) + 1
            items[item] = items.get(item, 0) + 1
        kept = {(u, i) for u, i in pairs if users[u] >= user_core and items[i] >= item_core}
        if kept == pairs:
            return pairs
        pairs = kept


pairs = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 8)).map(lambda p: (f"u{p[0]}", f"i{p[1]}")),
    min_size=30,
    max_size=110,
)


@QUICK
@given(pairs, st.integers(3, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_core_filter_order_and_split_agree_with_a_naive_reference(
    tmp_path_factory, drawn, user_core, item_core, random
):
    folder = tmp_path_factory.mktemp("raw")
    rows = [(user, item, 1000 + k, None) for k, (user, item) in enumerate(drawn)]
    first = {}
    for user, item, moment, _ in rows:
        first.setdefault((user, item), moment)
    expected = naive_core(first, user_core, item_core)
    catalogue = {item for _, item in expected}
    shuffled = rows[:]
    random.shuffle(shuffled)
    write_plain(folder, shuffled)
    choice = {"user_core": user_core, "item_core": item_core}
    if len(catalogue) < 2:
        with pytest.raises(EmptyDomainError):
            prepared(folder, folder / "out", **choice)
        assert not (folder / "out" / "shop").exists()
        return
    got = prepared(folder, folder / "out", **choice)

    history = got["interactions"]
    assert set(zip(history.user_id, history.item_id, strict=True)) == expected
    assert len(history) == len(expected)
    assert set(got["items"].item_id) == catalogue
    # Duplicates keep their first time, and time orders each history from position 0.
    for row in history.itertuples():
        assert row.timestamp == first[row.user_id, row.item_id]
    for _, rows_of_user in history.groupby("user_id"):
        assert rows_of_user.timestamp.is_monotonic_increasing
        assert list(rows_of_user.position) == list(range(len(rows_of_user)))
    # Leave-one-out: a partition, with one test and one validation row a user, at the end.
    splits = got["splits"]
    assert splits[["user_id", "item_id", "position"]].equals(
        history[["user_id", "item_id", "position"]]
    )
    for _, rows_of_user in splits.groupby("user_id"):
        assert list(rows_of_user.split) == ["train"] * (len(rows_of_user) - 2) + ["valid", "test"]
    seen = history.groupby("user_id").item_id.agg(set)
    for row in got["candidates"].itertuples():
        chosen = splits[(splits.user_id == row.user_id) & (splits.split == row.split)]
        assert row.item_id == chosen.item_id.item()
        assert not set(row.negatives) & seen[row.user_id]
        assert set(row.negatives) <= catalogue
        assert len(row.negatives) == min(1, len(catalogue) - len(seen[row.user_id]))
    # A file in another order gives the same data.
    write_plain(folder / "sorted", rows)
    again = prepared(folder / "sorted", folder / "again", **choice)
    for name in ("interactions", "items", "splits"):
        assert got[name].equals(again[name])
    assert got["candidates"].to_json() == again["candidates"].to_json()


@given(
    st.integers(2, 200).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n))
    ),
    st.integers(1, 250),
    st.integers(0, 99),
)
def test_draw_gives_distinct_unseen_items(sizes, count, seed):
    items, seen = sizes
    drawn = candidates.draw(
        np.array(sorted(seen), dtype=np.int64), items, count, np.random.default_rng(seed)
    )
    assert len(drawn) == len(set(drawn.tolist())) == min(count, items - len(seen))
    assert not set(drawn.tolist()) & seen
    assert all(0 <= item < items for item in drawn)


def test_draw_is_uniform_over_unseen_items():
    generator = np.random.default_rng(3)
    seen = np.array([7, 0, 3])
    counts = np.zeros(10)
    for _ in range(4000):
        counts[candidates.draw(seen, 10, 2, generator)] += 1
    assert not counts[seen].any()
    share = np.delete(counts, seen) / 8000
    assert np.abs(share - 1 / 7).max() < 0.02


def dense(users=30, items=12, each=6):
    """Users with distinct items and increasing times."""
    generator = np.random.default_rng(1)
    return [
        (f"u{user:02d}", f"i{item:02d}", 1_000_000 + 100 * user + k, None)
        for user in range(users)
        for k, item in enumerate(generator.permutation(items)[:each])
    ]


def test_two_runs_give_the_same_bytes_and_replace_each_other(tmp_path):
    folder = write_plain(tmp_path / "it's raw", dense())
    prepared(folder, tmp_path / "a", negatives=5)
    before = digests(tmp_path / "a")
    prepared(folder, tmp_path / "a", negatives=5)
    prepared(folder, tmp_path / "it's b", negatives=5)
    assert digests(tmp_path / "a") == before == digests(tmp_path / "it's b")
    names = {"interactions.parquet", "items.parquet", "splits.parquet", "candidates.parquet"}
    assert set(before) == {f"shop/{name}" for name in names | {"meta.json"}} | {"manifest.json"}
    other = prepared(folder, tmp_path / "a", negatives=5, seed=1)
    assert digests(tmp_path / "a") != before
    assert other["meta"]["seed"] == 1


def test_a_failed_run_leaves_the_earlier_domain(tmp_path):
    folder = write_plain(tmp_path / "raw", dense())
    prepared(folder, tmp_path / "out", negatives=5)
    before = digests(tmp_path / "out")
    with pytest.raises(
        EmptyDomainError,
        match=r"raw/shop.interactions.csv: 12 items are left, expected more than negatives",
    ):
        prepared(folder, tmp_path / "out", negatives=12)
    assert digests(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", "shop"}
    with pytest.raises(
        EmptyDomainError,
        match="raw/shop.interactions.csv: the core .* leaves none of 30 users, 12 items and 180 i",
    ):
        prepared(folder, tmp_path / "out", user_core=7)
    assert digests(tmp_path / "out") == before


def test_ties_in_time_fall_back_to_position_then_a_seeded_hash(tmp_path):
    rows = [("u", "d", 5, 9), ("u", "c", 5, 2), ("u", "b", 5, 2), ("u", "a", 1, 99)]
    rows += [("v", item, 7, 0) for item in "dcba"]
    write_plain(tmp_path / "raw", rows)
    write_plain(tmp_path / "turned", rows[::-1])
    orders = set()
    for seed in range(20):
        got = prepared(tmp_path / "raw", tmp_path / "out", seed=seed)
        history = got["interactions"].groupby("user_id").item_id.agg("".join)
        assert history["u"] in ("acbd", "abcd")  # time, then position 2 before 9, then the hash
        assert sorted(history["v"]) == [*"abcd"]
        orders.add((history["u"], history["v"]))
        turned = prepared(tmp_path / "turned", tmp_path / "out2", seed=seed)
        assert turned["interactions"].equals(got["interactions"])
        # u: b and c, of which one is valid; v: all four
        assert got["meta"]["ties"] == {"steps": 4, "users_with_a_tied_split": 2}
    assert {u for u, _ in orders} == {"acbd", "abcd"} and len({v for _, v in orders}) > 8
    assert got["meta"]["order"] == "timestamp"


def test_position_orders_where_a_row_has_no_time(tmp_path):
    rows = [("u", "a", 9, 0), ("u", "b", None, 1), ("u", "c", 3, 2), ("u", "d", 1, 3)]
    got = prepared(write_plain(tmp_path, rows), tmp_path / "out", item_core=1)
    assert "".join(got["interactions"].item_id) == "abcd"
    assert got["meta"]["order"] == "position"
    assert got["interactions"].timestamp.isna().sum() == 1


def test_items_with_one_title_become_the_smallest_id(tmp_path):
    titles = {"b": "One &amp; Two", "a": "One  &amp; Two", "c": "Three", "d": "Four (Row, #1)",
              "e": "Four (Row,  #1)"}  # fmt: skip
    rows = [("u", item, k, None) for k, item in enumerate("bacde")]
    got = prepared(write_plain(tmp_path, rows, titles), tmp_path / "out")
    assert dict(got["items"].to_records(index=False).tolist()) == {
        "a": "One & Two",
        "c": "Three",
        "d": "Four",
    }
    # Two ids of one title, met twice by one user, are one duplicate each.
    assert got["meta"]["interactions"]["duplicates"] == 2
    assert got["meta"]["items"]["merged_by_title"] == 2
    assert list(got["interactions"].item_id) == ["a", "c", "d"]


def test_max_users_keeps_a_core_and_does_not_depend_on_file_order(tmp_path):
    rows = dense(users=60)
    got = prepared(write_plain(tmp_path / "a", rows), tmp_path / "x", max_users=25, item_core=5)
    assert got["meta"]["result"]["users"] <= 25
    assert got["interactions"].groupby("item_id").size().min() >= 5
    assert got["interactions"].groupby("user_id").size().min() >= 3
    assert [step["step"] for step in got["meta"]["steps"]] == [
        "read", "core filter", "max_users", "core filter after max_users"
    ]  # fmt: skip
    again = prepared(
        write_plain(tmp_path / "b", rows[::-1]), tmp_path / "y", max_users=25, item_core=5
    )
    assert got["interactions"].equals(again["interactions"])
    other = prepared(tmp_path / "a", tmp_path / "z", max_users=25, item_core=5, seed=4)
    assert set(other["interactions"].user_id) != set(got["interactions"].user_id)


def test_users_who_know_the_catalogue_are_counted(tmp_path):
    rows = dense(users=10, items=12, each=6)
    rows += [("all", f"i{k:02d}", k, None) for k in range(12)]
    got = prepared(write_plain(tmp_path, rows), tmp_path / "out", negatives=6)
    assert got["meta"]["result"]["users_with_fewer_negatives"] == 1
    sizes = got["candidates"].set_index("user_id").negatives.map(len)
    assert set(sizes["all"]) == {0} and set(sizes.drop("all")) == {6}


def test_more_rows_than_a_row_group(tmp_path, monkeypatch):
    folder = write_plain(tmp_path / "raw", dense(users=60))
    whole = prepared(folder, tmp_path / "a", negatives=5)
    monkeypatch.setattr(export, "_ROWS", 37)
    parts = prepared(folder, tmp_path / "b", negatives=5)
    for name in ("interactions", "items", "splits"):
        assert whole[name].equals(parts[name])
    assert whole["candidates"].to_json() == parts["candidates"].to_json()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Harry Potter and the Goblet of Fire (Harry Potter, #4)",
         "Harry Potter and the Goblet of Fire"),
        ("Saga, Vol. 3 (Saga #13-18)", "Saga, Vol. 3"),
        ("Dune (Dune Chronicles (New), #1.5)", "Dune"),
        ("Pens, HB #2 (Pack of 12)", "Pens, HB #2 (Pack of 12)"),
        ("Fountain Pen (DP-800S#1)", "Fountain Pen (DP-800S#1)"),
        ("(#2)", "(#2)"),
        ("Salt &amp;amp; Pepper &lt;3", "Salt & Pepper <3"),
        ("<span class='x'>Blue</span>\n<br/>Pen <!-- old -->", "Blue Pen"),
        ("  a\t\tb\u200b\x00c ", "a b c"),
        ("Cafe\u0301", "Café"),
        ("var aPageStart = (new Date()).getTime();", ""),
        ("--- !", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_clean_title(raw, clean):
    assert clean_title(raw) == clean


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=120), st.integers(8, 100))
def test_clean_title_is_one_short_line(raw, length):
    title = clean_title(raw, length)
    assert len(title) <= length
    assert title == " ".join(title.split())


def test_long_titles_are_cut_at_a_word():
    assert clean_title("alpha beta gamma, delta", 17) == "alpha beta gamma"
    assert clean_title("alpha beta gamma delta", 15) == "alpha beta"
    assert clean_title("alpha beta", 10) == "alpha beta"
    assert clean_title("incomprehensibilities", 8) == "incompre"
    assert clean_title("Dune (Dune, #1)", strip_series=False) == "Dune (Dune, #1)"


@pytest.mark.parametrize(
    "choice",
    [
        {"user_core": 2},
        {"item_core": 0},
        {"colour": "red"},
        {"seed": -1},
        {"memory": "much"},
    ],
)
def test_settings_refuse_what_they_do_not_know(choice):
    with pytest.raises(ValidationError):
        Settings(**({"kind": "plain"} | choice))


def test_an_unknown_setting_is_told_with_the_nearest():
    with pytest.raises(ValidationError, match="unknown name 'usr_core': did you mean 'user_core'"):
        Settings(kind="plain", usr_core=5)


def test_summary_and_rejections_repeat_meta(tmp_path):
    rows = dense() + [("", "i00", 5, None), ("u00", "i00", "soon", None)]
    folder = write_plain(tmp_path / "raw", rows)
    frame = data_prep.prepare(
        "own", folder, tmp_path / "out", negatives=5, progress=False, item_core=1
    )
    row = frame.iloc[0]
    assert (row.dataset, row.domain, row.users, row["items"]) == ("own", "shop", 30, 12)
    assert row.interactions == 180 and row.median_history == 6
    assert row.density == pytest.approx(180 / 360)
    assert row.rejected_interactions == 2 and row.rejected_items == 0
    reasons = data_prep.rejections(tmp_path / "out")
    assert reasons.values.tolist() == [
        ["shop", "interactions", "missing user", 1],
        ["shop", "interactions", "unreadable timestamp", 1],
    ]


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_lines_do_not_depend_on_the_block_size(tmp_path, block):
    lines = ["", "été", "x" * 50, "\t", "last"]
    path = tmp_path / "lines.json"
    path.write_bytes("\n".join(lines).encode())
    batches = list(reading.line_batches(path, block=block))
    assert [text.rstrip("\n") for b in batches for text in b["text"].to_pylist()] == lines
    assert [n for b in batches for n in b["line"].to_pylist()] == [1, 2, 3, 4, 5]
