"""What is trained, validated and ranked on, and by which model: the foreign directions included."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import config, write_domains

from fedecider import evaluation, ranking
from fedecider.adapter import Adapter
from fedecider.backbone import load
from fedecider.client import ClientData, ClientModel
from fedecider.direction import LowRank, direction
from fedecider.domains import read_domain
from fedecider.evaluation import evaluate
from fedecider.methods import METHODS
from fedecider.mixture import group_index
from fedecider.sequences import make_form

WEIGHTS = [0.0, 0.7]


@pytest.fixture(scope="module")
def adapter():
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), ["books"])
    return read_domain(folder / "books")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Catalogue embeddings are computed here, not found where another run has left them."""
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))


def prepared(domain, adapter, folder, **settings):
    chosen = config(folder, folder, prompt_weights=WEIGHTS, **settings)
    form = make_form(chosen.form, adapter.backbone.tokenizer, adapter.backbone.start)
    return ClientData(domain, adapter, form, chosen)


def some_factors(adapter, seed, rank=2, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(pair.B.shape[0], rank, generator=generator, dtype=torch.float64) * scale,
            torch.randn(rank, pair.A.shape[1], generator=generator, dtype=torch.float64) * scale,
        )
        for name, pair in adapter.initial.items()
    }


def as_directions(factors):
    return {name: direction(update) for name, update in factors.items()}


# Dense reference: plain transformers on edited weights, one full forward a sequence.


def plain_model():
    model = load("tiny", "cpu", "float64").model
    model.set_attn_implementation("sdpa")
    return model


@torch.no_grad()
def dense_model(adapter, model, scope):
    """A model without adapters whose adapted weights are W0 + gamma B A + sum_j alpha_j D_j."""
    dense, groups = plain_model(), group_index(adapter, scope)
    for name in adapter.names:
        weight = dense.get_submodule(name).weight
        weight += adapter.gamma * model.factors[name].B @ model.factors[name].A
        for place, source in enumerate(sorted(model.foreign)):
            pair = model.foreign[source][name]
            weight += model.alpha[groups[name], place] * (pair.B @ pair.A)
    return dense


@torch.no_grad()
def dense_scores(model, prompt, titles, end):
    found = []
    for title in titles:
        ids = torch.tensor([prompt + title + [end]])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        found.append(logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean().item())
    return np.array(found)


@torch.no_grad()
def dense_title(model, prompt, end, config):
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=config.beams,
        do_sample=False,
        min_new_tokens=1,
        max_new_tokens=config.title_tokens + 1,
        eos_token_id=end,
        pad_token_id=end,
    )[0, len(prompt) :].tolist()
    return out[: out.index(end)] if end in out else out


@torch.no_grad()
def dense_embeddings(model, start, titles):
    rows = [
        model.model(torch.tensor([[start, *title]])).last_hidden_state[0, -1] for title in titles
    ]
    return torch.stack(rows)


def dense_likelihood(data, model):
    """Weight chosen on validation, scores and ranks of the test lists."""
    end, empty, ranks, scores = data.form.end, data.form.prompt([]), {}, {}
    for split, users in (("valid", data.valid_users), ("test", data.test_users)):
        scores[split], ranks[split] = [], {weight: [] for weight in WEIGHTS}
        for user in users:
            titles = [data.catalogue.tokens[i] for i in data.catalogue.candidates(user, split)]
            prompt = data.catalogue.prompt(user, split, data.config.history)
            scores[split].append(dense_scores(model, prompt, titles, end))
            prior = dense_scores(model, empty, titles, end)
            for weight in WEIGHTS:
                corrected = scores[split][-1] - weight * prior
                ranks[split][weight].append(int((corrected >= corrected[0]).sum()))
    gain = {
        weight: ranking.per_user(np.array(found), "ndcg@10").mean()
        for weight, found in ranks["valid"].items()
    }
    weight = max(WEIGHTS, key=gain.get)
    return weight, scores["test"], ranks["test"][weight]


def dense_grounding(data, model, start):
    """Generated titles, their embeddings and the catalogue's by the untuned base, and ranks."""
    base, domain = plain_model(), data.domain
    prompts = [data.catalogue.prompt(u, "test", data.config.history) for u in data.test_users]
    titles = [dense_title(model, prompt, data.form.end, data.config) for prompt in prompts]
    embedded = dense_embeddings(base, start, titles)
    catalogue = dense_embeddings(
        base, start, [data.catalogue.tokens[i] for i in domain.items.index]
    )
    ranks = []
    for row, user in zip(embedded, data.test_users, strict=True):
        distances = (catalogue - row).norm(dim=1)
        own = distances[domain.items.index.get_loc(domain.test[user])]
        ranks.append(int((distances <= own).sum()))
    return titles, embedded, catalogue, ranks


def ranked(frame, ranker):
    return frame[frame["ranker"] == ranker].set_index("user_id")["rank"]


@pytest.fixture
def seen(monkeypatch):
    """Arguments and results of the rankers' steps, call by call."""
    calls = {name: [] for name in ("branch_scores", "generate_titles", "grounding_ranks")}

    def spied(name):
        plain = getattr(ranking, name)

        def spy(*args, **kwargs):
            calls[name].append((args, plain(*args, **kwargs)))
            return calls[name][-1][1]

        return spy

    for name in calls:
        monkeypatch.setattr(evaluation.ranking, name, spied(name))
    return calls


