"""Ranks of a client's chosen model on its test users; the test split is read here, and once."""

import numpy as np
import pandas as pd

from fedecider import ranking, trie
from fedecider.adapter import Adapter
from fedecider.cache import Prompts
from fedecider.client import ClientData, ClientModel, entered
from fedecider.trunk import Trunk


def evaluate(data: ClientData, model: ClientModel, adapter: Adapter, method: str):
    """Ranks of every test user by every configured ranker, and the weight that validation chose.

    Returns a frame (domain, method, protocol, ranker, user_id, rank) and a dict of choices. The
    popularity line is in the frame as method and ranker "popularity", for the same users.
    """
    config = data.config
    users = data.test_users
    items = data.domain.items.index
    titles = [data.catalogue.tokens[item] for item in items]
    targets = [items.get_loc(data.domain.test[user]) for user in users]
    asked = [data.catalogue.prompt(user, "test", config.history) for user in users]
    rows, chosen = [], {}

    def note(method: str, protocol: str, ranker: str, ranks) -> None:
        for user, rank in zip(users, ranks, strict=True):
            rows.append((data.name, method, protocol, ranker, user, int(rank)))

    with entered(model.mixture(adapter, config)):
        if "likelihood" in config.rankers:
            weight, ranks = likelihood_ranks(data, adapter)
            chosen["prompt_weight"] = weight
            note(method, "sampled", "likelihood", ranks)
            note("popularity", "sampled", "popularity", _popularity(data, "sampled"))
        if "grounding" in config.rankers:
            generated = ranking.generate_titles(
                adapter,
                asked,
                data.form.end,
                config.beams,
                config.title_tokens,
                f"{data.name} grounding",
            )
        if "trie" in config.rankers:
            prompts = Prompts(adapter.backbone, asked, adapter.first, f"{data.name} prompts")
            root = trie.build(titles, data.form.end)
            found = trie.search(adapter, root, prompts, config.beams, f"{data.name} trie")
            note(method, "catalogue", "trie", trie.ranks(found, targets, len(items)))
    if "grounding" in config.rankers:
        # Outside the mixture: titles are embedded by the untuned base.
        catalogue = ranking.embed_titles(adapter, titles, cached=True)
        embedded = ranking.embed_titles(adapter, generated, cached=False)
        place = adapter.backbone.device if adapter.backbone.device.type == "cuda" else "cpu"
        found = ranking.grounding_ranks(embedded, catalogue, targets, place)
        note(method, "catalogue", "grounding", found)
    if {"grounding", "trie"} & set(config.rankers):
        note("popularity", "catalogue", "popularity", _popularity(data, "catalogue"))
    columns = ["domain", "method", "protocol", "ranker", "user_id", "rank"]
    return pd.DataFrame(rows, columns=columns), chosen


def _popularity(data: ClientData, protocol: str) -> list[int]:
    return ranking.popularity_ranks(data.domain, data.test_users, protocol)


def likelihood_ranks(data: ClientData, adapter: Adapter) -> tuple[float, list[int]]:
    """Weight of the empty-prompt correction chosen on validation, and the ranks on test with it."""
    config, catalogue = data.config, data.catalogue
    splits = {"valid": data.valid_users, "test": data.test_users}
    listed = {
        split: [catalogue.candidates(user, split) for user in users]
        for split, users in splits.items()
    }
    prior = None
    if any(config.prompt_weights):
        items = sorted({item for lists in listed.values() for some in lists for item in some})
        trees = ranking.empty_prompt_trees(catalogue, items)
        trunk = Trunk(adapter.backbone, trees, adapter.first, f"{data.name} empty-prompt states")
        values = ranking.branch_scores(adapter, trunk, data.form.end, f"{data.name} empty prompt")
        prior = pd.Series(np.concatenate(values), index=items)
    scores, empty = {}, {}
    for split, users in splits.items():
        trees = ranking.candidate_trees(catalogue, users, split, config.history)
        trunk = Trunk(adapter.backbone, trees, adapter.first, f"{data.name} {split} list states")
        scores[split] = ranking.branch_scores(
            adapter, trunk, data.form.end, f"{data.name} {split} lists"
        )
        empty[split] = [
            np.zeros(len(some)) if prior is None else prior.loc[some].to_numpy()
            for some in listed[split]
        ]
    weight = ranking.choose_weight(scores["valid"], empty["valid"], config.prompt_weights)
    pairs = zip(scores["test"], empty["test"], strict=True)
    return weight, [ranking.rank_of(ranking.correct(s, e, weight), 0) for s, e in pairs]
