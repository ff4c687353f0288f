"""Prepared domains as the clients read them."""

import json

import pandas as pd
import pytest
from toy import seal, write_domain, write_domains

from data_prep import folders
from fedecider.domains import data_digest, read_affinity, read_domain, read_domains


def test_reading_a_domain(tmp_path):
    write_domain(tmp_path / "books", 0)
    domain = read_domain(tmp_path / "books")
    user = sorted(domain.test)[0]
    assert domain.history(user, "valid") == domain.train[user]
    assert domain.history(user, "test") == [*domain.train[user], domain.valid[user]]
    assert domain.popularity.sum() == sum(map(len, domain.train.values()))
    assert list(domain.popularity.index) == list(domain.items.index)


def test_only_the_needed_users_are_read(tmp_path):
    write_domain(tmp_path / "books", 0)
    whole = read_domain(tmp_path / "books")
    some = read_domain(tmp_path / "books", train=5, valid=3, test=2)
    assert [len(some.users[split]) for split in ("train", "valid", "test")] == [5, 3, 2]
    assert set(some.users["test"]) < set(some.users["valid"]) < set(some.users["train"])
    assert sorted(some.train) == some.users["train"]
    assert {user for _, user in some.negatives} == set(some.users["valid"])
    for user in some.users["train"]:
        assert some.train[user] == whole.train[user]
    # Popularity counts everybody all the same.
    pd.testing.assert_series_equal(some.popularity, whole.popularity)


def test_left_over_folders_of_a_killed_preparation_are_no_domains(tmp_path):
    write_domains(tmp_path, ["books", ".books.old"])
    assert [domain.name for domain in read_domains(tmp_path)] == ["books"]


def test_what_is_read_decides_the_digest_and_nothing_else(tmp_path):
    def digest(change=None, **limits):
        folder = write_domains(tmp_path / "data", ["books"])
        if change:
            table, edit = change
            path = folder / "books" / f"{table}.parquet"
            edit(pd.read_parquet(path)).to_parquet(path)
            seal(folder)
        return data_digest(read_domains(folder, **limits))

    def swapped(table):  # the first two training items of one user
        table = table.copy()
        table.loc[[0, 1], "position"] = [1, 0]
        return table

    def redrawn(table):
        table["negatives"] = [[*drawn[:-1], drawn[0]] for drawn in table["negatives"]]
        return table

    first = digest()
    assert digest() == first and len(first) == 24
    assert digest(("splits", lambda table: table.sample(frac=1, random_state=0))) == first
    changes = [
        digest(("items", lambda table: table.assign(title=table["title"] + "!"))),
        digest(("splits", swapped)),
        digest(("candidates", redrawn)),
        digest(train=5, valid=3, test=2),
    ]
    assert len({first, *changes}) == 5
    whole = read_domains(write_domains(tmp_path / "data", ["books", "games"]))
    assert data_digest(whole[:1]) == first != data_digest(whole)


def test_unfit_domains_are_named(tmp_path):
    write_domain(tmp_path / "books", 0)
    splits = pd.read_parquet(tmp_path / "books" / "splits.parquet")
    splits.assign(item_id="zzz").to_parquet(tmp_path / "books" / "splits.parquet")
    seal(tmp_path)
    with pytest.raises(ValueError, match="splits.parquet names item 'zzz'"):
        read_domain(tmp_path / "books")
    splits[splits["split"] != "test"].to_parquet(tmp_path / "books" / "splits.parquet")
    seal(tmp_path)
    with pytest.raises(ValueError, match="has no test rows"):
        read_domain(tmp_path / "books")
    splits.drop(columns="split").to_parquet(tmp_path / "books" / "splits.parquet")
    seal(tmp_path)
    with pytest.raises(ValueError, match="lacks the columns split"):
        read_domain(tmp_path / "books")
    (tmp_path / "books" / "items.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="items.parquet is missing"):
        read_domain(tmp_path / "books")


def test_a_mistyped_data_set_is_told_with_the_nearest(tmp_path):
    write_domains(tmp_path / "mine/data/goodreads", ["books"])
    meant = f"nearest data set that is there is {tmp_path}/mine/data/goodreads"
    for mistyped in ("mine/data/godreads", "mien/data/goodreads"):
        with pytest.raises(FileNotFoundError, match=meant):
            read_domains(tmp_path / mistyped)
    with pytest.raises(FileNotFoundError, match="01_prepare first$"):
        read_domains(tmp_path / "elsewhere")


def test_affinity(tmp_path):
    assert read_affinity(tmp_path) is None
    planted = {"domains": ["a", "b"], "affinity": [[1, 0.5], [0.5, 1]]}
    (tmp_path / "affinity.json").write_text(json.dumps(planted))
    assert read_affinity(tmp_path).loc["a", "b"] == 0.5
    (tmp_path / "affinity.json").write_text(json.dumps(planted | {"affinity": [[1, 0.5]]}))
    with pytest.raises(ValueError, match=r"affinity.json: affinity has shape \(1, 2\)"):
        read_affinity(tmp_path)
    (tmp_path / "affinity.json").write_text("{}")
    with pytest.raises(ValueError, match="affinity.json: expected JSON with 'domains'"):
        read_affinity(tmp_path)


def test_an_affinity_that_the_manifest_names_is_held_against_it(tmp_path):
    write_domains(tmp_path, ["a", "b"])
    path = tmp_path / "affinity.json"
    content = json.dumps({"domains": ["a", "b"], "affinity": [[1, 0.5], [0.5, 1]]}).encode()
    path.write_bytes(content)
    assert read_affinity(tmp_path).loc["a", "b"] == 0.5  # a manifest that does not name it
    folders.write_manifest(tmp_path, ["a", "b"], files={path.name: folders.digest(path)})
    assert read_affinity(tmp_path).loc["a", "b"] == 0.5
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"affinity.json is damaged .* prepare the data set"):
            read_affinity(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="affinity.json is missing"):
        read_affinity(tmp_path)
