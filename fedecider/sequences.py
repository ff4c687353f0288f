"""Histories to tokens, targets and packed rows.

Two forms of the prompt (method, section 1):

- `history` (default): a user's titles are one sequence `start t1; t2; ... tk;` and *every* title
  after the first is a target given those before it: one forward gives k - 1 training signals.
- `instruction` (BIGRec's form, arXiv 2308.08434; the wording is ours): an instruction, the quoted
  history, one quoted target, so every target needs an example of its own.

A title's tokens end with an end token (`;` or the closing quote) that is part of the target:
without it a generated title would never stop. Pieces are tokenised apart, so a title has the same
tokens wherever it stands.

Sequences are packed without padding into one row (a `Forest`). A tree of the forest is a prompt
and, for ranking, branches behind it: each branch sees the prompt and itself, and its positions go
on from the prompt's end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedecider.attention import Begun, Packed, seen_by_all


class Tree(NamedTuple):
    """Token ids of a prompt and of the branches that continue it."""

    prompt: list[int]
    branches: Sequence[list[int]] = ()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


class Forest:
    """Trees packed into one row of T = sum of sizes tokens; decides who attends to whom."""

    def __init__(self, trees: Iterable[Tree]):
        self.trees = list(trees)
        ids: list[int] = []
        positions: list[int] = []
        self.offsets: list[int] = []
        starts: list[int] = []  # of the branches
        for tree in self.trees:
            self.offsets.append(len(ids))
            prompt = len(tree.prompt)
            ids += tree.prompt
            positions += range(prompt)
            for branch in tree.branches:
                starts.append(len(ids))
                ids += branch
                positions += range(prompt, prompt + len(branch))
        self.ids = torch.tensor(ids, dtype=torch.long)
        self.positions = torch.tensor(positions, dtype=torch.long)
        self._prompts = Packed(self.offsets, [len(tree.prompt) for tree in self.trees])
        lengths = [len(branch) for tree in self.trees for branch in tree.branches]
        self._branches = Packed(starts, lengths, max(lengths)) if starts else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention within each tree: q (T, h, d), k and v (T, k, d) to (T, h, d).

        Branches attend to themselves and to their prompt under one softmax; they are for scoring,
        so a row with branches has no gradient.
        """
        out = self._prompts.attend(query, key, value, scale)
        if self._branches is None:
            return out
        if torch.is_grad_enabled() and query.requires_grad:
            raise RuntimeError("a row with branches is for scoring and has no gradient")
        own = self._branches.begun(query, key, value, scale)
        for tree, offset in zip(self.trees, self.offsets, strict=True):
            prompt = slice(offset, offset + len(tree.prompt))
            behind = slice(prompt.stop, offset + tree.size)
            if behind.stop > behind.start:
                shared = seen_by_all(query[behind], key[prompt], value[prompt], scale)
                out[behind] = Begun(*(x[behind] for x in own)).joined(shared)
        return out


class Rows(Forest):
    """Sequences of the given lengths; a forest of prompts only, without token ids."""

    def __init__(self, lengths: Iterable[int]):
        super().__init__(Tree([0] * length) for length in lengths)


class Example(NamedTuple):
    """Token ids and the indices of those that are targets, each predicted from the one before."""

    ids: list[int]
    targets: list[int]
    titles: int


class HistoryForm:
    """`start t1; t2; ... tk;` with every title after the first a target."""

    def __init__(self, tokenizer, start: int):
        self.tokenizer, self.start = tokenizer, start
        (self.end,) = tokenizer(";", add_special_tokens=False)["input_ids"]

    def title(self, text: str) -> list[int]:
        """Tokens of a title, without its end; a `;` inside would end it and becomes a comma."""
        text = " " + text.replace(";", ",")
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, titles: Sequence[list[int]]) -> list[int]:
        """Prompt of a history of tokenised titles, oldest first; `[start]` for an empty one."""
        ids = [self.start]
        for title in titles:
            ids += title + [self.end]
        return ids

    def examples(self, titles: Sequence[list[int]], history: int) -> list[Example]:
        """Windows of at most history + 1 titles, the last one first, each title a target once.

        Neighbouring windows share one title, which is context in the later and target in the
        earlier one.
        """
        found = []
        stop = len(titles)
        while stop >= 2:
            window = titles[max(0, stop - history - 1) : stop]
            ids, targets = [self.start], []
            for place, title in enumerate(window):
                piece = title + [self.end]
                if place:
                    targets += range(len(ids), len(ids) + len(piece))
                ids += piece
            found.append(Example(ids, targets, len(window) - 1))
            stop -= len(window) - 1
        return found


class InstructionForm:
    """An instruction, the quoted history, one quoted target."""

    def __init__(self, tokenizer, start: int):
        self.tokenizer, self.start = tokenizer, start
        self._open, self._close = self._tokens(' "'), self._tokens('"')
        self._head = self._tokens(
            "Instruction: Name the title that this user chooses next.\n"
            "Titles chosen so far, oldest first:"
        )
        self._tail = self._tokens('\nNext title: "')
        (self.end,) = self._close

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def title(self, text: str) -> list[int]:
        """Tokens of a title, without its end; a double quote inside becomes a single one."""
        return self._tokens(text.replace('"', "'"))

    def prompt(self, titles: Sequence[list[int]]) -> list[int]:
        """Prompt of a history of tokenised titles, oldest first; may be empty."""
        ids = [self.start, *self._head]
        for title in titles:
            ids += self._open + title + self._close
        return ids + self._tail

    def examples(self, titles: Sequence[list[int]], history: int) -> list[Example]:
        """One example a title after the first, the last one first."""
        found = []
        for place in range(len(titles) - 1, 0, -1):
            ids = self.prompt(titles[max(0, place - history) : place])
            piece = titles[place] + [self.end]
            found.append(Example(ids + piece, list(range(len(ids), len(ids) + len(piece))), 1))
        return found


FORMS = {"history": HistoryForm, "instruction": InstructionForm}


def make_form(name: str, tokenizer, start: int):
    """The form of the given name; ValueError if its end is not a single token of this tokenizer."""
    try:
        return FORMS[name](tokenizer, start)
    except ValueError as error:
        raise ValueError(
            f"the tokenizer must have one token for the end of a title in the {name} form"
        ) from error


def pack(sizes: Sequence[int], budget: int, generator: torch.Generator | None = None):
    """Split indices into packs of at most `budget` tokens (a larger one stands alone).

    In the given order, or shuffled by the generator. Returns a list of lists of indices.
    """
    order = range(len(sizes))
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


@dataclass(frozen=True)
class TrainingSet:
    """A client's examples; `rows` are their inputs (all tokens but the last)."""

    examples: list[Example]

    @property
    def rows(self) -> list[Tree]:
        """Inputs, in the order of the examples."""
        return [Tree(example.ids[:-1]) for example in self.examples]

    @property
    def titles(self) -> int:
        """Number of targets, the client's weight in a weighted average."""
        return sum(example.titles for example in self.examples)

    def targets(self, indices: Sequence[int], forest: Forest) -> tuple[Tensor, Tensor]:
        """Positions in the forest's row whose next token is a target, and those tokens, (M,)."""
        where, what = [], []
        for index, offset in zip(indices, forest.offsets, strict=True):
            example = self.examples[index]
            where += [offset + target - 1 for target in example.targets]
            what += [example.ids[target] for target in example.targets]
        return torch.tensor(where), torch.tensor(what)
