"""Table 1, from prepared folders."""

import json
import shutil

import pandas as pd
import pytest
from seen import csv, lines
from toy import seal

from figures import table as printed
from figures import table_1


def meta(folder, dataset, domain, kind="goodreads", **counts):
    numbers = {"users": 1200, "items": 10, "interactions": 30, "density": 0.0025}
    numbers |= {"median_history": 7.5} | counts
    content = {"dataset": dataset, "domain": domain, "settings": {"kind": kind}, "result": numbers}
    place = folder / "data" / dataset / domain
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps(content))
    seal(place.parent, [domain])
    return place


def test_table_1_shows_what_the_prepared_folders_say(tmp_path):
    meta(tmp_path, "goodreads", "comics_graphic", users=9)
    meta(tmp_path, "goodreads", "children")
    meta(tmp_path, "amazon", "video_games", kind="planted")
    meta(tmp_path, "amazon", ".video_games.partial")
    (tmp_path / "data/amazon/affinity.json").write_text("{}")
    table = table_1.table(table_1.numbers(tmp_path))
    head = ["Users", "Items", "Interactions", "Density, %", "Median history"]
    assert lines(table) == [
        ["Data set", "Domain", *head],
        ["Amazon", "Video games", "1,200", "10", "30", "0.250", "7.5"],
        ["Goodreads", "Children", "1,200", "10", "30", "0.250", "7.5"],
        ["", "Comics graphic", "9", "10", "30", "0.250", "7.5"],
    ]
    assert table.notes == ("Generated, with planted structure: Amazon.",)
    rows = csv(table)
    assert list(rows["folder"])[:2] == ["data/amazon/video_games", "data/goodreads/children"]
    assert list(rows["domain"])[2] == "comics_graphic" and rows["density"][0] == 0.0025


def test_table_1_reads_what_data_prep_writes(tmp_path):
    import data_prep

    settings = {"kind": "planted", "planted_users": 30, "planted_items": 20, "negatives": 5}
    settings |= {"planted_history": 8, "progress": False}
    made = data_prep.prepare(
        "goodreads", tmp_path / "dumps", tmp_path / "data/goodreads", **settings
    )
    read = table_1.numbers(tmp_path)
    assert len(read) == len(made) > 0
    shared = ["dataset", "domain", *table_1.COUNTS]
    made = made.sort_values("domain").reset_index(drop=True)
    pd.testing.assert_frame_equal(read[shared], made[shared])
    assert set(read["kind"]) == {"planted"}


def test_table_1_without_data_and_with_a_broken_file(tmp_path):
    table = table_1.table(table_1.numbers(tmp_path))
    assert len(lines(table)) == 1 and table.notes == ("No prepared data.",)
    printed.to_styler(table).to_html()
    place = meta(tmp_path, "goodreads", "children")
    (place / "meta.json").write_text('{"result": {"users": 3}}')
    seal(place.parent)
    with pytest.raises(ValueError, match="does not tell items, interactions, density"):
        table_1.numbers(tmp_path)


def test_table_1_shows_the_domains_of_the_manifest_as_they_were_prepared(tmp_path):
    place = meta(tmp_path, "goodreads", "children")
    shutil.copytree(place, place.with_name("comics"))  # of an earlier preparation
    assert table_1.numbers(tmp_path)["domain"].tolist() == ["children"]
    path = place / "meta.json"
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 7):
        flipped = content.copy()
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"children/meta.json is damaged .* prepare the data"):
            table_1.numbers(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="children/meta.json is missing: prepare"):
        table_1.numbers(tmp_path)
    path.write_bytes(content)
    (place.parent / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="goodreads"):
        table_1.numbers(tmp_path)
