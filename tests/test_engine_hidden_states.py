"""Stored trunk states: the same as computed, named by content, pruned by age."""

import os

import pytest
import torch

from fedecider import trunk as module
from fedecider.adapter import Adapter
from fedecider.backbone import load
from fedecider.sequences import Tree
from fedecider.trunk import Trunk, prune

TREES = [Tree([0, 5, 6], [[7, 8], [9]]), Tree([0, 20, 21, 22]), Tree([0], [[30, 31]])]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path))
    return tmp_path / "trunk"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_states_are_stored_once_and_read_back_exactly(dtype, cache, monkeypatch):
    backbone = load("tiny", "cpu", dtype)
    first = Trunk(backbone, TREES, 1)
    wanted = module.compute(backbone, TREES, 1)
    assert torch.equal(first.cat([0, 1, 2], first.forest([0, 1, 2])), wanted)
    assert torch.equal(first.cat([1], first.forest([1])), wanted[6:10])
    monkeypatch.setattr(module, "compute", None)  # a second time nothing may be computed
    again = Trunk(backbone, TREES, 1)
    forest = again.forest([2, 0])
    assert torch.equal(again.cat([2, 0], forest), torch.cat([wanted[10:], wanted[:6]]))
    assert len(list(cache.iterdir())) == 1


@torch.no_grad()
def test_losses_above_the_trunk_equal_those_of_the_whole_model(cache):
    """Frozen trunk: identical to running all blocks, here to 1e-5 in float32."""
    backbone = load("tiny", "cpu", "float32")
    whole = Trunk(backbone, TREES, 0)
    forest = whole.forest([0, 1, 2])
    plain = backbone.blocks(whole.cat([0, 1, 2], forest)[None], forest.positions, forest)
    with Adapter(backbone, 2, 4, ["q_proj"], top_layers=1) as adapter:
        stored = Trunk(backbone, TREES, adapter.first)
        hidden = adapter.hidden(stored.cat([0, 1, 2], forest), forest)
    assert (hidden - backbone.normed(plain)[0]).abs().max() < 1e-5


def test_other_tokens_models_and_depths_are_other_files(cache):
    backbone = load("tiny", "cpu", "float32")
    Trunk(backbone, TREES, 1)
    Trunk(backbone, TREES[:2], 1)
    Trunk(backbone, [Tree([0, 5, 6], [[7], [8, 9]]), *TREES[1:]], 1)  # the same tokens, cut anew
    Trunk(backbone, TREES, 2)
    Trunk(load("tiny", "cpu", "bfloat16"), TREES, 1)
    assert len(list(cache.iterdir())) == 5
    Trunk(backbone, TREES, 0)  # the embedding alone is not kept
    assert len(list(cache.iterdir())) == 5


def test_a_killed_or_torn_file_is_made_again(cache, monkeypatch):
    backbone = load("tiny", "cpu", "float32")
    monkeypatch.setattr(module, "_BUDGET", 4)
    plain, calls = module.compute, []

    def dies(*args):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(module, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        Trunk(backbone, TREES, 1)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(module, "compute", plain)
    Trunk(backbone, TREES, 1)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    Trunk(backbone, TREES, 1)
    assert file.read_bytes() == whole


def test_prune_drops_what_was_used_longest_ago(cache):
    cache.mkdir()
    for age, name in enumerate(["new.float32", "mid.float32", "old.float32"]):
        (cache / name).write_bytes(b"x" * 10)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    assert prune(limit=30) == 0
    assert prune(limit=25) == 10
    assert sorted(file.name for file in cache.iterdir()) == ["mid.float32", "new.float32"]
