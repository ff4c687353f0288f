"""Keys and values of prompts, and of what a search feeds behind them.

The prompts' keys and values below the first adapted block are the same for all methods, rounds and
seeds: they are computed once and kept on disk, as hidden states are. In a search each user has one
cache in which the tokens of all hypotheses lie side by side and see their own ancestors alone: a
prefix is kept once, and nothing is moved when a hypothesis goes on or is dropped.

Shapes: U users of a batch, S slots of a user's cache, N tokens that a step feeds per user (padded),
T rows of a step, h query heads, k key-value heads (g = h / k), d the size of a head.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from fedecider.engine.attention import Layout
from fedecider.engine.backbone import Backbone
from fedecider.engine.hidden_states import (
    FORWARD_TOKENS,
    content_key,
    progress_bar,
    stored_rows,
)
from fedecider.engine.packing import PackedBatch, PromptTree, pack

_GROWTH = 64  # slots by which a cache grows at least


class KVCache:
    """Keys and values of a batch of users, (U, k, S, d) per block; attends for `Backbone.blocks`.

    `used` slots are filled before a step, `slots` with it; `real` (U, S of the prompts) is true
    where a slot holds a token of the user's prompt.
    """

    def __init__(self, blocks: int, starts: Tensor, lengths: Tensor):
        """The first slots are for prompts, whose rows begin at `starts` (U,); `lengths` (U,)."""
        self.users, self.device = len(lengths), lengths.device
        self.used = int(lengths.max())
        self.slots = self.used
        self.store: list[list[Tensor]] = [[] for _ in range(blocks)]
        slot = torch.arange(self.slots, device=self.device)
        self.real = slot < lengths[:, None]
        self._prompt_rows = (starts[:, None] + slot).masked_fill(~self.real, 0)
        self._block = 0
        self._bias: Tensor | None = None

    def prompts(self, block: int, key: Tensor, value: Tensor) -> None:
        """Keys and values (T, k, d) of the prompts' rows."""
        for rows in (key, value):
            shape = (self.users, rows.shape[1], self.used + _GROWTH, rows.shape[2])
            stored = rows.new_zeros(shape)
            stored[:, :, : self.used] = rows[self._prompt_rows].transpose(1, 2)
            self.store[block].append(stored)

    def keep(self, users: list[int]) -> None:
        """Go on with these users alone, in this order."""
        chosen = torch.tensor(users, device=self.device)
        self.users, self.real = len(users), self.real[chosen]
        self.store = [[x[chosen] for x in pair] for pair in self.store]

    def step(self, rows: Tensor, of_row: Tensor, hidden: Tensor) -> None:
        """What the coming forward feeds, into the next N slots of every user.

        rows (U, N): the row of each token, padding any; of_row (T,): index of each row in rows,
        flat; hidden (U, N, slots + N): true where a token does not see a slot.
        """
        self._rows, self._of_row, self._hidden = rows, of_row, hidden
        self._block, self._bias = 0, None
        self.slots, self.used = self.slots + rows.shape[1], self.slots

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (T, h, d), key and value (T, k, d) to (T, h, d), over the users' own caches."""
        block, self._block = self._block, self._block + 1
        users, width = self._rows.shape
        heads, size, kv_heads = query.shape[1], query.shape[2], key.shape[1]
        group_size = heads // kv_heads
        flat = self._rows.flatten()
        keys, values = (self._extend(block, part, rows) for part, rows in enumerate((key, value)))
        q = query[flat].view(users, width, kv_heads, group_size, size).permute(0, 2, 3, 1, 4)
        q = q.reshape(users * kv_heads, group_size * width, size)
        if self._bias is None:  # the same for every block of a step
            unseen = self._hidden[:, None, None].expand(-1, kv_heads, group_size, -1, -1)
            bias = torch.zeros(unseen.shape, dtype=q.dtype, device=q.device)
            self._bias = bias.masked_fill_(unseen, float("-inf")).view(*q.shape[:2], -1)
        probs = torch.baddbmm(self._bias, q, keys.transpose(1, 2), alpha=scale).softmax(-1)
        out = torch.bmm(probs, values).view(users, heads, width, size).transpose(1, 2)
        return out.reshape(users * width, heads, size)[self._of_row]

    def _extend(self, block: int, part: int, rows: Tensor) -> Tensor:
        """Write fed rows (T, k, d) behind a block's keys (part 0) or values (1); (U k, S, d)."""
        users, width = self._rows.shape
        kv_heads, size = rows.shape[1:]
        stored = self.store[block][part]
        if stored.shape[2] < self.slots:
            growth = max(self.slots - stored.shape[2], _GROWTH)
            stored = torch.cat([stored, stored.new_zeros(users, kv_heads, growth, size)], dim=2)
            self.store[block][part] = stored
        fed = rows[self._rows.flatten()].view(users, width, kv_heads, size).transpose(1, 2)
        stored[:, :, self.used : self.slots] = fed
        return stored.flatten(0, 1)[:, : self.slots]


