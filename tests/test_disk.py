"""A full disk, a limit or a read-only folder: one sentence. Caches: damage is noticed, and a cache
that is of no use costs time alone."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from same import numbers
from toy import config

from fedecider import federation, runs
from fedecider.engine import files, hidden_states, weights
from fedecider.engine.backbone import load
from fedecider.engine.files import WriteError
from fedecider.engine.hidden_states import HiddenStateCache, compute_states
from fedecider.engine.packing import PromptTree

TREES = [PromptTree([0, 5, 6], [[7, 8], [9]]), PromptTree([0, 20, 21, 22])]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free space"), (errno.EFBIG, "ulimit -f"), (errno.EROFS, "writable")],
)
def test_a_disk_that_refuses_is_told_and_the_run_goes_on(
    number, advice, backbone, data, tmp_path, monkeypatch
):
    chosen = config(data, tmp_path / "run", "local", rankers=[])
    plain = os.fsync

    def refuses(handle):
        if list(chosen.folder.glob("checkpoint/round-001*")):  # in the second round
            raise OSError(number, os.strerror(number))
        plain(handle)

    with monkeypatch.context() as patch, pytest.raises(WriteError) as told:
        patch.setattr(os, "fsync", refuses)
        federation.run(chosen, backbone)
    sentence = str(told.value)
    assert str(chosen.folder) in sentence and advice in sentence and "\n" not in sentence
    assert told.value.errno == number
    federation.run(chosen, backbone)
    whole = federation.run(config(data, tmp_path / "whole", "local", rankers=[]), backbone)
    assert numbers(chosen.folder) == numbers(whole)


def test_a_limit_on_the_size_of_files(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from fedecider import runs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "runs.write_json(Path(sys.argv[1]) / 'x.json', 'x' * 2000)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "WriteError" in last and str(tmp_path) in last and "ulimit -f" in last
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_folder(backbone, data, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(WriteError, match="run.* cannot be written .*: a file is in the way"):
        federation.run(config(data, tmp_path / "run" / "x", "local"), backbone)


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), runs.atomic(tmp_path / "x"):
        open(tmp_path / "missing").close()


# Stored hidden states


@pytest.fixture
def stored(backbone, tmp_path, monkeypatch):
    """The file of stored states; nothing is known of it in this process."""
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path))
    HiddenStateCache(backbone, TREES, 1)
    hidden_states._checked.clear()
    (file,) = (tmp_path / "states").iterdir()
    return file


@pytest.mark.parametrize("place", [0, 300, -1], ids=["rows", "rows behind", "digest"])
def test_a_flipped_bit_in_stored_states_is_noticed(place, stored, backbone):
    healthy = stored.read_bytes()
    content = bytearray(healthy)
    content[place] ^= 1
    stored.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{stored.name} is damaged and computed anew"):
        states = HiddenStateCache(backbone, TREES, 1).batch([0, 1]).states
    assert torch.equal(states, compute_states(backbone, TREES, 1))
    assert stored.read_bytes() == healthy


def test_damage_after_the_first_opening_is_noticed_too(stored, backbone):
    HiddenStateCache(backbone, TREES, 1)
    content = bytearray(stored.read_bytes())
    content[5] ^= 4
    stored.write_bytes(content)
    os.utime(stored, ns=(1, stored.stat().st_mtime_ns + 10**7))
    with pytest.warns(UserWarning, match="damaged"):
        HiddenStateCache(backbone, TREES, 1)


def test_states_of_before_digests_are_read(stored, backbone, monkeypatch):
    stored.write_bytes(stored.read_bytes()[: -files.DIGEST_BYTES])
    expected = compute_states(backbone, TREES, 1)
    monkeypatch.setattr(hidden_states, "compute_states", None)
    assert torch.equal(HiddenStateCache(backbone, TREES, 1).batch([0, 1]).states, expected)


def test_a_filled_cache_that_is_read_only_serves(stored, backbone, monkeypatch):
    def refuses(*args, **kwargs):
        raise PermissionError(errno.EROFS, "read-only")

    expected = compute_states(backbone, TREES, 1)
    os.utime(stored, (1e9, 1e9))
    for name in ("utime", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refuses)
    monkeypatch.setattr(files.tempfile, "mkstemp", refuses)
    monkeypatch.setattr(hidden_states, "compute_states", None)
    assert torch.equal(HiddenStateCache(backbone, TREES, 1).batch([0, 1]).states, expected)


def test_states_that_may_not_be_read_are_computed(stored, backbone, monkeypatch):
    plain = Path.open

    def refuses(path, *args, **kwargs):
        if path.suffix == ".float32":
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path, *args, **kwargs)

    before = stored.read_bytes()
    monkeypatch.setattr(Path, "open", refuses)
    with pytest.warns(UserWarning, match=f"{stored.name} is of no use here .Permission denied"):
        states = HiddenStateCache(backbone, TREES, 1).batch([0, 1]).states
    assert torch.equal(states, compute_states(backbone, TREES, 1))
    monkeypatch.undo()
    assert stored.read_bytes() == before


def test_a_cache_that_cannot_be_written_costs_time_alone(backbone, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder would be")
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="not stored"):
        states = HiddenStateCache(backbone, TREES, 1).batch([0, 1]).states
    assert torch.equal(states, compute_states(backbone, TREES, 1))


# The dense copy of a packaged model


@pytest.fixture
def packaged(backbone, tmp_path, monkeypatch):
    """A packaged model whose dense copy is made in no time; the list of makings."""
    source, made = tmp_path / "model.gguf", []
    source.write_bytes(b"4 bit")

    class Made:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            made.append(args)
            return load("tiny", "cpu", "float32").model

    class Tokens:
        from_pretrained = staticmethod(lambda *args, **kwargs: backbone.tokenizer)

    monkeypatch.setattr(weights, "AutoModelForCausalLM", Made)
    monkeypatch.setattr(weights, "AutoTokenizer", Tokens)
    monkeypatch.setattr(weights, "GgufConfig", lambda **kwargs: None)
    monkeypatch.setattr(weights, "_packaged_file", lambda name: source)
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    return made


def test_a_damaged_dense_copy_is_made_again(packaged):
    folder = weights.dense_copy("smollm2-135m")
    healthy = (folder / "model.safetensors").read_bytes()
    assert weights.dense_copy("smollm2-135m") == folder and len(packaged) == 1
    content = bytearray(healthy)
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=f"{folder.name} is damaged and made again"):
        weights.dense_copy("smollm2-135m")
    assert (folder / "model.safetensors").read_bytes() == healthy and len(packaged) == 2
    (folder / "tokenizer.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        weights.dense_copy("smollm2-135m")
    assert len(packaged) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        folder.name,
        f"{folder.name}.json",
    ]


def test_a_dense_copy_of_before_digests_gets_them(packaged):
    folder = weights.dense_copy("smollm2-135m")
    digests = folder.with_name(f"{folder.name}.json")
    before = digests.read_bytes()
    digests.unlink()
    assert weights.dense_copy("smollm2-135m") == folder and len(packaged) == 1
    assert digests.read_bytes() == before


def test_dense_copies_that_may_not_be_read_are_made_for_the_process(packaged, monkeypatch):
    folder = weights.dense_copy("smollm2-135m")

    def refuses(path):
        if path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied")
        return plain(path)

    plain = files.digest
    monkeypatch.setattr(files, "digest", refuses)
    with pytest.warns(UserWarning, match="of no use here .Permission denied.: made for now"):
        own = weights.dense_copy("smollm2-135m")
    assert own != folder and (own / "model.safetensors").exists()
    shutil.rmtree(own)
    weights._passing_copy.cache_clear()
