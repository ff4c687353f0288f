"""Rankers' numbers by plain transformers: edited weights, one full forward per sequence."""

import numpy as np
import torch

from fedecider.direction import LowRank, direction
from fedecider.engine.backbone import load
from fedecider.metrics import per_user
from fedecider.mixture import ClientModel, group_index


def random_factors(adapter, seed, rank=2, scale=0.1):
    """Factors of every adapted module, float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(pair.B.shape[0], rank, generator=generator, dtype=torch.float64) * scale,
            torch.randn(rank, pair.A.shape[1], generator=generator, dtype=torch.float64) * scale,
        )
        for name, pair in adapter.initial.items()
    }


def mixed_model(adapter, scope):
    """Own LoRA and directions of two others, of other ranks and with large weights."""
    rows = max(group_index(adapter, scope).values()) + 1
    peers = {
        source: {n: direction(pair) for n, pair in random_factors(adapter, seed, rank).items()}
        for source, seed, rank in (("x", 2, 3), ("y", 3, 1))
    }
    # Large: the Frobenius norm of a weight of the tiny model is about 10.
    alpha = torch.tensor([[12.0, -9.0], [-7.0, 15.0]], dtype=torch.float64)[:rows]
    return ClientModel(random_factors(adapter, 1), peers, alpha)


def plain_model():
    """The tiny model without adapters, by the library's own attention."""
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
        for place, source in enumerate(sorted(model.peer_directions)):
            pair = model.peer_directions[source][name]
            weight += model.alpha[groups[name], place] * (pair.B @ pair.A)
    return dense


@torch.no_grad()
def title_scores(model, prompt, titles, end):
    """Mean log p of each title and its end behind the prompt."""
    scores = []
    for title in titles:
        ids = torch.tensor([prompt + title + [end]])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        scores.append(logits.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean().item())
    return np.array(scores)


def likelihood_ranks(data, model, weights):
    """Weight chosen on validation, scores and ranks of the test lists."""
    end, empty = data.template.end, data.template.prompt([])
    scores, ranks = {}, {}
    for split, users in (("valid", data.valid_users), ("test", data.test_users)):
        scores[split], ranks[split] = [], {weight: [] for weight in weights}
        for user in users:
            titles = [data.catalogue.tokens[i] for i in data.catalogue.candidates(user, split)]
            prompt = data.catalogue.prompt(user, split, data.config.data.history)
            scores[split].append(title_scores(model, prompt, titles, end))
            prior = title_scores(model, empty, titles, end)
            for weight in weights:
                corrected = scores[split][-1] - weight * prior
                ranks[split][weight].append(int((corrected >= corrected[0]).sum()))
    gain = {
        weight: per_user(np.array(values), "ndcg@10").mean()
        for weight, values in ranks["valid"].items()
    }
    weight = max(sorted(weights), key=gain.get)
    return weight, scores["test"], ranks["test"][weight]


@torch.no_grad()
def best_title(model, prompt, end, beams, title_tokens):
    """The best beam of the library's beam search, without its end."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        do_sample=False,
        min_new_tokens=1,
        max_new_tokens=title_tokens + 1,
        eos_token_id=end,
        pad_token_id=end,
    )[0, len(prompt) :].tolist()
    return out[: out.index(end)] if end in out else out


@torch.no_grad()
def embeddings(model, start, titles):
    """Last token, last layer, of each title alone."""
    rows = [
        model.model(torch.tensor([[start, *title]])).last_hidden_state[0, -1] for title in titles
    ]
    return torch.stack(rows)


def grounding_ranks(data, model, start):
    """Generated titles, their embeddings and the catalogue's by the untuned base, and ranks."""
    base, domain, config = plain_model(), data.domain, data.config.ranking
    history = data.config.data.history
    prompts = [data.catalogue.prompt(user, "test", history) for user in data.test_users]
    end, sizes = data.template.end, (config.beams, config.title_tokens)
    titles = [best_title(model, prompt, end, *sizes) for prompt in prompts]
    embedded = embeddings(base, start, titles)
    catalogue = embeddings(base, start, [data.catalogue.tokens[i] for i in domain.items.index])
    ranks = []
    for row, user in zip(embedded, data.test_users, strict=True):
        distances = (catalogue - row).norm(dim=1)
        own = distances[domain.items.index.get_loc(domain.test[user])]
        ranks.append(int((distances <= own).sum()))
    return titles, embedded, catalogue, ranks


def catalogue_ranks(data, model):
    """Ranks over the whole catalogue by log p of title and end."""
    items, ranks = data.domain.items.index, []
    titles = [data.catalogue.tokens[item] for item in items]
    lengths = np.array([len(title) + 1 for title in titles])
    for user in data.test_users:
        prompt = data.catalogue.prompt(user, "test", data.config.data.history)
        scores = title_scores(model, prompt, titles, data.template.end) * lengths
        ranks.append(int((scores >= scores[items.get_loc(data.domain.test[user])]).sum()))
    return ranks
