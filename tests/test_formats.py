"""Raw formats: found by their modules, added by one file; data_prep knows no other package."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import data_prep
from data_prep import FORMATS, amazon, formats, goodreads, plain, planted, prepare, reader_of

PACKAGE = Path(data_prep.__file__).parent
PREPARE = """
import data_prep, sys
choice = {"user_core": 3, "item_core": 1, "negatives": 1, "progress": False}
frame = data_prep.prepare("library", "raw", "out", kind="terminal", **choice)
print(data_prep.__file__, list(data_prep.FORMATS), frame.domain.tolist())
"""


def test_every_reader_is_found_by_its_kind():
    assert list(FORMATS.items()) == [
        ("amazon", amazon),
        ("goodreads", goodreads),
        ("plain", plain),
        ("planted", planted),
    ]


def test_an_unknown_kind_is_answered_with_the_known_ones(tmp_path):
    known = "kind 'netflix' is unknown, expected one of amazon, goodreads, plain, planted"
    with pytest.raises(ValueError, match=known):
        prepare("films", tmp_path, tmp_path / "out", kind="netflix")
    assert not (tmp_path / "out").exists()
    assert [reader_of(kind) for kind in FORMATS] == list(FORMATS.values())


def test_a_format_is_one_file(tmp_path):
    """The reader in the README, put into a copy of the package."""
    copy = tmp_path / "data_prep"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    (reader,) = [block for block in blocks if "KIND = " in block]
    (copy / "terminal.py").write_text(reader)
    raw = tmp_path / "raw"
    raw.mkdir()
    loans = [f"{user}|{book}|2020-01-0{9 - int(book)}" for user in "uvw" for book in "1234"]
    (raw / "north.loans").write_text("\n".join([*loans, "u|5|soon", "|5|2020-01-01"]) + "\n")
    (raw / "north.books").write_text("".join(f"{k}|Title {k}\n" for k in range(1, 6)))

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", PREPARE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    kinds = [*FORMATS, "terminal"]
    assert answer.stdout.strip() == f"{copy / '__init__.py'} {kinds} ['north']"
    rows = pd.read_parquet(tmp_path / "out/north/interactions.parquet")
    assert rows.groupby("user_id").item_id.agg("".join).to_dict() == dict.fromkeys("uvw", "4321")
    assert rows.timestamp.min() == pd.Timestamp("2020-01-05").timestamp()
    reasons = data_prep.rejections(tmp_path / "out")[["reason", "lines"]].values.tolist()
    assert reasons == [["missing user", 1], ["unreadable date", 1]]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ('KIND = "plain"\nfind = load = print\n', ValueError, "declares the kind 'plain' too"),
        ('KIND = "half"\nfind = print\n', TypeError, "of kind 'half' needs a function load"),
        ("find = load = print\n", None, ""),
    ],
)
def test_a_faulty_reader_is_named(tmp_path, monkeypatch, code, error, message):
    (tmp_path / "zz_reader.py").write_text(code)
    monkeypatch.setattr(data_prep, "__path__", [*data_prep.__path__, str(tmp_path)])
    try:
        if error is None:  # no KIND, no format
            assert formats.discover() == FORMATS
        else:
            with pytest.raises(error, match=f"data_prep.zz_reader: .*{message}"):
                formats.discover()
        assert "data_prep.zz_reader" in sys.modules
    finally:
        sys.modules.pop("data_prep.zz_reader", None)
        vars(data_prep).pop("zz_reader", None)


def test_data_prep_knows_no_other_package_of_the_project():
    root = PACKAGE.parent
    others = {path.relative_to(root).parts[0] for path in root.glob("*/**/*.py")} - {"data_prep"}
    assert {"fedecider", "figures", "notebooks"} <= others
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, f"{path.name} imports from above its package"
                names = [node.module] if not node.level else []
            imported = {name.split(".")[0] for name in names}
            assert not imported & others, f"{path.name} imports {imported & others}"
