"""Keys and values that are kept give the states of whole forwards."""

import pytest
import torch

from fedecider.engine import kv_cache as module
from fedecider.engine.backbone import load
from fedecider.engine.hidden_states import compute_states
from fedecider.engine.kv_cache import KVCache, PromptCache
from fedecider.engine.packing import PromptTree

PROMPTS = [[0, 5, 6, 7, 8], [0, 20], [0, 30, 31]]


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path))
    return tmp_path / "states"


def whole(backbone, ids):
    """Normed states of one sequence, all blocks at once."""
    return backbone.normed(compute_states(backbone, [PromptTree(ids)], len(backbone.layers)))


def feed(backbone, cache: KVCache, positions: list[int], paths: list[list[list[int]]]):
    """Feed every user's paths behind the prompts, each seeing the prompt and itself; the states.

    `positions` are the first positions behind the users' prompts. One path of a user is as long as
    the other users' may be short: the rest of its slots is padding.
    """
    fed = [[token for path in own for token in path] for own in paths]
    width, before = max(map(len, fed)), cache.slots
    rows = torch.zeros(len(paths), width, dtype=torch.long)
    seen = torch.zeros(len(paths), width, before + width, dtype=torch.bool)
    seen[:, :, : cache.real.shape[1]] = cache.real[:, None]
    ids, at, of_row = [], [], []
    for user, own in enumerate(paths):
        start = 0
        for path in own:
            stop = start + len(path)
            causal = torch.ones(len(path), len(path), dtype=torch.bool).tril()
            seen[user, start:stop, before + start : before + stop] = causal
            at += range(positions[user], positions[user] + len(path))
            start = stop
        rows[user, :start] = torch.arange(len(ids), len(ids) + start)
        of_row += [user * width + slot for slot in range(start)]
        ids += fed[user]
    cache.step(rows, torch.tensor(of_row), ~seen)
    hidden = backbone.blocks(backbone.embed(torch.tensor(ids)), torch.tensor(at), cache)
    return backbone.normed(hidden[0])


@pytest.mark.parametrize("first", [0, 1, 2])
@torch.no_grad()
def test_prompts_and_paths_have_the_states_of_whole_forwards(first, backbone):
    cache, last = PromptCache(backbone, PROMPTS, first).batch([2, 0, 1])
    order = [PROMPTS[index] for index in (2, 0, 1)]
    for state, prompt in zip(last, order, strict=True):
        torch.testing.assert_close(state, whole(backbone, prompt)[-1], rtol=0, atol=1e-12)
    long = list(range(40, 110))  # longer than what a cache has room for at first
    paths = [[[9, 10], [11]], [long], [[12], [13], [14, 15]]]
    states = feed(backbone, cache, [len(prompt) for prompt in order], paths)
    expected = [
        whole(backbone, prompt + path)[len(prompt) :]
        for prompt, own in zip(order, paths, strict=True)
        for path in own
    ]
    torch.testing.assert_close(states, torch.cat(expected), rtol=0, atol=1e-12)


@torch.no_grad()
def test_users_can_be_left_out_between_steps(backbone):
    cache, _ = PromptCache(backbone, PROMPTS, 1).batch([0, 1, 2])
    feed(backbone, cache, [5, 2, 3], [[[9]], [[10, 11]], [[12]]])
    cache.keep([2, 0])
    states = feed(backbone, cache, [3, 5], [[[17, 18]], [[19]]])
    expected = [
        whole(backbone, PROMPTS[2] + [17, 18])[3:],
        whole(backbone, PROMPTS[0] + [19])[5:],
    ]
    assert cache.users == 2
    torch.testing.assert_close(states, torch.cat(expected), rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_is_stored_is_computed_once(backbone, folder, monkeypatch):
    monkeypatch.setattr(module, "FORWARD_TOKENS", 5)  # several forwards
    first, states = PromptCache(backbone, PROMPTS, 1).batch([0, 1, 2])
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(module, "pack", None)  # a second time nothing may be computed
    again, same = PromptCache(backbone, PROMPTS, 1).batch([0, 1, 2])
    assert torch.equal(states, same)
    for kept, read in zip(first.store, again.store, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(kept, read, strict=True))
    PromptCache(backbone, PROMPTS, 0)  # below the first block there is nothing to keep
    assert len(list(folder.iterdir())) == 1
