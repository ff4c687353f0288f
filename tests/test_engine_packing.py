"""Packing, and the model on packed rows of prompts and continuations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedecider.engine.backbone import load
from fedecider.engine.packing import PackedBatch, PromptTree, pack


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60), st.booleans())
def test_packing_keeps_every_index_once_within_budget(sizes, budget, shuffle):
    generator = torch.Generator().manual_seed(1) if shuffle else None
    packs = pack(sizes, budget, generator)
    assert sorted(index for indices in packs for index in indices) == list(range(len(sizes)))
    for indices in packs:
        assert len(indices) == 1 or sum(sizes[index] for index in indices) <= budget


def alone(backbone, ids):
    """Hidden states of one sequence by the model's own forward, unpacked."""
    backbone.model.set_attn_implementation("sdpa")
    out = backbone.model.model(torch.tensor(ids)[None]).last_hidden_state[0]
    backbone.model.set_attn_implementation("by_layout")
    return out


@torch.no_grad()
def test_packed_rows_and_trees_equal_separate_forwards(backbone):
    """A prompt once with candidates behind it equals one full forward per candidate."""
    trees = [
        PromptTree([0, 5, 6, 7], [[9], [11, 12, 13], [9, 10]]),
        PromptTree([0, 30, 31, 32, 33, 34, 35]),
        PromptTree([0], [[40, 41], [42]]),
    ]
    batch = PackedBatch(trees)
    packed = backbone.blocks(backbone.embed(batch.ids), batch.positions, batch)
    packed = backbone.normed(packed)[0]
    at = 0
    for tree in trees:
        prompt = len(tree.prompt)
        assert (packed[at : at + prompt] - alone(backbone, tree.prompt)).abs().max() < 1e-12
        at += prompt
        for tokens in tree.continuations:
            expected = alone(backbone, tree.prompt + tokens)[prompt:]
            assert (packed[at : at + len(tokens)] - expected).abs().max() < 1e-12
            at += len(tokens)
    assert at == len(batch.ids) == sum(tree.size for tree in trees)


def test_positions_go_on_behind_the_prompt():
    trees = [PromptTree([3, 4], [[5], [6, 7]]), PromptTree([8])]
    batch = PackedBatch(trees)
    assert batch.ids.tolist() == [3, 4, 5, 6, 7, 8] == trees[0].ids + trees[1].ids
    assert batch.positions.tolist() == [0, 1, 2, 2, 3, 0]
    assert batch.offsets == [0, 5] and batch.trees == trees


def test_states_are_those_that_the_batch_was_packed_with():
    states = torch.arange(6.0).view(3, 2)
    assert PackedBatch([PromptTree([1, 2, 3])], states).states is states
    with pytest.raises(ValueError, match="holds no hidden states"):
        _ = PackedBatch([PromptTree([1])]).states
