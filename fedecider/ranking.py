"""Rankers: from a language model to the rank of the held-out item (method, section 6).

- `likelihood` (1 + 99 lists): mean log p(token) of title and end given the prompt, minus w times
  the same given the empty prompt, w chosen on validation. One forward a user: the prompt once, all
  candidates behind it as branches of one tree; several users a forward.
- `grounding` (BIGRec, arXiv 2308.08434; whole catalogue): beam-search a title, embed the best beam
  and every catalogue title with the untuned base (last token, last layer), rank by L2 distance.
- popularity: the number of training interactions, the line that a method has to beat.

Ties count against the model everywhere: rank = number of items that score at least as well.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from fedecider.adapter import Adapter
from fedecider.domains import Domain
from fedecider.likelihood import log_probs
from fedecider.metrics import per_user, rank_of
from fedecider.sequences import Tree, pack
from fedecider.trunk import Trunk, compute, states_key, stored

_BUDGET = 4096  # tokens a forward


class Catalogue:
    """A domain's titles as tokens of one form."""

    def __init__(self, domain: Domain, form):
        self.domain, self.form = domain, form
        self.tokens = {item: form.title(title) for item, title in domain.items.items()}

    def prompt(self, user: str, split: str, history: int) -> list[int]:
        """The prompt of a user: the last `history` titles before the item of this split."""
        items = self.domain.history(user, split)[-history:]
        return self.form.prompt([self.tokens[item] for item in items])

    def candidates(self, user: str, split: str) -> list[str]:
        """The held-out item first, then its stored negatives."""
        return [self.domain.target(user, split), *self.domain.negatives[split, user]]


def candidate_trees(catalogue: Catalogue, users: Sequence[str], split: str, history: int):
    """One tree a user: the prompt, and behind it the 1 + 99 candidates, the positive first."""
    return [
        Tree(
            catalogue.prompt(user, split, history),
            [catalogue.tokens[item] for item in catalogue.candidates(user, split)],
        )
        for user in users
    ]


def empty_prompt_trees(catalogue: Catalogue, items: Sequence[str], width: int = 128) -> list[Tree]:
    """The given items' titles behind the empty prompt, `width` a tree."""
    prompt = catalogue.form.prompt([])
    tokens = [catalogue.tokens[item] for item in items]
    return [Tree(prompt, tokens[at : at + width]) for at in range(0, len(tokens), width)]


