"""Ranker `trie`: beam search in which every hypothesis is an item (method, section 6; our own).

The catalogue's titles form a tree of tokens, with chains of single children merged into one edge.
A step scores the edges that leave a user's hypotheses by their first token, keeps the best `beams`,
and feeds whole edges: a title needs as many steps as it has places where the catalogue leaves a
choice, not as many as it has tokens. Users are batched. Each user has one cache of keys and values
in which the tokens of all hypotheses lie side by side and see their own ancestors alone, so a
prefix is kept once and nothing is moved when a hypothesis goes on or is dropped. The prompts' keys
and values below the first adapted block are the same for all methods, rounds and seeds: they are
computed once and kept on disk, as trunk states are.

Shapes: U users of a batch, S slots of a user's cache, N tokens that a step feeds a user (padded),
T rows of a step, h query heads, k key-value heads, d the size of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.adapter import Adapter
from fedecider.backbone import Backbone
from fedecider.likelihood import log_probs
from fedecider.metrics import rank_of
from fedecider.sequences import Forest, Tree, pack
from fedecider.trunk import states_key, stored

_BUDGET = 4096  # prompt tokens a batch of users
_STEP = 3  # tokens of a hypothesis that a step feeds at most
_GOING = 0.8  # share of a batch's users still searching below which the others are left out
_ROOM = 64  # slots by which a cache grows


@dataclass
class Node:
    """A place with a choice: `first` token of each edge that leaves it; without edges, an end.

    `items` have the title that ends here (several, if their tokens are the same).
    """

    edges: list["Edge"] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    first: np.ndarray | None = None
    last: np.ndarray | None = None  # whether an edge is the end of a title and nothing else


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


class _Cache:
    """Keys and values of a batch of users, (U, k, S, d) a block; attends for `Backbone.blocks`."""

    def __init__(self, blocks: int, starts: Tensor, lengths: Tensor):
        """The first slots are for prompts of the given rows; `step` says what comes behind."""
        self.users, self.device = len(lengths), lengths.device
        self.used = int(lengths.max())
        self.slots = self.used
        self.store: list[list[Tensor]] = [[] for _ in range(blocks)]
        slot = torch.arange(self.slots, device=self.device)
        self.real = slot < lengths[:, None]  # (U, S): slots that hold a token of the prompt
        self._prompt = (starts[:, None] + slot).masked_fill(~self.real, 0)

    def prompts(self, block: int, key: Tensor, value: Tensor) -> None:
        """Keys and values (T, k, d) of the prompts' rows."""
        for rows in (key, value):
            shape = (self.users, rows.shape[1], self.used + _ROOM, rows.shape[2])
            kept = rows.new_zeros(shape)
            kept[:, :, : self.used] = rows[self._prompt].transpose(1, 2)
            self.store[block].append(kept)

    def keep(self, users: list[int]) -> None:
        """Go on with these users alone, in this order."""
        chosen = torch.tensor(users, device=self.device)
        self.users, self.real = len(users), self.real[chosen]
        self.store = [[x[chosen] for x in pair] for pair in self.store]

    def step(self, rows: Tensor, of_row: Tensor, hidden: Tensor) -> None:
        """What the coming forward feeds, into the next N slots of every user.

        rows (U, N): the row of each token, padding any; of_row (T,): place of each row in rows,
        flat; hidden (U, N, slots + N): true where a token does not see a slot.
        """
        self._rows, self._of_row, self._hidden = rows, of_row, hidden
        self._block, self._bias = 0, None
        self.slots, self.used = self.slots + rows.shape[1], self.slots

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, h, d), key and value (T, k, d) to (T, h, d), over the users' own caches."""
        block, self._block = self._block, self._block + 1
        users, width = self._rows.shape
        heads, size, shared = query.shape[1], query.shape[2], key.shape[1]
        flat = self._rows.flatten()
        found = []
        for place, rows in enumerate((key, value)):
            kept = self.store[block][place]
            if kept.shape[2] < self.slots:
                more = max(self.slots - kept.shape[2], _ROOM)
                kept = torch.cat([kept, kept.new_zeros(users, shared, more, size)], dim=2)
                self.store[block][place] = kept
            fed = rows[flat].view(users, width, shared, size).transpose(1, 2)
            kept[:, :, self.used : self.slots] = fed
            found.append(kept.flatten(0, 1)[:, : self.slots])
        keys, values = found
        many = heads // shared
        q = query[flat].view(users, width, shared, many, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(users * shared, many * width, size)
        if self._bias is None:  # the same for every block of a step
            unseen = self._hidden[:, None, None].expand(-1, shared, many, -1, -1)
            self._bias = torch.zeros(unseen.shape, dtype=q.dtype, device=q.device)
            self._bias = self._bias.masked_fill_(unseen, float("-inf")).view(*q.shape[:2], -1)
        chance = torch.baddbmm(self._bias, q, keys.transpose(1, 2), alpha=scale).softmax(-1)
        mixed = torch.bmm(chance, values)
        mixed = mixed.view(users, heads, width, size).transpose(1, 2)
        return mixed.reshape(users * width, heads, size)[self._of_row]


class _Collect:
    """Attends as the given layout does and keeps the keys and values of every block."""

    def __init__(self, layout: Forest):
        self.layout = layout
        self.seen: list[tuple[Tensor, Tensor]] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As the layout's."""
        self.seen.append((key, value))
        return self.layout.attend(query, key, value, scale)


class Prompts:
    """Prompts with their keys and values below the first adapted block, kept on disk."""

    def __init__(
        self, backbone: Backbone, prompts: Sequence[list[int]], first: int, label: str = "prompts"
    ):
        self.backbone, self.first = backbone, first
        self.trees = [Tree(prompt) for prompt in prompts]
        self.sizes = [tree.size for tree in self.trees]
        self.heads, self.size = backbone.key_shape
        self.ends = np.cumsum(self.sizes, dtype=np.int64)
        self._kept = self._stored(label) if first and prompts else None

    def _stored(self, label: str) -> Tensor:
        """A row a token: keys and values of each lower block, then the state above them."""
        backbone = self.backbone

        def make():
            with tqdm(total=sum(self.sizes), desc=label, unit="tok", leave=False) as bar:
                for indices in pack(self.sizes, _BUDGET):
                    forest = Forest(self.trees[index] for index in indices)
                    seen, states = _lower(backbone, forest, self.first)
                    yield torch.cat([x.flatten(1) for pair in seen for x in pair] + [states], 1)
                    bar.update(len(forest.ids))

        width = self.first * 2 * self.heads * self.size + backbone.width
        key = states_key(backbone, self.trees, self.first, "keys and values")
        return stored(key, (sum(self.sizes), width), backbone.dtype, make)

    def batch(self, indices: Sequence[int]) -> tuple[_Cache, Tensor]:
        """The cache of these prompts, filled, and the normed state of each one's last token."""
        backbone = self.backbone
        forest = Forest(self.trees[index] for index in indices)
        device = backbone.device
        starts = torch.tensor(forest.offsets, device=device)
        lengths = torch.tensor([self.sizes[index] for index in indices], device=device)
        cache = _Cache(len(backbone.layers), starts, lengths)
        if self._kept is None:
            states = backbone.embed(forest.ids)[0]
        else:
            rows = [self._kept[self.ends[i] - self.sizes[i] : self.ends[i]] for i in indices]
            rows = torch.cat(rows).to(device)
            widths = [self.heads * self.size] * 2 * self.first
            *parts, states = rows.split([*widths, backbone.width], 1)
            parts = [x.unflatten(1, (self.heads, self.size)) for x in parts]
            for block in range(self.first):
                cache.prompts(block, parts[2 * block], parts[2 * block + 1])
        layout = _Collect(forest)
        out = backbone.blocks(states[None], forest.positions, layout, first=self.first)[0]
        for block, pair in enumerate(layout.seen, self.first):
            cache.prompts(block, *pair)
        return cache, backbone.normed(out[starts + lengths - 1])


def _lower(backbone: Backbone, forest: Forest, first: int):
    layout = _Collect(forest)
    states = backbone.blocks(backbone.embed(forest.ids), forest.positions, layout, last=first)
    return layout.seen, states[0]


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
        self.found: list[tuple[float, list[int]]] = []

    def complete(self, score: float, items: list[int]) -> None:
        """Note a whole title; the best are kept, the lower item first among equals."""
        self.found.append((score, items))
        self.found.sort(key=lambda one: (-one[0], one[1]))
        del self.found[self.beams :]

    def choose(self, scores: list[np.ndarray]) -> None:
        """Go on along the best edges; scores[i] are those of the edges of running[i]'s node."""
        for hypothesis, values in zip(self.running, scores, strict=True):
            for edge in np.flatnonzero(hypothesis.node.last):
                self.complete(values[edge].item(), hypothesis.node.edges[edge].node.items)
        # Scores only fall: what is no better than the last of a full list cannot enter it.
        bound = self.found[-1][0] if len(self.found) == self.beams else -np.inf
        open_ends = [
            (-values[edge].item(), place, edge)
            for place, (hypothesis, values) in enumerate(zip(self.running, scores, strict=True))
            for edge in _largest(np.where(hypothesis.node.last, -np.inf, values), self.beams)
            if values[edge] > bound
        ]
        chosen = []
        for score, place, edge in sorted(open_ends)[: self.beams]:
            before = self.running[place]
            tokens, node = before.node.edges[edge]
            depth = before.depth + len(before.path)
            chosen.append(_Hypothesis(-score, node, tokens, depth, before.slots))
        self.running = chosen


def _largest(values: np.ndarray, count: int) -> list[int]:
    """Indices of the largest finite values, the lower index first among equals."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[np.isfinite(values[order])].tolist()


@torch.inference_mode()
def search(
    adapter: Adapter, root: Node, prompts: Prompts, beams: int, label: str = ""
) -> list[list[tuple[float, list[int]]]]:
    """Per prompt the best `beams` titles, as (log p of title and end, items), best first.

    Enter a mixture before to search with foreign directions. A beam keeps `beams` paths on their
    way beside the complete titles, until none of them can enter the list of the best.
    """
    order = sorted(range(len(prompts.sizes)), key=lambda index: (prompts.sizes[index], index))
    results: list[list[tuple[float, list[int]]]] = [[] for _ in order]
    with tqdm(total=len(order), desc=label, unit="user", leave=False, mininterval=1) as bar:
        for some in pack([prompts.sizes[index] for index in order], _BUDGET):
            indices = [order[place] for place in some]
            searches = [_Search(root, beams, row) for row in range(len(indices))]
            cache, states = prompts.batch(indices)
            _expand(adapter.backbone, searches, states)
            while True:
                going = [place for place, one in enumerate(searches) if one.running]
                if len(going) < _GOING * len(indices) or not going:
                    for index, one in zip(indices, searches, strict=True):
                        results[index] = one.found
                    bar.update(len(indices) - len(going))
                    if not going:
                        break
                    indices = [indices[place] for place in going]
                    searches = [searches[place] for place in going]
                    cache.keep(going)
                lengths = [prompts.sizes[index] for index in indices]
                states = _feed(adapter.backbone, searches, cache, lengths)
                _expand(adapter.backbone, searches, states)
    return results


def _feed(backbone: Backbone, searches: list[_Search], cache: _Cache, lengths: list[int]) -> Tensor:
    """Feed every hypothesis' edge; their normed states, (T, width)."""
    fed = [sum(len(path.fed) for path in one.running) for one in searches]
    width, before = max(fed), cache.slots
    ids, positions, place = [], [], []
    rows = torch.zeros(len(searches), width, dtype=torch.long)
    seen = torch.zeros(len(searches), width, before + width, dtype=torch.bool)
    seen[:, :, : cache.real.shape[1]] = cache.real.cpu()[:, None]
    for user, one in enumerate(searches):
        at = 0
        for path in one.running:
            path.row = len(ids)
            count = len(path.fed)
            own = range(at, at + count)
            rows[user, at : at + count] = torch.arange(len(ids), len(ids) + count)
            place += [user * width + token for token in own]
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
    cache.step(rows.to(device), torch.tensor(place, device=device), ~seen.to(device))
    embedded = backbone.embed(torch.tensor(ids))
    return backbone.normed(backbone.blocks(embedded, torch.tensor(positions), cache)[0])


def _expand(backbone: Backbone, searches: list[_Search], states: Tensor) -> None:
    """Score what follows the fed tokens: the rest of each edge, then the edges behind it."""
    source: list[np.ndarray] = []
    token: list[np.ndarray] = []
    for one in searches:
        for path in one.running:
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
    for one in searches:
        going, scores = [], []
        for path in one.running:
            rest = max(len(path.path) - 1, 0)
            path.score += values[at : at + rest].sum().item()
            at += rest
            if path.node.edges:
                going.append(path)
                scores.append(path.score + values[at : at + len(path.node.first)])
                at += len(path.node.first)
            else:
                one.complete(path.score, path.node.items)
        one.running = going
        if going:
            one.choose(scores)


def ranks(found: list[list[tuple[float, list[int]]]], targets: Sequence[int], items: int):
    """Rank of each target item: its place among the found ones, else that of the whole catalogue.

    Items that the search did not find are tied behind all others, and ties count against the model.
    """
    ranks = []
    for titles, target in zip(found, targets, strict=True):
        scores = np.full(items, -np.inf)
        for score, same in titles:
            scores[same] = score
        ranks.append(rank_of(scores, target))
    return ranks