class _Recorder:
    """Attends as another layout does and keeps the keys and values of every block."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As the other layout."""
        self.pairs.append((key, value))
        return self.layout.attend(query, key, value, scale)


class PromptCache:
    """Prompts with their keys and values below the first adapted block, kept on disk."""

    def __init__(
        self, backbone: Backbone, prompts: Sequence[list[int]], first: int, label: str = "prompts"
    ):
        """Computes what is not stored yet, under a progress bar with this label."""
        self.backbone, self.first = backbone, first
        self.trees = [PromptTree(prompt) for prompt in prompts]
        self.sizes = [tree.size for tree in self.trees]
        self.heads, self.size = backbone.key_shape
        self._ends = list(accumulate(self.sizes))
        self._stored = self._read(label) if first and prompts else None

    def batch(self, indices: Sequence[int]) -> tuple[KVCache, Tensor]:
        """The cache of these prompts, filled, and the normed state of each one's last token."""
        backbone = self.backbone
        batch = PackedBatch(self.trees[index] for index in indices)
        device = backbone.device
        starts = torch.tensor(batch.offsets, device=device)
        lengths = torch.tensor([self.sizes[index] for index in indices], device=device)
        cache = KVCache(len(backbone.layers), starts, lengths)
        if self._stored is None:
            states = backbone.embed(batch.ids)[0]
        else:
            ranges = [slice(self._ends[i] - self.sizes[i], self._ends[i]) for i in indices]
            rows = torch.cat([self._stored[tokens] for tokens in ranges]).to(device)
            widths = [self.heads * self.size] * 2 * self.first
            *parts, states = rows.split([*widths, backbone.width], 1)
            parts = [x.unflatten(1, (self.heads, self.size)) for x in parts]
            for block in range(self.first):
                cache.prompts(block, parts[2 * block], parts[2 * block + 1])
        recorder = _Recorder(batch)
        out = backbone.blocks(states[None], batch.positions, recorder, first=self.first)[0]
        for block, (key, value) in enumerate(recorder.pairs, self.first):
            cache.prompts(block, key, value)
        return cache, backbone.normed(out[starts + lengths - 1])

    def _read(self, label: str) -> Tensor:
        """One row per token: keys and values of each lower block, then the state above them."""
        backbone = self.backbone

        def compute() -> Iterator[Tensor]:
            with progress_bar(sum(self.sizes), label) as bar:
                for indices in pack(self.sizes, FORWARD_TOKENS):
                    batch = PackedBatch(self.trees[index] for index in indices)
                    recorder, states = _Recorder(batch), backbone.embed(batch.ids)
                    states = backbone.blocks(states, batch.positions, recorder, last=self.first)[0]
                    flat = [x.flatten(1) for pair in recorder.pairs for x in pair]
                    yield torch.cat([*flat, states], 1)
                    bar.update(len(states))

        width = self.first * 2 * self.heads * self.size + backbone.width
        key = content_key(backbone, self.trees, self.first, "keys and values")
        return stored_rows(key, (sum(self.sizes), width), backbone.dtype, compute)
