"""Titles and histories as tokens, and which of these tokens are targets.

Two templates of the prompt (method, section 1):

- `history` (default): a user's titles are one sequence `start t1; t2; ... tk;` and *every* title
  after the first is a target given those before it: one forward gives k - 1 training signals.
- `instruction` (BIGRec's form, arXiv 2308.08434; the wording is ours): an instruction, the quoted
  history, one quoted target, so every target needs an example of its own.

A title's tokens end with an end token (`;` or the closing quote) that is part of the target:
without it a generated title would never stop. Pieces are tokenised separately, so a title has the
same tokens wherever it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedecider.domains import Domain
from fedecider.engine.packing import PackedBatch, PromptTree


class Example(NamedTuple):
    """Token ids and the indices of those that are targets, each predicted from the one before."""

    ids: list[int]
    targets: list[int]
    num_targets: int  # target titles


class PromptTemplate(Protocol):
    """How a history becomes a prompt, and a user's titles become examples."""

    end: int  # the token that ends a title

    def title(self, text: str) -> list[int]:
        """Tokens of a title, without its end."""
        ...

    def prompt(self, titles: Sequence[list[int]]) -> list[int]:
        """Prompt of a history of tokenised titles, oldest first; may be empty."""
        ...

    def examples(self, titles: Sequence[list[int]], history: int) -> list[Example]:
        """Examples of a user's tokenised titles, the last one first."""
        ...


class HistoryTemplate:
    """`start t1; t2; ... tk;` with every title after the first a target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
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
        examples = []
        stop = len(titles)
        while stop >= 2:
            window = titles[max(0, stop - history - 1) : stop]
            ids = [self.start]
            targets: list[int] = []
            for position, title in enumerate(window):
                piece = title + [self.end]
                if position:
                    targets += range(len(ids), len(ids) + len(piece))
                ids += piece
            examples.append(Example(ids, targets, len(window) - 1))
            stop -= len(window) - 1
        return examples


class InstructionTemplate:
    """An instruction, the quoted history, one quoted target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
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
        """One example per title after the first, the last one first."""
        examples = []
        for position in range(len(titles) - 1, 0, -1):
            ids = self.prompt(titles[max(0, position - history) : position])
            piece = titles[position] + [self.end]
            targets = list(range(len(ids), len(ids) + len(piece)))
            examples.append(Example(ids + piece, targets, 1))
        return examples


TEMPLATES: dict[str, type[HistoryTemplate] | type[InstructionTemplate]] = {
    "history": HistoryTemplate,
    "instruction": InstructionTemplate,
}


def make_template(name: str, tokenizer: PreTrainedTokenizerBase, start: int) -> PromptTemplate:
    """The template of that name.

    Raises ValueError if its end is not a single token of this tokenizer.
    """
    try:
        return TEMPLATES[name](tokenizer, start)
    except ValueError as error:
        raise ValueError(
            f"the tokenizer must have one token for the end of a title in the {name} template"
        ) from error


class Catalogue:
    """A domain's titles as tokens of one template."""

    def __init__(self, domain: Domain, template: PromptTemplate):
        self.domain, self.template = domain, template
        self.tokens: dict[str, list[int]] = {
            item: template.title(title) for item, title in domain.items.items()
        }

    def prompt(self, user: str, split: str, history: int) -> list[int]:
        """The prompt of a user: the last `history` titles before the item of this split."""
        items = self.domain.history(user, split)[-history:]
        return self.template.prompt([self.tokens[item] for item in items])

    def candidates(self, user: str, split: str) -> list[str]:
        """The held-out item first, then its stored negatives."""
        return [self.domain.target(user, split), *self.domain.negatives[split, user]]

    def training_examples(self, user: str, history: int, windows: int | None) -> list[Example]:
        """The latest `windows` examples of a user's training titles; None: all."""
        titles = [self.tokens[item] for item in self.domain.train[user]]
        return self.template.examples(titles, history)[:windows]

    def validation_example(self, user: str, history: int) -> Example:
        """The user's validation title as the one target behind its prompt."""
        prompt = self.prompt(user, "valid", history)
        piece = self.tokens[self.domain.valid[user]] + [self.template.end]
        return Example(prompt + piece, list(range(len(prompt), len(prompt) + len(piece))), 1)


class Targets(NamedTuple):
    """Rows of a batch whose next token is a target, and those tokens, (M,) each."""

    rows: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Both on that device."""
        return Targets(self.rows.to(device), self.tokens.to(device))


@dataclass(frozen=True)
class ExampleSet:
    """Examples of a client; `trees` are their inputs (all tokens but the last)."""

    examples: list[Example]

    @property
    def trees(self) -> list[PromptTree]:
        """Inputs, in the order of the examples."""
        return [PromptTree(example.ids[:-1]) for example in self.examples]

    @property
    def num_targets(self) -> int:
        """Number of target titles, the client's weight in a weighted average."""
        return sum(example.num_targets for example in self.examples)

    def targets(self, indices: Sequence[int], batch: PackedBatch) -> Targets:
        """Targets of the examples with these indices, which the batch holds in this order."""
        rows, tokens = [], []
        for index, offset in zip(indices, batch.offsets, strict=True):
            example = self.examples[index]
            rows += [offset + target - 1 for target in example.targets]
            tokens += [example.ids[target] for target in example.targets]
        return Targets(torch.tensor(rows), torch.tensor(tokens))
