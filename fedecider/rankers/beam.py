"""Ranker `trie`: beam search in which every hypothesis is an item (method, section 6; our own).

Items that the search does not reach are tied behind all others.

The catalogue's titles form a tree of tokens, with chains of single children merged into edges of a
few tokens. A step scores the edges that leave a user's hypotheses by their first token, keeps the
best `beams`, and feeds whole edges: a title needs fewer steps than it has tokens, and one that
turns out unlikely is left half-way. Users are batched; `engine.kv_cache` keeps their prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.adapter import Adapter
from fedecider.engine.backbone import Backbone
from fedecider.engine.cross_entropy import log_probs
from fedecider.engine.kv_cache import KVCache, PromptCache
from fedecider.engine.packing import pack
from fedecider.metrics import rank_of
from fedecider.rankers.base import Ranking, Ranks

_BUDGET = 4096  # prompt tokens per batch of users
_STEP = 4  # tokens of a hypothesis that a step feeds at most
_GOING = 0.8  # share of a batch's users still searching below which the others are left out


class Trie:
    """Ranks the whole catalogue."""

    name, protocol = "trie", "catalogue"

    def rank(self, ranking: Ranking) -> Ranks:
        """Ranks of the test users; nothing is chosen on validation."""
        data, adapter = ranking.data, ranking.adapter
        items = data.domain.items.index
        root = build([data.catalogue.tokens[item] for item in items], data.template.end)
        prompts = PromptCache(
            adapter.backbone,
            ranking.prompts(data.test_users, "test"),
            adapter.first,
            f"{data.name} prompts",
        )
        index = {user: row for row, user in enumerate(data.test_users)}
        ranked: dict[str, int] = {}
        for users, model in ranking.models_for("test"):
            rows = [index[user] for user in users]
            with model.mixture(adapter, data.config.direction):
                titles = search(
                    adapter, root, prompts, ranking.config.beams, f"{data.name} trie", rows
                )
            targets = [items.get_loc(data.domain.test[user]) for user in users]
            ranked |= dict(zip(users, ranks(titles, targets, len(items)), strict=True))
        return [ranked[user] for user in data.test_users], {}


@dataclass
class Node:
    """A place with a choice: `first` token of each edge that leaves it; without edges, an end.

    `last` tells which edges are the end of a title and nothing else; `items` have the title that
    ends here (several, if their tokens are the same).
    """

    edges: list["Edge"] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    last: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


class Edge(NamedTuple):
    """Tokens up to the next place with a choice, or to the end of a title, and what is there."""

    tokens: tuple[int, ...]
    node: Node


def build(titles: Sequence[Sequence[int]], end: int, longest: int = _STEP) -> Node:
    """The tree of the titles, each followed by `end`; item i is titles[i].

    An edge has at most `longest` tokens: a long title that turns out unlikely is left half-way.
    Raises ValueError for an empty catalogue, and for a title that holds `end`.
    """
    if not titles:
        raise ValueError("a catalogue without titles has no trie")
    if any(end in title for title in titles):
        raise ValueError(f"a title must not hold the token that ends titles, {end}")
    sequences = sorted(((*title, end), item) for item, title in enumerate(titles))
    root = Node()
    ranges = [(root, 0, len(sequences), 0)]
    while ranges:
        node, at, stop, depth = ranges.pop()
        while at < stop:
            head = sequences[at][0]
            beyond = at + 1
            while beyond < stop and sequences[beyond][0][depth] == head[depth]:
                beyond += 1
            tail = sequences[beyond - 1][0]
            shared = depth + 1
            while shared < len(head) and head[shared] == tail[shared]:
                shared += 1
            child, above = Node(), node
            for cut in range(depth, shared, longest):
                below = Node() if cut + longest < shared else child
                above.edges.append(Edge(head[cut : min(cut + longest, shared)], below))
                if above is not node:
                    _close(above, end)
                above = below
            if shared == len(head):
                child.items = [item for _, item in sequences[at:beyond]]
            else:
                ranges.append((child, at, beyond, shared))
            at = beyond
        _close(node, end)
    return root


def _close(node: Node, end: int) -> None:
    """Note what a search asks of a node's edges, once all are there."""
    node.first = np.array([edge.tokens[0] for edge in node.edges])
    node.last = np.array([edge.tokens == (end,) for edge in node.edges])


