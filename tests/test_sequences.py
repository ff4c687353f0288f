"""Targets, packing and the attention of packed rows and trees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fedecider.backbone import load
from fedecider.likelihood import log_probs, nll
from fedecider.sequences import Forest, HistoryForm, InstructionForm, TrainingSet, Tree, pack


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture(params=[HistoryForm, InstructionForm])
def form(request, backbone):
    return request.param(backbone.tokenizer, backbone.start)


TITLES = ["The Dragon", "Moon; and Sea", 'A "Garden"', "Space", "Silver Knights", "Gray"]


@pytest.mark.parametrize("history", [1, 2, 3, 10])
def test_every_title_after_the_first_is_a_target_once(form, history):
    tokens = [form.title(text) for text in TITLES]
    found = []
    for example in form.examples(tokens, history):
        text = [example.ids[target] for target in example.targets]
        ends = [place for place, token in enumerate(text) if token == form.end]
        assert len(ends) == example.titles
        pieces, start = [], 0
        for end in ends:
            pieces.append(text[start:end])
            start = end + 1
        assert start == len(text)
        found += reversed(pieces)
        assert len(example.ids) > max(example.targets) and min(example.targets) > 0
    # Latest first: what a cap on windows keeps is the most recent.
    assert found == tokens[:0:-1]


def test_a_target_is_given_at_most_history_titles(backbone):
    form = HistoryForm(backbone.tokenizer, backbone.start)
    tokens = [form.title(f"t{number}") for number in range(9)]
    for history in (2, 3, 10):
        for example in form.examples(tokens, history):
            assert example.ids.count(form.end) <= history + 1
    assert form.examples(tokens[:1], 5) == []


def test_prompts_agree_with_the_training_form(form):
    """What is scored in ranking is what was trained: the prompt is a prefix of the example."""
    tokens = [form.title(text) for text in TITLES]
    example = form.examples(tokens, 10)[0]
    prompt = form.prompt(tokens[:-1])
    assert example.ids == prompt + tokens[-1] + [form.end]


def test_a_title_has_the_same_tokens_everywhere(form):
    assert form.end not in form.title("One; two") + form.title('One "two"')


def test_empty_prompt_of_the_history_form_is_the_start(backbone):
    assert HistoryForm(backbone.tokenizer, backbone.start).prompt([]) == [backbone.start]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60), st.booleans())
def test_packing_keeps_every_index_once_within_budget(sizes, budget, shuffle):
    generator = torch.Generator().manual_seed(1) if shuffle else None
    packs = pack(sizes, budget, generator)
    assert sorted(index for some in packs for index in some) == list(range(len(sizes)))
    assert all(len(some) == 1 or sum(sizes[i] for i in some) <= budget for some in packs)


def alone(backbone, ids):
    """Hidden states of one sequence by the model's own forward, unpacked."""
    backbone.model.set_attn_implementation("sdpa")
    out = backbone.model.model(torch.tensor(ids)[None]).last_hidden_state[0]
    backbone.model.set_attn_implementation("by_layout")
    return out


@torch.no_grad()
def test_packed_rows_and_trees_equal_separate_forwards(backbone):
    """A prompt once with candidates behind it equals one full forward a candidate."""
    trees = [
        Tree([0, 5, 6, 7], [[9], [11, 12, 13], [9, 10]]),
        Tree([0, 30, 31, 32, 33, 34, 35]),
        Tree([0], [[40, 41], [42]]),
    ]
    forest = Forest(trees)
    packed = backbone.blocks(backbone.embed(forest.ids), forest.positions, forest)
    packed = backbone.normed(packed)[0]
    at = 0
    for tree in trees:
        prompt = len(tree.prompt)
        assert (packed[at : at + prompt] - alone(backbone, tree.prompt)).abs().max() < 1e-12
        at += prompt
        for branch in tree.branches:
            expected = alone(backbone, tree.prompt + branch)[prompt:]
            assert (packed[at : at + len(branch)] - expected).abs().max() < 1e-12
            at += len(branch)
    assert at == len(forest.ids) == sum(tree.size for tree in trees)


def test_targets_point_at_the_token_before(backbone):
    form = HistoryForm(backbone.tokenizer, backbone.start)
    tokens = [form.title(text) for text in TITLES]
    part = TrainingSet(form.examples(tokens, 2) + form.examples(tokens[:3], 5))
    indices = [2, 0, 3]
    forest = Forest(part.rows[index] for index in indices)
    where, what = part.targets(indices, forest)
    following = {}
    for index, offset in zip(indices, forest.offsets, strict=True):
        for place, token in enumerate(part.examples[index].ids[1:]):
            following[offset + place] = token
    assert [following[place] for place in where.tolist()] == what.tolist()
    assert part.titles == len(TITLES) - 1 + 2


def test_nll_and_its_gradient_equal_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(90, 16, generator=generator, dtype=torch.float64)
    token = torch.randint(90, (700,), generator=generator)
    weight = torch.rand(700, generator=generator, dtype=torch.float64)
    (nll(hidden, head, token) * weight).sum().backward()
    ours, hidden.grad = hidden.grad, None
    plain = torch.nn.functional.cross_entropy(hidden @ head.T, token, reduction="none")
    (plain * weight).sum().backward()
    assert (nll(hidden, head, token) - plain).abs().max() < 1e-12
    assert (ours - hidden.grad).abs().max() < 1e-12


def test_log_probs_share_rows():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    head = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    source = torch.tensor([0, 0, 0, 3, 1])
    token = torch.tensor([5, 6, 7, 5, 19])
    expected = (hidden @ head.T).log_softmax(-1)[source, token]
    assert (log_probs(hidden, head, source, token) - expected).abs().max() < 1e-12


def test_an_unfrozen_head_is_refused():
    with pytest.raises(RuntimeError, match="frozen"):
        nll(torch.zeros(1, 2), torch.zeros(3, 2, requires_grad=True), torch.zeros(1).long())


@pytest.mark.parametrize("vocabulary", [2048, 5003])
def test_normaliser_and_gradient_over_several_blocks_of_columns(vocabulary):
    """The running maximum moves from block to block; rows are split, too."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64)
    head *= torch.linspace(1, 9, vocabulary)[:, None]  # later blocks hold larger logits
    hidden = torch.randn(700, 6, generator=generator, dtype=torch.float64).requires_grad_()
    token = torch.randint(vocabulary, (700,), generator=generator)
    found, wanted = (
        nll(hidden, head, token),
        cross_entropy(hidden @ head.T, token, reduction="none"),
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn(700, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad(found, hidden, weight)
    (plain,) = torch.autograd.grad(wanted, hidden, weight)
    torch.testing.assert_close(grad, plain, rtol=1e-10, atol=1e-10)
    flipped = nll(hidden, head.flip(0), vocabulary - 1 - token)  # earlier blocks hold the larger
    torch.testing.assert_close(flipped, wanted, rtol=1e-12, atol=1e-12)
