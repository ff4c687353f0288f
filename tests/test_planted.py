"""The generated dumps: same bytes, the planted truth in the data, and prepared end to end."""

import gzip
import hashlib
import json

import numpy as np
import pandas as pd
import pytest

import data_prep
from data_prep import planted, write_dumps
from data_prep.planted_titles import PATTERNS, THEMES, titles
from data_prep.titles import clean_title

SMALL = {"users": 40, "items": 80, "history": 10}
THEME_OF = {
    word: number for number, words in enumerate(THEMES.values()) for part in words for word in part
}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def theme(title):
    found = {THEME_OF[word] for word in title.replace(",", "").split() if word in THEME_OF}
    assert len(found) == 1, title
    return found.pop()


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    return write_dumps(tmp_path_factory.mktemp("planted") / "dumps", seed=3, **SMALL)


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """The default size, prepared: {domain: histories as lists of themes}."""
    folder = tmp_path_factory.mktemp("full")
    histories = {}
    for dataset in planted.DATASETS:
        frame = data_prep.prepare(
            dataset, folder / "dumps", folder / dataset, kind="planted", progress=False
        )
        assert frame.users.tolist() == [400] * 3
        assert frame["items"].between(250, 320).all()
        for domain in frame.domain:
            place = folder / dataset / domain
            rows = pd.read_parquet(place / "interactions.parquet")
            names = pd.read_parquet(place / "items.parquet").set_index("item_id").title
            rows["theme"] = rows.item_id.map(names).map(theme)
            histories[domain] = rows
    return folder, histories


def test_same_seed_same_bytes(dumps, tmp_path):
    assert digests(write_dumps(tmp_path / "other name", seed=3, **SMALL)) == digests(dumps)
    other = digests(write_dumps(tmp_path / "seed", seed=4, **SMALL))
    assert not set(other.values()) & set(digests(dumps).values())


def test_the_files_carry_the_published_names_and_fields(dumps):
    assert set(digests(dumps)) == {
        "planted.json",
        "amazon/Office_Products_5.json.gz",
        "amazon/meta_Office_Products.json.gz",
        "amazon/Industrial_and_Scientific.jsonl.gz",
        "amazon/meta_Industrial_and_Scientific.jsonl.gz",
        "amazon/Video_Games.json",
        "amazon/meta_Video_Games.json",
    } | {
        f"goodreads/goodreads_{role}_{genre}.json.gz"
        for role in ("interactions", "books")
        for genre in planted.DATASETS["goodreads"]
    }
    lines = gzip.decompress(
        (dumps / "goodreads/goodreads_interactions_children.json.gz").read_bytes()
    ).splitlines()
    assert {"user_id", "book_id", "is_read", "rating", "date_added", "read_at"} <= set(
        json.loads(lines[0])
    )
    review = json.loads((dumps / "amazon/Video_Games.json").read_text().splitlines()[0])
    assert {"reviewerID", "asin", "overall", "unixReviewTime"} <= set(review)
    newer = gzip.decompress((dumps / "amazon/Industrial_and_Scientific.jsonl.gz").read_bytes())
    review = json.loads(newer.splitlines()[0])
    assert {"user_id", "parent_asin", "rating", "timestamp"} <= set(review)
    assert review["timestamp"] > 10**12


def test_every_fault_is_found_by_the_reader(dumps, tmp_path):
    # Amazon's copy of a line with another rating is a duplicate.
    for dataset, faults, duplicates, odd in (
        ("goodreads", 10, 2, {}),
        ("amazon", 9, 3, {"unreadable rating": 1}),
    ):
        data_prep.prepare(dataset, dumps / dataset, tmp_path, user_core=3, item_core=1,
                          negatives=9, progress=False)  # fmt: skip
        for domain in planted.DATASETS[dataset]:
            meta = json.loads((tmp_path / domain / "meta.json").read_text())
            assert sum(meta["interactions"]["rejected"].values()) == faults
            assert meta["interactions"]["duplicates"] == duplicates
            assert meta["oddities"]["interactions"] == odd
            assert meta["items"]["rejected"] == {"broken line": 1, "no title": 2,
                                                 "repeated item": 1}  # fmt: skip
            assert meta["result"]["users"] == SMALL["users"]
            names = pd.read_parquet(tmp_path / domain / "items.parquet").title
            assert not names.str.contains("[<>#]|&amp;|&nbsp;").any()