@dataclass
class _Hypothesis:
    """A path on its way. `score` is the log-probability up to the first token of its last edge.

    `path` are that edge's tokens (none at the root), `depth` the tokens behind the prompt before
    them, `slots` where these lie in the cache, `row` where the step's states of `path` begin.
    """

    score: float
    node: Node
    path: tuple[int, ...]
    depth: int
    slots: list[int]
    row: int = 0

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens of the edge whose states are needed: not the end of a title."""
        return self.path if self.node.edges else self.path[:-1]


class _Search:
    """A user's beam: hypotheses on their way, and the best complete titles so far."""

    def __init__(self, root: Node, beams: int, row: int):
        self.beams = beams
        self.running = [_Hypothesis(0.0, root, (), 0, [], row)]
        self.titles: list[tuple[float, list[int]]] = []

    def complete(self, score: float, items: list[int]) -> None:
        """Note a whole title; the best are kept, the lower item first among equals."""
        self.titles.append((score, items))
        self.titles.sort(key=lambda title: (-title[0], title[1]))
        del self.titles[self.beams :]

    def choose(self, scores: list[np.ndarray]) -> None:
        """Go on along the best edges; scores[i] are those of the edges of running[i]'s node."""
        for hypothesis, values in zip(self.running, scores, strict=True):
            for edge in np.flatnonzero(hypothesis.node.last):
                self.complete(values[edge].item(), hypothesis.node.edges[edge].node.items)
        # Scores only fall: what is no better than the last of a full list cannot enter it.
        bound = self.titles[-1][0] if len(self.titles) == self.beams else -np.inf
        open_ends = [
            (-values[edge].item(), index, edge)
            for index, (hypothesis, values) in enumerate(zip(self.running, scores, strict=True))
            for edge in _largest(np.where(hypothesis.node.last, -np.inf, values), self.beams)
            if values[edge] > bound
        ]
        chosen = []
        for score, index, choice in sorted(open_ends)[: self.beams]:
            before = self.running[index]
            tokens, node = before.node.edges[choice]
            depth = before.depth + len(before.path)
            chosen.append(_Hypothesis(-score, node, tokens, depth, before.slots))
        self.running = chosen


