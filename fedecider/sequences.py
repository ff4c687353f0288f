"""Histories to tokens and targets.

Two forms of the prompt (method, section 1):

- `history` (default): a user's titles are one sequence `start t1; t2; ... tk;` and *every* title
  after the first is a target given those before it: one forward gives k - 1 training signals.
- `instruction` (BIGRec's form, arXiv 2308.08434; the wording is ours): an instruction, the quoted
  history, one quoted target, so every target needs an example of its own.

A title's tokens end with an end token (`;` or the closing quote) that is part of the target:
without it a generated title would never stop. Pieces are tokenised apart, so a title has the same
tokens wherever it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedecider.engine.packing import PackedBatch, PromptTree


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


@dataclass(frozen=True)
class TrainingSet:
    """A client's examples; `rows` are their inputs (all tokens but the last)."""

    examples: list[Example]

    @property
    def rows(self) -> list[PromptTree]:
        """Inputs, in the order of the examples."""
        return [PromptTree(example.ids[:-1]) for example in self.examples]

    @property
    def titles(self) -> int:
        """Number of targets, the client's weight in a weighted average."""
        return sum(example.titles for example in self.examples)

    def targets(self, indices: Sequence[int], batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Positions in the batch's row whose next token is a target, and those tokens, (M,)."""
        where, what = [], []
        for index, offset in zip(indices, batch.offsets, strict=True):
            example = self.examples[index]
            where += [offset + target - 1 for target in example.targets]
            what += [example.ids[target] for target in example.targets]
        return torch.tensor(where), torch.tensor(what)
