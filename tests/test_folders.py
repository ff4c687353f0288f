"""A prepared folder: damage, names that are not there, disks that refuse, two at once."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from test_manifest import CHOICE, names, raw

import data_prep
from data_prep import BusyError, FormatError, WriteError, folders

DAMAGES = [
    "", "{", "[]", "null", '{"domains": ["a"]}', '{"domains": {"a": 1}}', '{"domains": {"..": {}}}',
    '{"domains": {"": {}}}', b"\xff\xfe",
]  # fmt: skip


def prepare(folder, out, **choice):
    return data_prep.prepare("own", folder, out, **CHOICE | choice)


def held_files(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_told_and_replaced(tmp_path, damage):
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    prepare(folder, out)
    path = out / "manifest.json"
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(FormatError, match=f"{path} is damaged: prepare the data set again"):
        data_prep.rejections(out)
    prepare(folder, out, domains=["a"])
    assert list(json.loads(path.read_text())["domains"]) == ["a"]
    # No manifest says that b was of the data set; nobody reads it now.
    assert sorted(entry.name for entry in out.iterdir()) == ["a", "b", "manifest.json"]
    (out / "a/meta.json").write_text("{")
    with pytest.raises(FormatError, match="a/meta.json is missing or damaged: prepare"):
        data_prep.rejections(out)


def test_what_is_not_prepared_is_answered_with_the_nearest_that_is(tmp_path, monkeypatch):
    prepare(raw(tmp_path / "raw"), tmp_path / "results/town/data/library")
    (tmp_path / "results/tow/data").mkdir(parents=True)
    nearest = "results/town/data/library$"
    for wrong in ("twn/data/library", "town/data/libary", "town/data", "town/data/library/a"):
        for read in (data_prep.rejections, data_prep.examples):
            if read is data_prep.examples and wrong.endswith("/a"):
                assert len(read(tmp_path / "results" / wrong)) == 2
                continue
            with pytest.raises(
                FileNotFoundError, match=f"no prepared data in .*{wrong}: .*{nearest}"
            ):
                read(tmp_path / "results" / wrong)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"in no/such: the nearest .* is {tmp_path}$"):
        data_prep.rejections("no/such")
    with pytest.raises(FileNotFoundError, match="raw files of own; the nearest .* is raw$"):
        prepare("rw", "out")


@pytest.mark.parametrize("limit", [500, 20_000])
def test_a_limit_on_the_size_of_files(tmp_path, limit):
    folder = raw(tmp_path / "raw")
    prepare(folder, tmp_path / "out")
    before = held_files(tmp_path / "out")
    code = (
        "import resource, sys, data_prep\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"data_prep.prepare('own', sys.argv[1], sys.argv[2], seed=1, **{CHOICE!r})"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "WriteError" in last and f"{tmp_path / 'out'} cannot be written" in last
    assert "ulimit -f" in last and "interactions.csv" not in last
    assert held_files(tmp_path / "out") == before


@pytest.mark.parametrize(("function", "calls"), [("fsync", 8), ("rename", 2), ("replace", 1)])
def test_whatever_the_disk_refuses_the_data_set_is_whole(tmp_path, monkeypatch, function, calls):
    folder, out = raw(tmp_path / "raw", "a"), tmp_path / "out"
    prepare(folder, out)
    plain, failures = getattr(os, function), 0
    while True:
        call = itertools.count()

        def refuses(*args, _call=call, _last=failures):
            if next(_call) == _last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, refuses)
            try:
                prepare(folder, out, seed=failures + 1)
                break
            except WriteError as error:
                failures += 1
                assert str(error) == (
                    f"{out} cannot be written (No space left on device): free space there or name "
                    "another folder"
                )
                assert error.errno == errno.ENOSPC
        assert names(out) == ["a"]  # of the manifest, with every digest
        assert {path.name for path in out.iterdir()} == {"a", "manifest.json"}
    assert failures >= calls and names(out) == ["a"]


def test_files_are_synced_before_the_manifest_is_renamed(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("renamed"), replace(*a)))
    prepare(raw(tmp_path / "raw", "a"), tmp_path / "out")
    before = order[: order.index("renamed")]
    assert {*folders.FILES, "meta.json", ".a.partial", ".manifest.json.partial"} <= set(before)
    assert order[-1] == "out"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "make it writable"),
        (OSError(errno.EACCES, "no", "{out}/a"), "make it writable"),
        (OSError(errno.EMFILE, "no", "/elsewhere/raw.csv"), "ulimit -n"),
        (OSError("Error writing bytes to file. Detail: File too large"), "ulimit -f"),
        (duckdb.IOException("Could not write file: No space left on device"), "free space"),
        (duckdb.OutOfMemoryException("1 KiB of 1 KiB used"), "raise the setting memory"),
        (duckdb.TransactionException("Failed to commit: File too large"), "ulimit -f"),
        (OSError(errno.EACCES, "no", "/elsewhere/raw.csv"), None),
        (OSError(errno.EIO, "input"), None),
        (duckdb.ConversionException("no number"), None),
    ],
)
def test_an_error_is_told_of_the_folder_if_it_is_the_folder_s(tmp_path, error, said):
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(out=tmp_path)
    with pytest.raises(type(error) if said is None else WriteError) as told, \
            folders.writing(tmp_path):  # fmt: skip
        raise error
    if said is None:
        assert told.value is error
    else:
        assert str(told.value).startswith(f"{tmp_path} cannot be written (")
        assert said in str(told.value)


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=f"{out} cannot be written .*: a file is in the way"):
        prepare(raw(tmp_path / "raw"), tmp_path / out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("of somebody")
    with pytest.raises(WriteError, match="out cannot be written .*: a file is in the way"):
        prepare(raw(tmp_path / "raw"), tmp_path / "out")
    assert (tmp_path / "out/a").read_text() == "of somebody"


def test_a_second_preparation_is_told_and_a_dead_one_holds_nothing(tmp_path):
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from data_prep import folders\n"
        "with folders.held(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(BusyError, match=f"{out} is being prepared by another process: w"):
                prepare(folder, out)
            assert not list(out.iterdir())
        finally:
            other.kill()
    prepare(folder, out)
    with folders.held(out), pytest.raises(BusyError):
        prepare(folder, out)
    prepare(folder, out)
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "manifest.json"]