def test_titles_are_unique_short_and_show_their_theme():
    generator = np.random.default_rng(0)
    for domain in PATTERNS:
        for number, name in enumerate(THEMES):
            made = titles(domain, name, 40, generator)
            assert len({clean_title(title) for title in made}) == 40
            assert all(theme(title) == number and 3 <= len(title.split()) <= 7 for title in made)
    with pytest.raises(ValueError, match="items per theme: expected at most"):
        titles("children", "dragon", 10_000, generator)


def test_moves_have_the_planted_affinity():
    for affinity in (0.0, 0.5, 0.9, 1.0):
        moves = planted._moves(np.random.default_rng(5), affinity)
        assert np.allclose(moves.sum(axis=2), 1)
        overlap = planted._overlap(moves)
        assert np.allclose(overlap, [[1, affinity, 0], [affinity, 1, 0], [0, 0, 1]])
        matrix = planted.transitions(moves[0])
        assert np.allclose(matrix.sum(axis=1), 1) and np.allclose(np.diag(matrix), 0.4625)


def test_the_prepared_data_show_the_planted_dynamics(domains):
    folder, histories = domains
    for dataset, names in planted.DATASETS.items():
        truth = json.loads((folder / dataset / "affinity.json").read_text())
        moves = {}
        for domain in names:
            rows = histories[domain]
            follows = rows.groupby("user_id").theme.shift(-1)
            counts = np.zeros((len(THEMES), len(THEMES)))
            for a, b in zip(rows.theme[follows.notna()], follows.dropna(), strict=True):
                counts[int(a), int(b)] += 1
            observed = counts / counts.sum(axis=1, keepdims=True)
            assert 0.38 < np.diag(observed).mean() < 0.55
            # What is left beyond persistence and noise is the domain's next theme.
            excess = np.clip(observed - np.diag(np.diag(observed)) - 0.04, 0, None)
            moves[domain] = excess / excess.sum(axis=1, keepdims=True)
        for i, a in enumerate(truth["domains"]):
            for j, b in enumerate(truth["domains"]):
                overlap = np.minimum(moves[a], moves[b]).sum(axis=1).mean()
                assert overlap == pytest.approx(truth["affinity"][i][j], abs=0.15)


def test_popularity_has_a_long_tail_and_times_increase(domains):
    for rows in domains[1].values():
        counts = rows.item_id.value_counts()
        assert counts.iloc[: len(counts) // 10].sum() > 0.25 * counts.sum()
        assert counts.median() < counts.mean()
        assert (rows.groupby("user_id").timestamp.diff().dropna() > 0).all()
        assert rows.groupby("user_id").size().median() in (13, 14, 15)


def test_affinity_follows_the_chosen_domains_and_leaves_with_planted_data(dumps, tmp_path):
    choice = {"kind": "planted", "seed": 3, "negatives": 9, "item_core": 1, "progress": False,
              "planted_users": 40, "planted_items": 80, "planted_history": 10}  # fmt: skip
    out = tmp_path / "out"
    before = digests(dumps)
    data_prep.prepare("amazon", dumps, out, domains=["video_games", "office_products"], **choice)
    assert digests(dumps) == before
    assert json.loads((out / "affinity.json").read_text()) == {
        "domains": ["video_games", "office_products"],
        "affinity": [[1.0, 0.0], [0.0, 1.0]],
    }
    data_prep.prepare("amazon", dumps / "amazon", out, negatives=9, item_core=1, progress=False)
    assert not (out / "affinity.json").exists()
    # Other parameters make other dumps in the same place.
    data_prep.prepare("amazon", dumps, out, **choice | {"planted_users": 30})
    assert digests(dumps) != before
    write_dumps(dumps, seed=3, **SMALL)


def test_refusals(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="mine: expected an empty folder or planted dumps"):
        write_dumps(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()
    with pytest.raises(ValueError, match="affinity 2: expected a number from 0 to 1"):
        write_dumps(tmp_path / "new", affinity=2)
    with pytest.raises(ValueError, match="items per theme: expected at most"):
        write_dumps(tmp_path / "new", items=5000)
    with pytest.raises(ValueError, match="'films': planted dumps exist for goodreads, amazon"):
        data_prep.prepare("films", tmp_path / "new", tmp_path / "out", kind="planted")
