"""Stored hidden states: the same as computed, named by content, pruned by age."""

import os

import pytest
import torch

from fedecider.engine import hidden_states as module
from fedecider.engine.backbone import load
from fedecider.engine.hidden_states import ConcatCache, HiddenStateCache, compute_states, prune
from fedecider.engine.packing import PromptTree

TREES = [
    PromptTree([0, 5, 6], [[7, 8], [9]]),
    PromptTree([0, 20, 21, 22]),
    PromptTree([0], [[30, 31]]),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path))
    return tmp_path / "states"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_states_are_stored_once_and_read_back_exactly(dtype, cache, monkeypatch):
    backbone = load("tiny", "cpu", dtype)
    first = HiddenStateCache(backbone, TREES, 1)
    expected = compute_states(backbone, TREES, 1)
    assert torch.equal(first.batch([0, 1, 2]).states, expected)
    assert torch.equal(first.batch([1]).states, expected[6:10])
    monkeypatch.setattr(module, "compute_states", None)  # a second time nothing may be computed
    again = HiddenStateCache(backbone, TREES, 1)
    assert torch.equal(again.batch([2, 0]).states, torch.cat([expected[10:], expected[:6]]))
    assert len(list(cache.iterdir())) == 1


@torch.no_grad()
def test_blocks_above_stored_states_equal_the_whole_model(cache):
    """Frozen lower blocks: identical to running all blocks, here to 1e-5 in float32."""
    from fedecider.adapter import Adapter

    backbone = load("tiny", "cpu", "float32")
    whole = HiddenStateCache(backbone, TREES, 0).batch([0, 1, 2])
    plain = backbone.blocks(whole.states[None], whole.positions, whole)
    with Adapter(backbone, 2, 4, ["q_proj"], top_layers=1) as adapter:
        states = HiddenStateCache(backbone, TREES, adapter.first)
        hidden = adapter.hidden(states.batch([0, 1, 2]))
    assert (hidden - backbone.normed(plain)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("first", [0, 1])
def test_several_caches_are_one(first, cache):
    backbone = load("tiny", "cpu", "float64")
    parts = [HiddenStateCache(backbone, trees, first) for trees in (TREES[:1], TREES[1:])]
    both, whole = ConcatCache(parts), HiddenStateCache(backbone, TREES, first)
    assert len(both) == 3 and both.trees == TREES and both.sizes == whole.sizes == [6, 4, 3]
    for indices in ([2, 0, 1], [1]):
        ours, expected = both.batch(indices), whole.batch(indices)
        assert torch.equal(ours.ids, expected.ids)
        # Other packings may round differently.
        torch.testing.assert_close(ours.states, expected.states, rtol=0, atol=1e-12)


def test_other_tokens_models_and_depths_are_other_files(cache):
    backbone = load("tiny", "cpu", "float32")
    HiddenStateCache(backbone, TREES, 1)
    HiddenStateCache(backbone, TREES[:2], 1)
    recut = PromptTree([0, 5, 6], [[7], [8, 9]])  # the same tokens as the first tree's
    HiddenStateCache(backbone, [recut, *TREES[1:]], 1)
    HiddenStateCache(backbone, TREES, 2)
    HiddenStateCache(load("tiny", "cpu", "bfloat16"), TREES, 1)
    assert len(list(cache.iterdir())) == 5
    HiddenStateCache(backbone, TREES, 0)  # the embedding alone is not kept
    assert len(list(cache.iterdir())) == 5


def test_a_killed_or_torn_file_is_made_again(cache, monkeypatch):
    backbone = load("tiny", "cpu", "float32")
    monkeypatch.setattr(module, "FORWARD_TOKENS", 4)
    plain, calls = module.compute_states, []

    def dies(*args):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(module, "compute_states", dies)
    with pytest.raises(KeyboardInterrupt):
        HiddenStateCache(backbone, TREES, 1)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(module, "compute_states", plain)
    HiddenStateCache(backbone, TREES, 1)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    HiddenStateCache(backbone, TREES, 1)
    assert file.read_bytes() == whole


def test_prune_drops_what_was_used_longest_ago(cache):
    cache.mkdir()
    for age, name in enumerate(["new.float32", "mid.float32", "old.float32"]):
        (cache / name).write_bytes(b"x" * 10)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    assert prune(limit=30) == 0
    assert prune(limit=25) == 10
    assert sorted(file.name for file in cache.iterdir()) == ["mid.float32", "new.float32"]
