"""Keys and values of prompts, and of what a search feeds behind them.

The prompts' keys and values below the first adapted block are the same for all methods, rounds and
seeds: they are computed once and kept on disk, as trunk states are. In a search each user has one
cache in which the tokens of all hypotheses lie side by side and see their own ancestors alone: a
prefix is kept once, and nothing is moved when a hypothesis goes on or is dropped.

Shapes: U users of a batch, S slots of a user's cache, N tokens that a step feeds a user (padded),
T rows of a step, h query heads, k key-value heads, d the size of a head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.backbone import Backbone
from fedecider.sequences import Forest, Tree, pack
from fedecider.trunk import states_key, stored

_BUDGET = 2048  # tokens a forward, where keys and values are computed to be kept
_ROOM = 64  # slots by which a cache grows


class Cache:
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

    def batch(self, indices: Sequence[int]) -> tuple[Cache, Tensor]:
        """The cache of these prompts, filled, and the normed state of each one's last token."""
        backbone = self.backbone
        forest = Forest(self.trees[index] for index in indices)
        device = backbone.device
        starts = torch.tensor(forest.offsets, device=device)
        lengths = torch.tensor([self.sizes[index] for index in indices], device=device)
        cache = Cache(len(backbone.layers), starts, lengths)
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