def mixed_model(adapter, scope):
    """Own LoRA and directions of two others, of other ranks and with large weights."""
    rows = max(group_index(adapter, scope).values()) + 1
    foreign = {
        "x": as_directions(some_factors(adapter, 2, rank=3)),
        "y": as_directions(some_factors(adapter, 3, rank=1)),
    }
    # Large: the Frobenius norm of a weight of the tiny model is about 10.
    alpha = torch.tensor([[12.0, -9.0], [-7.0, 15.0]], dtype=torch.float64)[:rows]
    return ClientModel(some_factors(adapter, 1), foreign, alpha)


@pytest.mark.parametrize("scope", ["client", "module"])
def test_ranking_is_that_of_the_dense_sum(scope, adapter, domain, tmp_path, seen):
    """Own LoRA and foreign directions rank as W0 + gamma B A + sum_j alpha_j D_j does."""
    data = prepared(domain, adapter, tmp_path, alpha_scope=scope)
    model = mixed_model(adapter, scope)
    adapter.load(some_factors(adapter, 9))  # what another client has left in the adapter

    frame, chosen = evaluate(data, model, adapter, METHODS["fedecider"](data.config))
    dense = dense_model(adapter, model, scope)
    weight, scores, expected = dense_likelihood(data, dense)
    assert chosen["prompt_weight"] == weight
    found = seen["branch_scores"][-1][1]  # the last lists scored are those of test
    for one, other in zip(found, scores, strict=True):
        assert np.abs(one - other).max() < 1e-9
    assert ranked(frame, "likelihood").loc[data.test_users].tolist() == expected

    titles, embedded, catalogue, expected = dense_grounding(data, dense, adapter.backbone.start)
    assert seen["generate_titles"][0][1] == titles
    (generated, items, *_), _ = seen["grounding_ranks"][0]
    # By the untuned base, both: neither the own LoRA nor the directions are in the embeddings.
    assert (generated - embedded).abs().max() < 1e-5
    assert (items - catalogue).abs().max() < 1e-5
    assert ranked(frame, "grounding").loc[data.test_users].tolist() == expected

    plain, _ = evaluate(
        data, ClientModel(model.factors), adapter, METHODS["fedecider"](data.config)
    )
    for ranker in ("likelihood", "grounding"):
        assert (ranked(frame, ranker) != ranked(plain, ranker)).any()
    assert all(
        np.abs(one - other).max() > 1e-2
        for one, other in zip(seen["branch_scores"][-1][1], scores, strict=True)
    )


def test_trie_ranking_is_that_of_the_dense_sum(adapter, domain, tmp_path):
    """With a beam an item, the ranks are those of log p(title) over the whole catalogue."""
    items = domain.items.index
    data = prepared(domain, adapter, tmp_path, rankers=["trie"], beams=len(items))
    model = mixed_model(adapter, "module")
    frame, _ = evaluate(data, model, adapter, METHODS["fedecider"](data.config))
    dense, expected = dense_model(adapter, model, "module"), []
    titles = [data.catalogue.tokens[item] for item in items]
    lengths = np.array([len(title) + 1 for title in titles])
    for user in data.test_users:
        prompt = data.catalogue.prompt(user, "test", data.config.history)
        scores = dense_scores(dense, prompt, titles, data.form.end) * lengths
        expected.append(int((scores >= scores[items.get_loc(domain.test[user])]).sum()))
    assert ranked(frame, "trie").loc[data.test_users].tolist() == expected
    plain, _ = evaluate(
        data, ClientModel(model.factors), adapter, METHODS["fedecider"](data.config)
    )
    assert (ranked(frame, "trie") != ranked(plain, "trie")).any()


@pytest.mark.parametrize("form", ["history", "instruction"])
def test_no_client_trains_on_what_is_held_out(form, adapter, domain, tmp_path):
    """Validation and test titles are neither targets nor inputs of their user's training."""
    data = prepared(domain, adapter, tmp_path, form=form, history=3)
    tokens, end, examples = data.catalogue.tokens, data.form.end, []
    for user in domain.users["train"]:
        # One user at a time: what one user holds out, another may train on.
        alone = replace(domain, users={**domain.users, "train": [user]})
        some = prepared(alone, adapter, tmp_path, form=form, history=3).training.examples
        inside = {item for item in tokens if any(holds(e.ids, tokens[item] + [end]) for e in some)}
        assert inside == set(domain.train[user])
        assert not inside & {domain.valid[user], domain.test[user]}
        targets = [title for example in some for title in titles_of(example, end)]
        assert sorted(targets) == sorted(tokens[item] for item in domain.train[user][1:])
        examples += some
    assert data.training.examples == examples


@pytest.mark.parametrize("form", ["history", "instruction"])
def test_validation_targets_are_the_validation_items(form, adapter, domain, tmp_path):
    data = prepared(domain, adapter, tmp_path, form=form, history=3)
    tokens, end = data.catalogue.tokens, data.form.end
    assert data.valid_users == domain.users["valid"]
    for user, example in zip(data.valid_users, data.validation.examples, strict=True):
        assert titles_of(example, end) == [tokens[domain.valid[user]]]
        assert example.targets[-1] == len(example.ids) - 1
        given = example.ids[: example.targets[0]]
        inside = {item for item in tokens if holds(given, tokens[item] + [end])}
        assert inside == set(domain.train[user][-3:])


def holds(ids, part):
    return any(ids[at : at + len(part)] == part for at in range(len(ids)))


def titles_of(example, end):
    """The target tokens, split at the ends of titles."""
    found = [[]]
    for target in example.targets:
        if example.ids[target] == end:
            found.append([])
        else:
            found[-1].append(example.ids[target])
    assert found.pop() == []  # every target title has its end
    return found
