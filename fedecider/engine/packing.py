"""Prompts and their continuations, packed without padding into one row.

A tree is a prompt and, for ranking, continuations behind it: each continuation sees the prompt and
itself, and its positions go on from the prompt's end.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedecider.engine.attention import (
    AttentionState,
    PackedAttention,
    merge_states,
    shared_prefix_attention,
)


class PromptTree(NamedTuple):
    """Token ids of a prompt and of the sequences that continue it, each on its own."""

    prompt: list[int]
    continuations: Sequence[list[int]] = ()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.prompt) + sum(len(tokens) for tokens in self.continuations)

    @property
    def ids(self) -> list[int]:
        """All tokens in the order of a packed row: the prompt, then every continuation."""
        return [*self.prompt, *(token for tokens in self.continuations for token in tokens)]


class PackedBatch:
    """Trees packed into one row of T = sum of sizes tokens; decides who attends to whom.

    `ids` and `positions` are (T,), `offsets` the first position of each tree in the row. `states`
    (T, width), where given, are the row's hidden states below the first block that is yet to run.
    """

    def __init__(self, trees: Iterable[PromptTree], states: Tensor | None = None):
        self.trees = list(trees)
        self._states = states
        ids: list[int] = []
        positions: list[int] = []
        self.offsets: list[int] = []
        starts: list[int] = []  # of the continuations
        for tree in self.trees:
            self.offsets.append(len(ids))
            prompt = len(tree.prompt)
            ids += tree.prompt
            positions += range(prompt)
            for tokens in tree.continuations:
                starts.append(len(ids))
                ids += tokens
                positions += range(prompt, prompt + len(tokens))
        self.ids = torch.tensor(ids, dtype=torch.long)
        self.positions = torch.tensor(positions, dtype=torch.long)
        self._prompts = PackedAttention(self.offsets, [len(tree.prompt) for tree in self.trees])
        lengths = [len(tokens) for tree in self.trees for tokens in tree.continuations]
        self._continuations = PackedAttention(starts, lengths, max(lengths)) if starts else None

    @property
    def states(self) -> Tensor:
        """Hidden states (T, width) of the row; ValueError if it was packed without them."""
        if self._states is None:
            raise ValueError("this batch was packed from tokens alone and holds no hidden states")
        return self._states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention within each tree: q (T, h, d), k and v (T, k, d) to (T, h, d).

        Continuations attend to themselves and to their prompt under one softmax; they are for
        scoring: RuntimeError if a row with continuations is asked for a gradient.
        """
        out = self._prompts.attend(query, key, value, scale)
        if self._continuations is None:
            return out
        if torch.is_grad_enabled() and query.requires_grad:
            raise RuntimeError("a row with continuations is for scoring and has no gradient")
        own = self._continuations.attention_state(query, key, value, scale)
        for tree, offset in zip(self.trees, self.offsets, strict=True):
            prompt = slice(offset, offset + len(tree.prompt))
            behind = slice(prompt.stop, offset + tree.size)
            if behind.stop > behind.start:
                prefix = shared_prefix_attention(query[behind], key[prompt], value[prompt], scale)
                out[behind] = merge_states(AttentionState(*(x[behind] for x in own)), prefix)
        return out


def pack(
    sizes: Sequence[int], budget: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Split the indices of `sizes` into packs of at most `budget` tokens.

    What is larger than the budget stands alone. In the given order, or shuffled by the generator.
    """
    order: Iterable[int] = range(len(sizes))
    if generator is not None:
        order = torch.randperm(len(sizes), generator=generator).tolist()
    packs: list[list[int]] = []
    room = 0
    for index in order:
        if not packs or sizes[index] > room:
            packs.append([])
            room = budget
        packs[-1].append(index)
        room -= sizes[index]
    return packs
