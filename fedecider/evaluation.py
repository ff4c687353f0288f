"""Ranks of a client's chosen model on its test users; the test split is read here, and once."""

import numpy as np
import pandas as pd

from fedecider import ranking, trie
from fedecider.adapter import Adapter
from fedecider.cache import Prompts
from fedecider.client import ClientData, ClientModel, entered
from fedecider.trunk import Trunk

_COLUMNS = ["domain", "method", "protocol", "ranker", "user_id", "rank"]


def evaluate(data: ClientData, model: ClientModel, adapter: Adapter, method):
    """Ranks of every test user by every configured ranker, and the choices made on validation.

    Returns a frame (domain, method, protocol, ranker, user_id, rank) and a dict of choices. The
    popularity line is in the frame as method and ranker "popularity", for the same users.
    """
    config = data.config
    protocols = ["sampled"] if "likelihood" in config.rankers else []
    protocols += ["catalogue"] if {"grounding", "trie"} & set(config.rankers) else []
    chosen: dict = {}
    found = [
        _frame(data, "popularity", protocol, "popularity", data.test_users, ranks)
        for protocol in protocols
        for ranks in [ranking.popularity_ranks(data.domain, data.test_users, protocol)]
    ]
    if not method.language_model and protocols:
        from fedecider import collaborative  # its library is slow to load

        frame, chosen = collaborative.frame(data.domain, config, protocols)
        found.append(frame)
    elif "likelihood" in config.rankers:
        weight, ranks = likelihood_ranks(data, model, adapter, method)
        chosen["prompt_weight"] = weight
        found.append(_frame(data, method.name, "sampled", "likelihood", data.test_users, ranks))
    if method.language_model and "catalogue" in protocols:
        prompts = None
        if "trie" in config.rankers:
            asked = [data.catalogue.prompt(one, "test", config.history) for one in data.test_users]
            prompts = Prompts(adapter.backbone, asked, adapter.first, f"{data.name} prompts")
        for users, served in method.served(data, model, adapter, "test"):
            for ranker, ranks in catalogue_ranks(data, served, adapter, users, prompts).items():
                found.append(_frame(data, method.name, "catalogue", ranker, users, ranks))
    empty = pd.DataFrame({column: pd.Series(dtype=str) for column in _COLUMNS})
    return pd.concat(found, ignore_index=True) if found else empty.astype({"rank": int}), chosen


def _frame(data: ClientData, method: str, protocol: str, ranker: str, users, ranks):
    rows = [
        (data.name, method, protocol, ranker, user, int(rank))
        for user, rank in zip(users, ranks, strict=True)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def catalogue_ranks(
    data: ClientData,
    model: ClientModel,
    adapter: Adapter,
    users: list[str],
    prompts: Prompts | None,
) -> dict[str, list[int]]:
    """Ranks of the given test users in the whole catalogue, by each configured ranker.

    `prompts` are those of all test users, for `trie`.
    """
    config = data.config
    items = data.domain.items.index
    titles = [data.catalogue.tokens[item] for item in items]
    targets = [items.get_loc(data.domain.test[user]) for user in users]
    ranks = {}
    with entered(model.mixture(adapter, config)):
        if "grounding" in config.rankers:
            generated = ranking.generate_titles(
                adapter,
                [data.catalogue.prompt(user, "test", config.history) for user in users],
                data.form.end,
                config.beams,
                config.title_tokens,
                f"{data.name} grounding",
            )
        if prompts is not None:
            root = trie.build(titles, data.form.end)
            place = {user: index for index, user in enumerate(data.test_users)}
            some = [place[user] for user in users]
            label = f"{data.name} trie"
            found = trie.search(adapter, root, prompts, config.beams, label, some)
            ranks["trie"] = trie.ranks(found, targets, len(items))
    if "grounding" in config.rankers:
        # Outside the mixture: titles are embedded by the untuned base.
        catalogue = ranking.embed_titles(adapter, titles, cached=True)
        embedded = ranking.embed_titles(adapter, generated, cached=False)
        place = adapter.backbone.device if adapter.backbone.device.type == "cuda" else "cpu"
        ranks["grounding"] = ranking.grounding_ranks(embedded, catalogue, targets, place)
    return ranks


def likelihood_ranks(
    data: ClientData, model: ClientModel, adapter: Adapter, method
) -> tuple[float, list[int]]:
    """Weight of the empty-prompt correction chosen on validation, and the ranks on test with it."""
    config, catalogue = data.config, data.catalogue
    lists = {
        split: {user: catalogue.candidates(user, split) for user in users}
        for split, users in (("valid", data.valid_users), ("test", data.test_users))
    }
    items = sorted({item for users in lists.values() for some in users.values() for item in some})
    scores: dict[str, list[np.ndarray]] = {}
    empty: dict[str, list[np.ndarray]] = {}
    known: list[tuple[ClientModel, pd.Series | None]] = []  # most methods serve all users alike
    for split, listed in lists.items():
        found, prior = {}, {}
        trees = ranking.candidate_trees(catalogue, list(listed), split, config.history)
        trunk = Trunk(adapter.backbone, trees, adapter.first, f"{data.name} {split} list states")
        place = {user: index for index, user in enumerate(listed)}
        for users, served in method.served(data, model, adapter, split):
            with entered(served.mixture(adapter, config)):
                if not any(one is served for one, _ in known):
                    known.append((served, _empty_prompt_scores(data, adapter, items)))
                some, label = [place[user] for user in users], f"{data.name} {split} lists"
                scored = ranking.branch_scores(adapter, trunk, data.form.end, label, some)
            alone = next(values for one, values in known if one is served)
            found |= dict(zip(users, scored, strict=True))
            prior |= {
                user: np.zeros(len(listed[user])) if alone is None else alone.loc[listed[user]]
                for user in users
            }
        scores[split] = [found[user] for user in listed]
        empty[split] = [np.asarray(prior[user]) for user in listed]
    weight = ranking.choose_weight(scores["valid"], empty["valid"], config.prompt_weights)
    pairs = zip(scores["test"], empty["test"], strict=True)
    return weight, [ranking.rank_of(ranking.correct(s, e, weight), 0) for s, e in pairs]


def _empty_prompt_scores(data: ClientData, adapter: Adapter, items: list[str]):
    """Mean log p of each item's title behind the empty prompt; None where no weight asks for it."""
    if not any(data.config.prompt_weights):
        return None
    trees = ranking.empty_prompt_trees(data.catalogue, items)
    trunk = Trunk(adapter.backbone, trees, adapter.first, f"{data.name} empty-prompt states")
    values = ranking.branch_scores(adapter, trunk, data.form.end, f"{data.name} empty prompt")
    return pd.Series(np.concatenate(values), index=items)