def _largest(values: np.ndarray, count: int) -> list[int]:
    """Indices of the largest finite values, the lower index first among equals."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[np.isfinite(values[order])].tolist()


@torch.inference_mode()
def search(
    adapter: Adapter,
    root: Node,
    prompts: PromptCache,
    beams: int,
    label: str = "",
    only: Sequence[int] | None = None,
) -> list[list[tuple[float, list[int]]]]:
    """Per prompt the best `beams` titles, as (log p of title and end, items), best first.

    Of all prompts, or of those with the indices `only`, in that order.
    Enter a mixture before to search with the peers' directions. A beam keeps `beams` paths on their
    way beside the complete titles, until none of them can enter the list of the best.
    """
    wanted = list(range(len(prompts.sizes)) if only is None else only)
    order = sorted(wanted, key=lambda index: (prompts.sizes[index], index))
    results: dict[int, list[tuple[float, list[int]]]] = {}
    with tqdm(total=len(order), desc=label, unit="user", leave=False, mininterval=1) as bar:
        for packed in pack([prompts.sizes[index] for index in order], _BUDGET):
            indices = [order[position] for position in packed]
            searches = [_Search(root, beams, row) for row in range(len(indices))]
            cache, states = prompts.batch(indices)
            _expand(adapter.backbone, searches, states)
            while True:
                going = [row for row, beam in enumerate(searches) if beam.running]
                if len(going) < _GOING * len(indices) or not going:
                    for index, beam in zip(indices, searches, strict=True):
                        results[index] = beam.titles
                    bar.update(len(indices) - len(going))
                    if not going:
                        break
                    indices = [indices[row] for row in going]
                    searches = [searches[row] for row in going]
                    cache.keep(going)
                lengths = [prompts.sizes[index] for index in indices]
                states = _feed(adapter.backbone, searches, cache, lengths)
                _expand(adapter.backbone, searches, states)
    return [results[index] for index in wanted]


def _feed(
    backbone: Backbone, searches: list[_Search], cache: KVCache, lengths: list[int]
) -> Tensor:
    """Feed every hypothesis' edge; their normed states, (T, width)."""
    fed = [sum(len(path.fed) for path in beam.running) for beam in searches]
    width, before = max(fed), cache.slots
    ids: list[int] = []
    positions: list[int] = []
    of_row: list[int] = []
    rows = torch.zeros(len(searches), width, dtype=torch.long)
    seen = torch.zeros(len(searches), width, before + width, dtype=torch.bool)
    seen[:, :, : cache.real.shape[1]] = cache.real.cpu()[:, None]
    for user, beam in enumerate(searches):
        at = 0
        for path in beam.running:
            path.row = len(ids)
            count = len(path.fed)
            own = range(at, at + count)
            rows[user, at : at + count] = torch.arange(len(ids), len(ids) + count)
            of_row += [user * width + token for token in own]
            ids += path.fed
            start = lengths[user] + path.depth
            positions += range(start, start + count)
            seen[user, at : at + count, path.slots] = True
            seen[user, at : at + count, before + at : before + at + count] = torch.ones(
                count, count, dtype=torch.bool
            ).tril()
            path.slots = [*path.slots, *(before + token for token in own)]
            at += count
    device = backbone.device
    cache.step(rows.to(device), torch.tensor(of_row, device=device), ~seen.to(device))
    embedded = backbone.embed(torch.tensor(ids))
    return backbone.normed(backbone.blocks(embedded, torch.tensor(positions), cache)[0])


def _expand(backbone: Backbone, searches: list[_Search], states: Tensor) -> None:
    """Score what follows the fed tokens: the rest of each edge, then the edges behind it."""
    source: list[np.ndarray] = []
    token: list[np.ndarray] = []
    for beam in searches:
        for path in beam.running:
            rest = len(path.path) - 1
            if rest > 0:
                source.append(np.arange(path.row, path.row + rest))
                token.append(np.array(path.path[1:]))
            if path.node.edges:
                last = path.row + max(len(path.path) - 1, 0)
                source.append(np.full(len(path.node.first), last))
                token.append(path.node.first)
    pairs = (torch.from_numpy(np.concatenate(x)).to(backbone.device) for x in (source, token))
    values = log_probs(states, backbone.head, *pairs).double().cpu().numpy()
    at = 0
    for beam in searches:
        going, scores = [], []
        for path in beam.running:
            rest = max(len(path.path) - 1, 0)
            path.score += values[at : at + rest].sum().item()
            at += rest
            if path.node.edges:
                going.append(path)
                scores.append(path.score + values[at : at + len(path.node.first)])
                at += len(path.node.first)
            else:
                beam.complete(path.score, path.node.items)
        beam.running = going
        if going:
            beam.choose(scores)


def ranks(
    titles: list[list[tuple[float, list[int]]]], targets: Sequence[int], items: int
) -> list[int]:
    """Rank of each target item: its place among the titles, else that of the whole catalogue.

    Items that the search did not reach are tied behind all others; ties count against the model.
    """
    ranks = []
    for listed, target in zip(titles, targets, strict=True):
        scores = np.full(items, -np.inf)
        for score, same in listed:
            scores[same] = score
        ranks.append(rank_of(scores, target))
    return ranks
