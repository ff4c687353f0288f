"""One process writes a run folder at a time; what dead ones left is cleared; files are synced."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy import config

from fedecider import claims, federation, runs
from fedecider.engine import files, hidden_states

HOLDS = """
import sys, time
from pathlib import Path
from fedecider import claims, runs
from fedecider.engine import files
with claims._locked(Path(sys.argv[1])):
    with runs.atomic(Path(sys.argv[1]) / "geometry.csv") as beside:
        print(beside, flush=True)
        time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path/run, and the unfinished file that it writes there."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    unfinished = Path(process.stdout.readline().strip())
    yield process, unfinished
    process.kill()
    process.wait()


def test_a_second_process_is_told_and_takes_over_from_a_dead_one(other, backbone, data, tmp_path):
    process, unfinished = other
    chosen = config(data, tmp_path / "run", "local", rounds=1, rankers=[])
    with pytest.raises(claims.BusyError, match=rf"run is being written .*\(process {process.pid}"):
        federation.run(chosen, backbone)
    files.remove_unfinished(chosen.folder)
    assert unfinished.exists()  # its writer lives
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (chosen.folder / ".tmpAb3dEf").write_text("left by a library")
    federation.run(chosen, backbone)
    assert not list(chosen.folder.rglob(".*"))


def test_a_finished_run_needs_no_lock(backbone, data, tmp_path):
    chosen = config(data, tmp_path / "done", "zero-shot", rankers=[])
    federation.run(chosen, backbone)
    with claims._locked(chosen.folder):
        assert federation.run(chosen, backbone) == chosen.folder


def test_a_resumed_run_clears_the_stored_states_too(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    states = tmp_path / "cache" / "states"
    states.mkdir(parents=True)
    dead = [states / name for name in (".abcd1234", ".tmp0aB9zZ", ".0a1b.float32-12345678")]
    for path in dead:
        path.write_bytes(b"half")
    with runs.atomic(states / "0f.float32") as alive:
        federation.run(config(data, tmp_path / "run", "local", rounds=1, rankers=[]), backbone)
        assert alive.exists() and not any(path.exists() for path in dead)
    assert list(states.glob("[!.]*")) and not list(states.glob(".*"))


def test_a_file_that_is_cleared_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    plain, cleared = files.try_lock, []

    def late(handle):
        if not cleared:
            cleared.extend(tmp_path.iterdir())
            cleared[0].unlink()
        return plain(handle)

    monkeypatch.setattr(files, "try_lock", late)
    with runs.atomic(tmp_path / "x") as beside:
        beside.write_text("whole")
    assert cleared and (tmp_path / "x").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_are_synced_before_their_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def synced(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *a: done.append("rename") or replace(*a))
    runs.write_json(tmp_path / "x.json", {})
    assert done == ["file", "rename", "folder"]


def test_every_state_file_goes_through_atomic(backbone, data, tmp_path, monkeypatch):
    synced = set()
    plain = files.sync
    monkeypatch.setattr(files, "sync", lambda path: synced.add(path.name) or plain(path))
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    federation.run(config(data, tmp_path / "run", rankers=["likelihood"]), backbone)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"events.jsonl"}
    missing = [name for name in written if not any(f".{name}-" in path for path in synced)]
    assert missing == [] and hidden_states.prune() == 0