@torch.no_grad()
def branch_scores(
    adapter: Adapter, trunk: Trunk, end: int, label: str = "", only: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Mean log p of each branch and its end given its prompt; float64 (branches,) a tree.

    Of all trees of the trunk, or of those with the indices `only`, in that order.
    """
    device = adapter.backbone.device
    scores: list[np.ndarray] = []
    some = list(range(len(trunk)) if only is None else only)
    packs = pack([trunk.trees[index].size for index in some], _BUDGET)
    with tqdm(total=len(some), desc=label, unit="user", leave=False, mininterval=1) as bar:
        for places in packs:
            indices = [some[place] for place in places]
            forest = trunk.forest(indices)
            hidden = adapter.hidden(trunk.cat(indices, forest), forest)
            used, source, token, lengths = _branch_targets(forest, end)
            values = log_probs(
                hidden[used.to(device)], adapter.backbone.head, source.to(device), token.to(device)
            )
            start = np.cumsum([0, *lengths[:-1]])
            means = np.add.reduceat(values.double().cpu().numpy(), start) / np.array(lengths)
            counts = [len(tree.branches) for tree in forest.trees]
            scores += np.split(means, np.cumsum(counts)[:-1])
            bar.update(len(indices))
    return scores


def _branch_targets(forest, end: int):
    """Rows of the forest that predict something, and per target token its place among them."""
    used, source, token, lengths = [], [], [], []
    for tree, offset in zip(forest.trees, forest.offsets, strict=True):
        last = len(used)
        used.append(offset + len(tree.prompt) - 1)
        at = offset + len(tree.prompt)
        for branch in tree.branches:
            source += [last, *range(len(used), len(used) + len(branch))]
            token += [*branch, end]
            used += range(at, at + len(branch))
            at += len(branch)
            lengths.append(len(branch) + 1)
    return torch.tensor(used), torch.tensor(source), torch.tensor(token), lengths


def correct(scores: np.ndarray, empty: np.ndarray, weight: float) -> np.ndarray:
    """log p(title | prompt) - w log p(title | empty prompt)."""
    return scores - weight * empty


def choose_weight(
    scores: Sequence[np.ndarray], empty: Sequence[np.ndarray], weights: Sequence[float]
) -> float:
    """The weight with the best NDCG@10 on validation lists (positive first); ties: the smallest."""
    best = {}
    for weight in sorted(weights):
        ranks = [rank_of(correct(s, e, weight), 0) for s, e in zip(scores, empty, strict=True)]
        best[weight] = per_user(np.array(ranks), "ndcg@10").mean()
    return max(sorted(best), key=best.get)


@torch.no_grad()
def generate_titles(
    adapter: Adapter,
    prompts: Sequence[list[int]],
    end: int,
    beams: int,
    title_tokens: int,
    label: str = "",
    batch: int = 16,
) -> list[list[int]]:
    """The best beam of each prompt without its end, as token ids; an empty title is impossible."""
    backbone = adapter.backbone
    model = backbone.model
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    titles: list[list[int]] = [[] for _ in prompts]
    with tqdm(total=len(prompts), desc=label, unit="user", leave=False, mininterval=1) as bar:
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            width = max(len(prompts[index]) for index in part)
            ids = torch.full((len(part), width), backbone.start)
            mask = torch.zeros(len(part), width, dtype=torch.long)
            for row, index in enumerate(part):
                ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            ids, mask = ids.to(backbone.device), mask.to(backbone.device)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=_prompt_cache(model, ids, mask, beams),
                num_beams=beams,
                do_sample=False,
                min_new_tokens=1,
                max_new_tokens=title_tokens + 1,
                eos_token_id=end,
                pad_token_id=end,
                use_cache=True,
            )
            for row, index in enumerate(part):
                new = out[row, width:].tolist()
                stop = new.index(end) if end in new else len(new)
                titles[index] = new[:stop]
            bar.update(len(part))
    return titles


def _prompt_cache(model, ids: torch.Tensor, mask: torch.Tensor, beams: int):
    """Keys and values of the prompts but their last token, once a user and then repeated a beam.

    `generate` alone would run every prompt through the model once a beam.
    """
    if ids.shape[1] < 2:
        return None
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model.model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
    )
    cache.batch_repeat_interleave(beams)
    return cache


@torch.no_grad()
def embed_titles(adapter: Adapter, titles: Sequence[list[int]], cached: bool) -> torch.Tensor:
    """Title embeddings (N, width) float32 by the untuned base: last token, last layer, normed.

    `cached` keeps the vectors on disk: for catalogues, which every run needs again.
    """
    backbone = adapter.backbone
    depth = len(backbone.layers)
    trees = [Tree([backbone.start, *title]) for title in titles]
    packs = pack([tree.size for tree in trees], _BUDGET)

    def vectors():
        for indices in tqdm(packs, desc="title embeddings", leave=False, mininterval=1):
            some = [trees[index] for index in indices]
            last = torch.tensor([tree.size for tree in some]).cumsum(0) - 1
            states = compute(backbone, some, depth)
            yield backbone.normed(states[last.to(states.device)]).float().cpu()

    with adapter.peft.disable_adapter():
        if not cached:
            return torch.cat(list(vectors()))
        key = states_key(backbone, trees, depth, "last tokens")
        return stored(key, (len(trees), backbone.width), torch.float32, vectors)


def grounding_ranks(
    generated: torch.Tensor,
    catalogue: torch.Tensor,
    targets: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[int]:
    """Rank of each target row of the catalogue (N, d) by L2 distance to the generated title (U, d).

    In float64 and without the Gram shortcut, so that equal embeddings are exactly equally far;
    `device` computes the distances and must know float64.
    """
    catalogue, ranks = catalogue.to(device, torch.float64), []
    mode = "donot_use_mm_for_euclid_dist"
    for some, wanted in zip(generated.split(64), _split(targets, 64), strict=True):
        some = some.to(device, torch.float64)
        distances = torch.cdist(some, catalogue, compute_mode=mode).cpu().numpy()
        ranks += [rank_of(-row, target) for row, target in zip(distances, wanted, strict=True)]
    return ranks


def _split(values: Sequence[int], size: int) -> list[Sequence[int]]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def popularity_ranks(domain: Domain, users: Sequence[str], protocol: str) -> list[int]:
    """Ranks by training popularity, over the whole catalogue or the stored 1 + 99 lists."""
    counts = domain.popularity
    ranks = []
    for user in users:
        target = domain.target(user, "test")
        if protocol == "catalogue":
            ranks.append(rank_of(counts.to_numpy(float), counts.index.get_loc(target)))
        else:
            listed = [target, *domain.negatives["test", user]]
            ranks.append(rank_of(counts.loc[listed].to_numpy(float), 0))
    return ranks
