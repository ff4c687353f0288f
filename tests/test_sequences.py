"""Forms of the prompt and their targets."""

import pytest
from fedecider.sequences import HistoryForm, InstructionForm, TrainingSet

from fedecider.engine.backbone import load
from fedecider.engine.packing import PackedBatch


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


def test_targets_point_at_the_token_before(backbone):
    form = HistoryForm(backbone.tokenizer, backbone.start)
    tokens = [form.title(text) for text in TITLES]
    part = TrainingSet(form.examples(tokens, 2) + form.examples(tokens[:3], 5))
    indices = [2, 0, 3]
    batch = PackedBatch(part.rows[index] for index in indices)
    where, what = part.targets(indices, batch)
    following = {}
    for index, offset in zip(indices, batch.offsets, strict=True):
        for place, token in enumerate(part.examples[index].ids[1:]):
            following[offset + place] = token
    assert [following[place] for place in where.tolist()] == what.tolist()
    assert part.titles == len(TITLES) - 1 + 2
