"""Ranker `likelihood` (1 + 99 lists): how likely the model finds each candidate's title.

Mean log p(token) of title and end given the prompt, minus w times the same given the empty prompt,
w chosen on validation. One forward per user: the prompt once, all candidates behind it as
continuations of one tree; several users per forward.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from fedecider.adapter import Adapter
from fedecider.engine.cross_entropy import log_probs
from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.engine.packing import PackedBatch, PromptTree, pack
from fedecider.metrics import per_user, rank_of
from fedecider.mixture import ClientModel
from fedecider.prompts import Catalogue
from fedecider.rankers.base import Ranking, Ranks

_BUDGET = 4096  # tokens per forward

Scores = dict[str, np.ndarray]  # user -> one value per candidate, float64


class Likelihood:
    """Ranks the stored lists."""

    name, protocol = "likelihood", "sampled"

    def rank(self, ranking: Ranking) -> Ranks:
        """Ranks of the test users, and the weight of the empty-prompt correction."""
        data = ranking.data
        lists = {
            split: {user: data.catalogue.candidates(user, split) for user in data.users(split)}
            for split in ("valid", "test")
        }
        empty = _EmptyPrompt(
            ranking, sorted({i for users in lists.values() for row in users.values() for i in row})
        )
        scored = {split: self._scores(ranking, split, lists[split], empty) for split in lists}
        weights = ranking.config.prompt_weights
        behind_prompt, behind_none = zip(*scored["valid"], strict=True)
        weight = choose_weight(behind_prompt, behind_none, weights)
        ranks = [rank_of(corrected(s, e, weight), 0) for s, e in scored["test"]]
        return ranks, {"prompt_weight": weight}

    def _scores(
        self,
        ranking: Ranking,
        split: str,
        lists: dict[str, list[str]],
        empty: "_EmptyPrompt",
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per user of the split, in order: scores behind its prompt and behind the empty one."""
        data, adapter = ranking.data, ranking.adapter
        trees = candidate_trees(data.catalogue, list(lists), split, data.config.data.history)
        label = f"{data.name} {split} list states"
        states = HiddenStateCache(adapter.backbone, trees, adapter.first, label)
        index = {user: row for row, user in enumerate(lists)}
        scores: Scores = {}
        priors: Scores = {}
        for users, model in ranking.models_for(split):
            with model.mixture(adapter, data.config.direction):
                prior = empty.scores(model)
                rows, label = [index[user] for user in users], f"{data.name} {split} lists"
                values = continuation_scores(adapter, states, data.template.end, label, rows)
            scores |= dict(zip(users, values, strict=True))
            for user in users:
                listed = lists[user]
                priors[user] = (
                    np.array([prior[item] for item in listed]) if prior else np.zeros(len(listed))
                )
        return [(scores[user], priors[user]) for user in lists]


class _EmptyPrompt:
    """Scores of items behind the empty prompt, computed once per model."""

    def __init__(self, ranking: Ranking, items: list[str]):
        self.ranking, self.items = ranking, items
        self._known: list[tuple[ClientModel, dict[str, float]]] = []  # mostly one, of all users

    def scores(self, model: ClientModel) -> dict[str, float]:
        """By item, under the mixture that is entered; empty where no weight asks for them."""
        for known, values in self._known:
            if known is model:
                return values
        values = self._compute() if any(self.ranking.config.prompt_weights) else {}
        self._known.append((model, values))
        return values

    def _compute(self) -> dict[str, float]:
        data, adapter = self.ranking.data, self.ranking.adapter
        trees = empty_prompt_trees(data.catalogue, self.items)
        label = f"{data.name} empty-prompt states"
        states = HiddenStateCache(adapter.backbone, trees, adapter.first, label)
        label = f"{data.name} empty prompt"
        values = continuation_scores(adapter, states, data.template.end, label)
        return dict(zip(self.items, np.concatenate(values), strict=True))


def candidate_trees(
    catalogue: Catalogue, users: Sequence[str], split: str, history: int
) -> list[PromptTree]:
    """One tree per user: the prompt, and behind it the 1 + 99 candidates, the positive first."""
    return [
        PromptTree(
            catalogue.prompt(user, split, history),
            [catalogue.tokens[item] for item in catalogue.candidates(user, split)],
        )
        for user in users
    ]


def empty_prompt_trees(
    catalogue: Catalogue, items: Sequence[str], width: int = 128
) -> list[PromptTree]:
    """Titles of items behind the empty prompt, `width` per tree."""
    prompt = catalogue.template.prompt([])
    tokens = [catalogue.tokens[item] for item in items]
    return [PromptTree(prompt, tokens[at : at + width]) for at in range(0, len(tokens), width)]


@torch.no_grad()
def continuation_scores(
    adapter: Adapter,
    states: HiddenStateCache,
    end: int,
    label: str = "",
    only: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Mean log p of each continuation and its end given its prompt; float64 (continuations,) each.

    Of all trees of the cache, or of those with the indices `only`, in that order.
    """
    device = adapter.backbone.device
    scores: list[np.ndarray] = []
    chosen = list(range(len(states)) if only is None else only)
    packs = pack([states.sizes[index] for index in chosen], _BUDGET)
    with tqdm(total=len(chosen), desc=label, unit="user", leave=False, mininterval=1) as bar:
        for positions in packs:
            batch = states.batch([chosen[position] for position in positions])
            hidden = adapter.hidden(batch)
            used, source, token, lengths = _continuation_targets(batch, end)
            values = log_probs(
                hidden[used.to(device)], adapter.backbone.head, source.to(device), token.to(device)
            )
            start = np.cumsum([0, *lengths[:-1]])
            means = np.add.reduceat(values.double().cpu().numpy(), start) / np.array(lengths)
            counts = [len(tree.continuations) for tree in batch.trees]
            scores += np.split(means, np.cumsum(counts)[:-1])
            bar.update(len(positions))
    return scores


def _continuation_targets(
    batch: PackedBatch, end: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Rows of the batch that predict something, and per target token its place among them."""
    used: list[int] = []
    source: list[int] = []
    token: list[int] = []
    lengths: list[int] = []
    for tree, offset in zip(batch.trees, batch.offsets, strict=True):
        last = len(used)
        used.append(offset + len(tree.prompt) - 1)
        at = offset + len(tree.prompt)
        for tokens in tree.continuations:
            source += [last, *range(len(used), len(used) + len(tokens))]
            token += [*tokens, end]
            used += range(at, at + len(tokens))
            at += len(tokens)
            lengths.append(len(tokens) + 1)
    return torch.tensor(used), torch.tensor(source), torch.tensor(token), lengths


def corrected(scores: np.ndarray, empty: np.ndarray, weight: float) -> np.ndarray:
    """log p(title | prompt) - w log p(title | empty prompt)."""
    return scores - weight * empty


def choose_weight(
    scores: Sequence[np.ndarray], empty: Sequence[np.ndarray], weights: Sequence[float]
) -> float:
    """The weight with the best NDCG@10 on validation lists (positive first); ties: the smallest."""
    quality = {}
    for weight in sorted(weights):
        ranks = [rank_of(corrected(s, e, weight), 0) for s, e in zip(scores, empty, strict=True)]
        quality[weight] = per_user(np.array(ranks), "ndcg@10").mean()
    return max(sorted(quality), key=lambda weight: quality[weight])
