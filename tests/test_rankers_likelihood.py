"""The likelihood ranker against one full forward per candidate."""

import numpy as np
import plain_ranks
import pytest
import torch
from toy import config, write_domains

from fedecider.adapter import Adapter
from fedecider.client import Client
from fedecider.direction import LowRank
from fedecider.domains import read_domain
from fedecider.engine.backbone import load
from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.metrics import rank_of
from fedecider.mixture import ClientModel
from fedecider.prompts import Catalogue, make_template
from fedecider.rankers import RANKERS, Ranking
from fedecider.rankers.likelihood import (
    candidate_trees,
    choose_weight,
    continuation_scores,
    empty_prompt_trees,
)


@pytest.fixture(scope="module")
def adapter():
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        generator = torch.Generator().manual_seed(0)
        adapter.load(
            {
                name: LowRank(torch.randn(pair.B.shape, generator=generator) * 0.3, pair.A)
                for name, pair in adapter.initial.items()
            }
        )
        yield adapter


@pytest.fixture(scope="module")
def dense(adapter):
    return plain_ranks.dense_model(adapter, ClientModel(adapter.factors()), "client")


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_domains(folder, ["books"])
    return read_domain(folder / "books")


@pytest.fixture(params=["history", "instruction"])
def catalogue(request, adapter, domain):
    backbone = adapter.backbone
    return Catalogue(domain, make_template(request.param, backbone.tokenizer, backbone.start))


def test_tree_scores_equal_one_forward_per_candidate(adapter, dense, catalogue, domain):
    users = sorted(domain.test)[:5]
    template = catalogue.template
    trees = candidate_trees(catalogue, users, "test", 3)
    states = HiddenStateCache(adapter.backbone, trees, adapter.first)
    scores = continuation_scores(adapter, states, template.end)
    for user, tree, computed in zip(users, trees, scores, strict=True):
        items = [domain.test[user], *domain.negatives["test", user]]
        titles = [template.title(domain.items[item]) for item in items]
        history = [*domain.train[user], domain.valid[user]][-3:]
        prompt = template.prompt([template.title(domain.items[i]) for i in history])
        assert tree.prompt == prompt
        expected = plain_ranks.title_scores(dense, prompt, titles, template.end)
        assert np.abs(computed - expected).max() < 1e-10
        assert rank_of(computed, 0) == (expected >= expected[0]).sum()
    picked = continuation_scores(adapter, states, template.end, only=[3, 1])
    for values, index in zip(picked, [3, 1], strict=True):
        assert np.abs(values - scores[index]).max() < 1e-10


def test_validation_prompts_do_not_see_the_future(catalogue, domain):
    user = sorted(domain.test)[0]
    title = catalogue.tokens[domain.test[user]]
    held = catalogue.tokens[domain.valid[user]]

    def contains(ids, part):
        return any(ids[at : at + len(part)] == part for at in range(len(ids)))

    valid = catalogue.prompt(user, "valid", 10)
    test = catalogue.prompt(user, "test", 10)
    assert not contains(valid, held) and not contains(valid, title)
    assert contains(test, held) and not contains(test, title)


def test_empty_prompt_trees_hold_every_item_once(adapter, dense, catalogue, domain):
    items = sorted(domain.items.index)
    trees = empty_prompt_trees(catalogue, items, width=7)
    continuations = [tokens for tree in trees for tokens in tree.continuations]
    assert continuations == [catalogue.tokens[i] for i in items]
    states = HiddenStateCache(adapter.backbone, trees, adapter.first)
    scores = np.concatenate(continuation_scores(adapter, states, catalogue.template.end))
    titles = [catalogue.tokens[item] for item in items[:4]]
    prompt, end = catalogue.template.prompt([]), catalogue.template.end
    expected = plain_ranks.title_scores(dense, prompt, titles, end)
    assert np.abs(scores[:4] - expected).max() < 1e-10


def test_the_weight_of_the_correction_is_chosen_by_ndcg():
    scores = [np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.5])]
    empty = [np.array([-2.0, 1.0, 0.5])] * 2
    assert choose_weight(scores, empty, [0.0, 0.25, 1.0]) == 1.0
    # Where it changes nothing, the smallest is taken, 0 included.
    assert choose_weight(scores, [np.zeros(3)] * 2, [0.5, 0.0, 1.0]) == 0.0


def test_likelihood_uses_validation_for_the_weight_and_test_for_ranks(
    adapter, dense, domain, tmp_path
):
    factors = adapter.factors()
    chosen = config(tmp_path, tmp_path, "local", prompt_weights=[0.0, 0.7])
    client = Client(chosen, adapter, domain)
    ranking = Ranking(client.data, ClientModel(factors), adapter, client.method)
    ranks, choices = RANKERS["likelihood"].rank(ranking)
    weight, _, expected = plain_ranks.likelihood_ranks(client.data, dense, [0.0, 0.7])
    assert choices == {"prompt_weight": weight} and ranks == expected


def test_the_empty_prompt_is_scored_only_where_a_weight_asks_for_it(
    adapter, domain, tmp_path, monkeypatch
):
    from fedecider.rankers import likelihood

    labels, plain = [], likelihood.continuation_scores

    def spy(adapter, states, end, label="", only=None):
        labels.append(label)
        return plain(adapter, states, end, label, only)

    monkeypatch.setattr(likelihood, "continuation_scores", spy)
    for weights, times in (([0.0], 0), ([0.0, 0.5], 1)):
        labels.clear()
        chosen = config(tmp_path, tmp_path, "local", prompt_weights=weights)
        client = Client(chosen, adapter, domain)
        ranking = Ranking(client.data, client.model, adapter, client.method)
        RANKERS["likelihood"].rank(ranking)
        # One model serves validation and test: what it thinks of the empty prompt is kept.
        assert sum("empty" in label for label in labels) == times and len(labels) == 2 + times
