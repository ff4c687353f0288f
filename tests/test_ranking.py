"""Rankers against plain computation: one full forward a candidate, explicit distances."""

import numpy as np
import pytest
import torch
from toy import config, write_domains

from fedecider import ranking
from fedecider.adapter import Adapter
from fedecider.backbone import load
from fedecider.client import ClientData, ClientModel
from fedecider.direction import LowRank
from fedecider.domains import read_domain
from fedecider.evaluation import likelihood_ranks
from fedecider.methods import METHODS
from fedecider.sequences import make_form
from fedecider.trunk import Trunk


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
def domain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_domains(folder, ["books"])
    return read_domain(folder / "books")


@pytest.fixture(params=["history", "instruction"])
def catalogue(request, adapter, domain):
    backbone = adapter.backbone
    return ranking.Catalogue(domain, make_form(request.param, backbone.tokenizer, backbone.start))


@torch.no_grad()
def one_by_one(adapter, prompt, titles, end):
    """Mean log p of each title and its end, a full forward of the model each."""
    model, found = adapter.backbone.model, []
    for title in titles:
        ids = torch.tensor([prompt + title + [end]])
        model.set_attn_implementation("sdpa")
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        model.set_attn_implementation("by_layout")
        picked = logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        found.append(picked.mean().item())
    return np.array(found)


def test_tree_scores_equal_one_forward_a_candidate(adapter, catalogue, domain):
    users = sorted(domain.test)[:5]
    trees = ranking.candidate_trees(catalogue, users, "test", 3)
    trunk = Trunk(adapter.backbone, trees, adapter.first)
    scores = ranking.branch_scores(adapter, trunk, catalogue.form.end)
    for user, tree, found in zip(users, trees, scores, strict=True):
        items = [domain.test[user], *domain.negatives["test", user]]
        titles = [catalogue.form.title(domain.items[item]) for item in items]
        seen = [*domain.train[user], domain.valid[user]][-3:]
        prompt = catalogue.form.prompt([catalogue.form.title(domain.items[i]) for i in seen])
        assert tree.prompt == prompt
        expected = one_by_one(adapter, prompt, titles, catalogue.form.end)
        assert np.abs(found - expected).max() < 1e-10
        assert ranking.rank_of(found, 0) == (expected >= expected[0]).sum()


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


def test_empty_prompt_trees_hold_every_item_once(adapter, catalogue, domain):
    items = sorted(domain.items.index)
    trees = ranking.empty_prompt_trees(catalogue, items, width=7)
    assert [b for tree in trees for b in tree.branches] == [catalogue.tokens[i] for i in items]
    trunk = Trunk(adapter.backbone, trees, adapter.first)
    scores = np.concatenate(ranking.branch_scores(adapter, trunk, catalogue.form.end))
    titles = [catalogue.tokens[item] for item in items[:4]]
    prompt = catalogue.form.prompt([])
    expected = one_by_one(adapter, prompt, titles, catalogue.form.end)
    assert np.abs(scores[:4] - expected).max() < 1e-10


def test_the_weight_of_the_correction_is_chosen_by_ndcg():
    scores = [np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.5])]
    empty = [np.array([-2.0, 1.0, 0.5])] * 2
    assert ranking.choose_weight(scores, empty, [0.0, 0.25, 1.0]) == 1.0
    # Where it changes nothing, the smallest is taken, 0 included.
    assert ranking.choose_weight(scores, [np.zeros(3)] * 2, [0.5, 0.0, 1.0]) == 0.0


def test_likelihood_uses_validation_for_the_weight_and_test_for_ranks(adapter, domain, tmp_path):
    chosen = config(tmp_path, tmp_path, "local", prompt_weights=[0.0, 0.7])
    form = make_form("history", adapter.backbone.tokenizer, adapter.backbone.start)
    data = ClientData(domain, adapter, form, chosen)
    model = ClientModel(adapter.factors())
    weight, ranks = likelihood_ranks(data, model, adapter, METHODS["local"](chosen))
    prompt = form.prompt([])
    for split, users in (("valid", data.valid_users), ("test", data.test_users)):
        quality = {}
        for w in (0.0, 0.7):
            found = []
            for user in users:
                items = data.catalogue.candidates(user, split)
                titles = [data.catalogue.tokens[item] for item in items]
                given = data.catalogue.prompt(user, split, chosen.history)
                scores = one_by_one(adapter, given, titles, form.end)
                scores = scores - w * one_by_one(adapter, prompt, titles, form.end)
                found.append(ranking.rank_of(scores, 0))
            quality[w] = found
        if split == "valid":
            gain = {w: ranking.per_user(np.array(r), "ndcg@10").mean() for w, r in quality.items()}
            assert weight == max(sorted(gain), key=gain.get)
        else:
            assert ranks == quality[weight]


def test_generated_titles_are_those_of_plain_beam_search(adapter, catalogue):
    """The shared prompt cache changes nothing; prompts of unlike lengths share a batch."""
    backbone = adapter.backbone
    users = sorted(catalogue.domain.test)[:5]
    prompts = [catalogue.prompt(user, "test", 1 + n) for n, user in enumerate(users)]
    prompts.append([backbone.start])
    found = ranking.generate_titles(adapter, prompts, catalogue.form.end, 3, 5, batch=4)
    for prompt, title in zip(prompts, found, strict=True):
        out = backbone.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=3,
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=6,
            eos_token_id=catalogue.form.end,
            pad_token_id=catalogue.form.end,
            use_cache=True,
        )[0, len(prompt) :].tolist()
        end = out.index(catalogue.form.end) if catalogue.form.end in out else len(out)
        assert title == out[:end] and 1 <= len(title) <= 6


@torch.no_grad()
def test_title_embeddings_are_the_untuned_bases_last_token(adapter):
    titles = [[30, 31, 32], [40], [50, 51]]
    plain = load("tiny", "cpu", "float64")
    plain.model.set_attn_implementation("sdpa")
    for cached in (False, True):
        found = ranking.embed_titles(adapter, titles, cached)
        for row, title in zip(found, titles, strict=True):
            ids = torch.tensor([[plain.start, *title]])
            expected = plain.model.model(ids).last_hidden_state[0, -1].float()
            assert (row - expected).abs().max() < 1e-5


def test_grounding_ranks_by_distance_with_ties_against():
    catalogue = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    generated = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.9, 0.0]])
    assert ranking.grounding_ranks(generated, catalogue, [0, 1, 3]) == [1, 3, 4]


def test_popularity_counts_training_interactions_alone(domain):
    users = sorted(domain.test)
    counts = {item: 0 for item in domain.items.index}
    for items in domain.train.values():
        for item in items:
            counts[item] += 1
    found = ranking.popularity_ranks(domain, users, "catalogue")
    listed = ranking.popularity_ranks(domain, users, "sampled")
    for user, whole, some in zip(users, found, listed, strict=True):
        own = counts[domain.test[user]]
        assert whole == sum(count >= own for count in counts.values())
        negatives = domain.negatives["test", user]
        assert some == 1 + sum(counts[item] >= own for item in negatives)
