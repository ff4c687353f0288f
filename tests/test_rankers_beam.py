"""Beam search over a catalogue against a plain one: titles scored one by one, beams by hand."""

import numpy as np
import pytest
import torch

from fedecider.adapter import Adapter
from fedecider.engine.backbone import load
from fedecider.engine.kv_cache import PromptCache
from fedecider.mixture import Mixture
from fedecider.rankers import beam

END = 7
TITLES = [
    [11, 12],
    [11, 12, 13],
    [11, 14, 15, 16, 17],
    [20],
    [20, 21, 22],
    [20, 21, 23],
    [30, 31, 32, 33],
    [20, 21, 22],  # the same tokens as title 4
    [40, 11, 12],
]
PROMPTS = [[0, 50, 51, 52, END], [0], [0, 60, 61, 62, 63, 64, 65, END], [0, 70]]


@pytest.fixture(scope="module")
def adapted():
    backbone = load("tiny", "cpu", "float64")
    with Adapter(backbone, 2, 4, ["q_proj", "v_proj"], 1, 0) as adapter:
        for parameter in adapter.parameters():
            parameter.data += 0.3
        yield adapter


def log_p(backbone, prompt, title):
    """Sum of log p of title and end behind the prompt, by the model's own forward."""
    ids = torch.tensor([[*prompt, *title, END]])
    backbone.model.set_attn_implementation("sdpa")
    logs = backbone.model(ids).logits[0].log_softmax(-1)
    backbone.model.set_attn_implementation("by_layout")
    at = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(logs[place, ids[0, place + 1]].item() for place in at)


def leaves(node, before=()):
    for edge in node.edges:
        tokens = (*before, *edge.tokens)
        if edge.node.edges:
            yield from leaves(edge.node, tokens)
        else:
            yield tokens, edge.node.items


@pytest.mark.parametrize("longest", [1, 2, 3, 99])
def test_the_tree_holds_every_title_once(longest):
    root = beam.build(TITLES, END, longest)
    found = dict(leaves(root))
    assert len(found) == 8 and found[20, 21, 22, END] == [4, 7]
    assert {tokens: items for tokens, items in found.items() if len(items) == 1} == {
        (*title, END): [item] for item, title in enumerate(TITLES) if item not in (4, 7)
    }
    nodes = [root]
    while nodes:
        node = nodes.pop()
        assert bool(node.edges) != bool(node.items)
        assert all(1 <= len(edge.tokens) <= longest for edge in node.edges)
        # A chain without a choice is cut only where it is longer than that.
        for edge in node.edges:
            assert len(edge.node.edges) != 1 or len(edge.tokens) == longest
        nodes += [edge.node for edge in node.edges]


def test_unfit_catalogues_are_refused():
    with pytest.raises(ValueError, match="without titles"):
        beam.build([], END)
    with pytest.raises(ValueError, match="must not hold the token that ends titles, 7"):
        beam.build([[1, END]], END)


@pytest.mark.parametrize("layers", ["top", "all"])
@torch.no_grad()
def test_with_enough_beams_every_title_is_found_with_its_probability(adapted, layers):
    backbone = adapted.backbone
    first = adapted.first if layers == "top" else 0
    prompts = PromptCache(backbone, PROMPTS, first)
    found = beam.search(adapted, beam.build(TITLES, END), prompts, 8)
    for prompt, titles in zip(PROMPTS, found, strict=True):
        assert sorted(item for _, items in titles for item in items) == list(range(9))
        scores = [score for score, _ in titles]
        assert scores == sorted(scores, reverse=True)
        for score, items in titles:
            assert score == pytest.approx(log_p(backbone, prompt, TITLES[items[0]]), abs=1e-9)


@torch.no_grad()
def test_a_narrow_beam_finds_what_a_plain_beam_finds(adapted):
    root = beam.build(TITLES, END)
    prompts = PromptCache(adapted.backbone, PROMPTS, adapted.first)
    for beams in (1, 2, 3):
        found = beam.search(adapted, root, prompts, beams)
        for prompt, titles in zip(PROMPTS, found, strict=True):
            wanted = plain_beam(adapted.backbone, root, prompt, beams)
            assert [items for _, items in titles] == [items for _, items in wanted]
            assert np.allclose([s for s, _ in titles], [s for s, _ in wanted], atol=1e-9)


def plain_beam(backbone, root, prompt, beams):
    """The same search for one user, with a whole forward a token and nothing kept."""

    def next_logs(path):
        ids = torch.tensor([[*prompt, *path]])
        backbone.model.set_attn_implementation("sdpa")
        logs = backbone.model(ids).logits[0, -1].log_softmax(-1)
        backbone.model.set_attn_implementation("by_layout")
        return logs

    running, done = [(0.0, (), root)], []
    while running:
        edges = []
        for score, path, node in running:
            logs = next_logs(path)
            for edge in node.edges:
                begun = score + logs[edge.tokens[0]].item()
                if edge.tokens == (END,):
                    done.append((begun, edge.node.items))
                else:
                    edges.append((begun, path, edge))
        done = sorted(done, key=lambda one: -one[0])[:beams]
        bound = done[-1][0] if len(done) == beams else -np.inf
        running = []
        for begun, path, edge in sorted(edges, key=lambda one: -one[0])[:beams]:
            if begun <= bound:
                continue
            score = begun
            for place in range(1, len(edge.tokens)):
                logs = next_logs((*path, *edge.tokens[:place]))
                score += logs[edge.tokens[place]].item()
            if edge.node.edges:
                running.append((score, (*path, *edge.tokens), edge.node))
            else:
                done.append((score, edge.node.items))
        done = sorted(done, key=lambda one: -one[0])[:beams]
    return done


@torch.no_grad()
def test_peers_directions_take_part(adapted):
    prompts = PromptCache(adapted.backbone, PROMPTS, adapted.first)
    root = beam.build(TITLES, END)
    alone = beam.search(adapted, root, prompts, 8)
    with Mixture(adapted, {"a": adapted.factors()}, torch.full((1, 1), 5.0)):
        mixed = beam.search(adapted, root, prompts, 8)
    assert alone != mixed


def test_what_was_not_found_is_tied_at_the_end():
    found = [[(-1.0, [2]), (-2.0, [0, 3])], [(-1.0, [2])]]
    assert beam.ranks(found, [2, 0], 6) == [1, 6]
    assert beam.ranks(found[:1], [3], 6) == [3]
    assert beam.ranks(found[1:], [0], 6) == [6]
