"""Ranker `grounding` (BIGRec, arXiv 2308.08434; whole catalogue): generate a title, then ground it.

Beam-search a title, embed the best beam and every catalogue title with the untuned base (last
token, last layer), rank all items by L2 distance. Items of the user's history are not removed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

from fedecider.adapter import Adapter
from fedecider.engine.hidden_states import compute_states, content_key, stored_rows
from fedecider.engine.packing import PromptTree, pack
from fedecider.metrics import rank_of
from fedecider.rankers.base import Ranking, Ranks

_BUDGET = 4096  # tokens per forward


class Grounding:
    """Ranks the whole catalogue."""

    name, protocol = "grounding", "catalogue"

    def rank(self, ranking: Ranking) -> Ranks:
        """Ranks of the test users; nothing is chosen on validation."""
        data, adapter, config = ranking.data, ranking.adapter, ranking.config
        items = data.domain.items.index
        titles = [data.catalogue.tokens[item] for item in items]
        ranks: dict[str, int] = {}
        for users, model in ranking.models_for("test"):
            with model.mixture(adapter, data.config.direction):
                generated = generate_titles(
                    adapter,
                    ranking.prompts(users, "test"),
                    data.template.end,
                    config.beams,
                    config.title_tokens,
                    f"{data.name} grounding",
                )
            # Outside the mixture: titles are embedded by the untuned base.
            catalogue = embed_titles(adapter, titles, cached=True)
            embedded = embed_titles(adapter, generated, cached=False)
            device = adapter.backbone.device if adapter.backbone.device.type == "cuda" else "cpu"
            targets = [items.get_loc(data.domain.test[user]) for user in users]
            ranks |= dict(
                zip(users, grounding_ranks(embedded, catalogue, targets, device), strict=True)
            )
        return [ranks[user] for user in data.test_users], {}


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
    model: Any = backbone.model
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


def _prompt_cache(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, beams: int
) -> DynamicCache | None:
    """Keys and values of the prompts but their last token, once per user, then repeated per beam.

    `generate` alone would run every prompt through the model once per beam.
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
    trees = [PromptTree([backbone.start, *title]) for title in titles]
    packs = pack([tree.size for tree in trees], _BUDGET)

    def vectors() -> Iterator[torch.Tensor]:
        for indices in tqdm(packs, desc="title embeddings", leave=False, mininterval=1):
            packed = [trees[index] for index in indices]
            last = torch.tensor([tree.size for tree in packed]).cumsum(0) - 1
            states = compute_states(backbone, packed, depth)
            yield backbone.normed(states[last.to(states.device)]).float().cpu()

    with adapter.peft.disable_adapter():
        if not cached:
            return torch.cat(list(vectors()))
        key = content_key(backbone, trees, depth, "last tokens")
        return stored_rows(key, (len(trees), backbone.width), torch.float32, vectors)


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
    for at in range(0, len(generated), 64):
        rows = generated[at : at + 64].to(device, torch.float64)
        distances = torch.cdist(rows, catalogue, compute_mode=mode).cpu().numpy()
        wanted = targets[at : at + 64]
        ranks += [rank_of(-row, target) for row, target in zip(distances, wanted, strict=True)]
    return ranks
