"""A data set is what its last finished preparation says, and its files are held to it."""

import json
import shutil

import pandas as pd
import pytest
from toy import seal, write_domains

import data_prep
from fedecider.domains import (
    data_digest,
    interactions_digest,
    read_domain,
    read_domains,
    read_manifest,
)

CHOICE = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False}


def raw(folder, domains="ab"):
    folder.mkdir(exist_ok=True)
    for name in domains:
        rows = [f"u{u},{i},{100 + i}\n" for u in range(3) for i in range(4)]
        (folder / f"{name}.interactions.csv").write_text("user,item,timestamp\n" + "".join(rows))
        items = [f"{i},Title {i}\n" for i in range(6)]
        (folder / f"{name}.items.csv").write_text("item,title\n" + "".join(items))
    return folder


def names(out):
    return [domain.name for domain in read_domains(out)]


def test_a_domain_of_an_earlier_preparation_does_not_join(tmp_path):
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    data_prep.prepare("own", folder, out, **CHOICE)
    assert names(out) == ["a", "b"]
    data_prep.prepare("own", folder, out, domains=["a"], max_users=2, **CHOICE)
    assert names(out) == ["a"] and not (out / "b").exists()
    assert set(data_prep.rejections(out).domain) <= {"a"}
    # A folder that no manifest names, whoever left it there
    shutil.copytree(out / "a", out / "left")
    assert names(out) == ["a"]
    with pytest.raises(FileNotFoundError, match="has no domain 'left', only a"):
        read_domain(out / "left")


def test_a_preparation_that_fails_changes_nothing(tmp_path):
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    data_prep.prepare("own", folder, out, **CHOICE)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (folder / "b.items.csv").write_text("item,title\n")
    with pytest.raises(data_prep.FormatError, match="b.items.csv: expected items"):
        data_prep.prepare("own", folder, out, **CHOICE | {"seed": 1})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_data_set_without_a_manifest_has_to_be_prepared_again(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared domains in"):
        read_domains(tmp_path)
    data_prep.prepare("own", raw(tmp_path / "raw"), tmp_path / "out", **CHOICE)
    path = tmp_path / "out/manifest.json"
    text = path.read_text()
    path.unlink()
    for read in (lambda: read_domains(tmp_path / "out"), lambda: read_domain(tmp_path / "out/a")):
        with pytest.raises(FileNotFoundError, match="manifest.json is missing.*prepare it again"):
            read()
    path.write_text(text[:-20])
    with pytest.raises(ValueError, match="manifest.json is damaged: prepare"):
        read_domains(tmp_path / "out")


@pytest.mark.parametrize("file", ["items", "splits", "candidates"])
def test_a_damaged_file_is_named(tmp_path, file):
    data_prep.prepare("own", raw(tmp_path / "raw"), tmp_path / "out", **CHOICE)
    path = tmp_path / f"out/a/{file}.parquet"
    data = bytearray(path.read_bytes())
    for place in (len(data) // 3, len(data) - 1):
        damaged = data.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file}.parquet is damaged or was changed.*again"):
            read_domains(tmp_path / "out")
    path.write_bytes(data)
    assert names(tmp_path / "out") == ["a", "b"]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}.parquet is missing"):
        read_domains(tmp_path / "out")


def test_named_domains_are_of_the_manifest(tmp_path):
    out = write_domains(tmp_path / "data", ["books", "comics"])
    assert [domain.name for domain in read_domains(out, ["books"])] == ["books"]
    with pytest.raises(FileNotFoundError, match="has no domain 'boks', only books, comics"):
        read_domains(out, ["boks"])
    for wrong in ([], ["books", "books"]):
        with pytest.raises(ValueError, match="expected different names of books, comics"):
            read_domains(out, wrong)
    assert sorted(read_manifest(out)["domains"]) == ["books", "comics"]


def test_interactions_of_users_who_are_not_sampled_have_a_digest_of_their_own(tmp_path):
    out = write_domains(tmp_path / "data", ["books"])
    limits = {"train": 3, "valid": 2, "test": 2}
    (domain,) = read_domains(out, **limits)
    before = interactions_digest([domain])
    path = out / "books/splits.parquet"
    splits = pd.read_parquet(path)
    other = next(user for user in splits.user_id if user not in domain.train)
    first, second = splits.index[splits.user_id == other][:2]
    splits.sample(frac=1, random_state=0).to_parquet(path)
    seal(out)
    shuffled = read_domains(out, **limits)
    assert data_digest(shuffled) == data_digest([domain])  # the order of the rows is none
    assert interactions_digest(shuffled) == before
    # Two training items of another user change places: every item's count stays.
    splits.loc[[first, second], "item_id"] = splits.loc[[second, first], "item_id"].to_numpy()
    splits.to_parquet(path)
    seal(out)
    (changed,) = read_domains(out, **limits)
    assert changed.train == domain.train and changed.popularity.equals(domain.popularity)
    assert data_digest([changed]) == data_digest([domain])
    assert interactions_digest([changed]) != before


def test_the_manifest_holds_every_file_and_the_settings(tmp_path):
    data_prep.prepare("own", raw(tmp_path / "raw"), tmp_path / "out", seed=3, **CHOICE)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["dataset"] == "own" and manifest["settings"]["seed"] == 3
    for name, files in manifest["domains"].items():
        assert set(files) == {path.name for path in (tmp_path / "out" / name).iterdir()}
