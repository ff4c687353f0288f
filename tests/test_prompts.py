"""Templates of the prompt and their targets."""

import pytest

from fedecider.engine.backbone import load
from fedecider.engine.packing import PackedBatch
from fedecider.prompts import (
    TEMPLATES,
    ExampleSet,
    HistoryTemplate,
    InstructionTemplate,
    make_template,
)


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture(params=[HistoryTemplate, InstructionTemplate])
def template(request, backbone):
    return request.param(backbone.tokenizer, backbone.start)


TITLES = ["The Dragon", "Moon; and Sea", 'A "Garden"', "Space", "Silver Knights", "Gray"]


@pytest.mark.parametrize("history", [1, 2, 3, 10])
def test_every_title_after_the_first_is_a_target_once(template, history):
    tokens = [template.title(text) for text in TITLES]
    found = []
    for example in template.examples(tokens, history):
        text = [example.ids[target] for target in example.targets]
        ends = [place for place, token in enumerate(text) if token == template.end]
        assert len(ends) == example.num_targets
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
    template = HistoryTemplate(backbone.tokenizer, backbone.start)
    tokens = [template.title(f"t{number}") for number in range(9)]
    for history in (2, 3, 10):
        for example in template.examples(tokens, history):
            assert example.ids.count(template.end) <= history + 1
    assert template.examples(tokens[:1], 5) == []


def test_prompts_agree_with_the_training_template(template):
    """What is scored in ranking is what was trained: the prompt is a prefix of the example."""
    tokens = [template.title(text) for text in TITLES]
    example = template.examples(tokens, 10)[0]
    prompt = template.prompt(tokens[:-1])
    assert example.ids == prompt + tokens[-1] + [template.end]


def test_a_title_has_the_same_tokens_everywhere(template):
    assert template.end not in template.title("One; two") + template.title('One "two"')


def test_empty_prompt_of_the_history_template_is_the_start(backbone):
    assert HistoryTemplate(backbone.tokenizer, backbone.start).prompt([]) == [backbone.start]


def test_targets_point_at_the_token_before(backbone):
    template = HistoryTemplate(backbone.tokenizer, backbone.start)
    tokens = [template.title(text) for text in TITLES]
    part = ExampleSet(template.examples(tokens, 2) + template.examples(tokens[:3], 5))
    indices = [2, 0, 3]
    batch = PackedBatch(part.trees[index] for index in indices)
    where, what = part.targets(indices, batch)
    following = {}
    for index, offset in zip(indices, batch.offsets, strict=True):
        for place, token in enumerate(part.examples[index].ids[1:]):
            following[offset + place] = token
    assert [following[place] for place in where.tolist()] == what.tolist()
    assert part.num_targets == len(TITLES) - 1 + 2


def test_a_template_needs_one_token_for_the_end_of_a_title(backbone):
    class Splitting:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1, 2]}

    for name in TEMPLATES:
        assert make_template(name, backbone.tokenizer, 0).end >= 0
        with pytest.raises(ValueError, match=f"end of a title in the {name} template"):
            make_template(name, Splitting(), 0)
