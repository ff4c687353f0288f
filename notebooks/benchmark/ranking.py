"""Ranking: 1 + 99 lists against one forward per candidate, the catalogue by trie and grounding."""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import pandas as pd

from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.engine.kv_cache import PromptCache
from fedecider.engine.packing import PromptTree
from fedecider.metrics import per_user, rank_of
from fedecider.prompts import Catalogue
from fedecider.rankers import beam
from fedecider.rankers.grounding import embed_titles, generate_titles, grounding_ranks
from fedecider.rankers.likelihood import candidate_trees, continuation_scores
from notebooks.benchmark import peer, timing
from notebooks.benchmark.bench import Bench, RecomputedStates

_TITLE_TOKENS = 24  # longest title that grounding generates


def list_times(
    bench: Bench, users: int = 16, peer_users: int = 2, top_layers: int = 8
) -> pd.DataFrame:
    """Users per second at 1 + 99 candidates: the peer, and ours with and without stored states.

    The peer ranks the first `peer_users` of them. Columns of `timing.alternate`, and flops.
    """
    trees, end = _trees(bench, users), bench.template.end
    states = HiddenStateCache(bench.backbone, trees, bench.depth - top_layers)
    peer_scores = _peer_scores(bench, top_layers)

    @contextmanager
    def stock():
        yield lambda: len([peer_scores(tree) for tree in trees[:peer_users]])

    def ours(states: HiddenStateCache):
        @contextmanager
        def job():
            with bench.adapter(top_layers) as adapter:
                yield lambda: len(continuation_scores(adapter, states, end))

        return job

    jobs = {
        "peer": stock,
        "tree, states not stored": ours(RecomputedStates(states)),
        "tree": ours(states),
    }
    rows = timing.alternate("ranking", jobs, bench.repeats)
    tokens, whole = sum(states.sizes), bench.depth * bench.block_flops + bench.head_flops
    flops = {
        "peer": sum(
            (len(tree.prompt) + len(title) + 1) * whole
            for tree in trees[:peer_users]
            for title in tree.continuations
        ),
        "tree, states not stored": tokens * whole,
        "tree": tokens * (top_layers * bench.block_flops + bench.head_flops),
    }
    return rows.assign(flops=rows["variant"].map(flops))


def agreement(bench: Bench, users: int = 2, top_layers: int = 8) -> dict[str, float]:
    """Peer and tree on the same lists: largest difference of a score, share of equal ranks."""
    trees = _trees(bench, users)
    peer_scores = _peer_scores(bench, top_layers)
    with bench.adapter(top_layers) as adapter:
        states = HiddenStateCache(bench.backbone, trees, adapter.first)
        scores = continuation_scores(adapter, states, bench.template.end)
    both = [(ours, peer_scores(tree)) for ours, tree in zip(scores, trees, strict=True)]
    return {
        "largest score difference": max(float(np.abs(a - b).max()) for a, b in both),
        "same ranks": float(np.mean([rank_of(a, 0) == rank_of(b, 0) for a, b in both])),
    }


def _trees(bench: Bench, users: int) -> list[PromptTree]:
    """The first test users' prompts with their 1 + 99 candidates."""
    catalogue = Catalogue(bench.domain, bench.template)
    test_users = bench.domain.users["test"][:users]
    return candidate_trees(catalogue, test_users, "test", bench.config.data.history)


def _peer_scores(bench: Bench, top_layers: int) -> Callable[[PromptTree], np.ndarray]:
    """The peer's scores of a tree's continuations."""
    lora, end = bench.config.lora, bench.template.end
    adapted = peer.model(bench.backbone, lora.rank, lora.lora_alpha, top_layers, bench.config.seed)

    def scores(tree: PromptTree) -> np.ndarray:
        candidates = [[*title, end] for title in tree.continuations]
        return peer.scores(adapted, tree.prompt, candidates, end, 4 * bench.peer_batch)

    return scores


def catalogue_times(
    bench: Bench, users: int = 32, beams: int = 4, top_layers: int = 8
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Users per second in the whole catalogue, grounding against trie, and NDCG@10 of both."""
    end, domain = bench.template.end, bench.domain
    catalogue = Catalogue(domain, bench.template)
    test_users = domain.users["test"][:users]
    prompts = [catalogue.prompt(user, "test", bench.config.data.history) for user in test_users]
    titles = [catalogue.tokens[item] for item in domain.items.index]
    targets = [domain.items.index.get_loc(domain.test[user]) for user in test_users]
    root = beam.build(titles, end)
    quality: dict[str, float] = {}
    prefixes: list[int] = []  # per user, of the last search

    def note(name: str, ranks: list[int]) -> int:
        quality[name] = float(per_user(np.array(ranks), "ndcg@10").mean())
        return len(ranks)

    @contextmanager
    def grounding():
        with bench.adapter(top_layers) as adapter:
            known = embed_titles(adapter, titles, cached=True)

            def work() -> int:
                generated = generate_titles(adapter, prompts, end, beams, _TITLE_TOKENS)
                embedded = embed_titles(adapter, generated, cached=False)
                return note("grounding", grounding_ranks(embedded, known, targets))

            yield work

    @contextmanager
    def trie():
        with bench.adapter(top_layers) as adapter:
            cache = PromptCache(bench.backbone, prompts, adapter.first)

            def work() -> int:
                best = beam.search(adapter, root, cache, beams)
                prefixes[:] = [_prefixes(titles, listed) for listed in best]
                return note("trie", beam.ranks(best, targets, len(titles)))

            yield work

    @contextmanager
    def trie_not_stored():
        with bench.adapter(top_layers) as adapter:
            cache = PromptCache(bench.backbone, prompts, 0)  # all blocks of the prompts, every time
            yield lambda: len(beam.search(adapter, root, cache, beams))

    jobs = {"grounding": grounding, "trie, states not stored": trie_not_stored, "trie": trie}
    rows = timing.alternate("catalogue", jobs, bench.repeats)
    token = bench.depth * bench.block_flops + bench.head_flops
    flops = sum(map(len, prompts)) * top_layers * bench.block_flops + sum(prefixes) * token
    return rows.assign(flops=rows["variant"].map({"trie": flops})), quality


def _prefixes(titles: list[list[int]], listed: list[tuple[float, list[int]]]) -> int:
    """Tokens that any search has to feed to score these titles: their distinct prefixes."""
    best = [titles[items[0]] for _, items in listed]
    return len({tuple(title[:stop]) for title in best for stop in range(1, len(title) + 1)})
