"""Candidate lists: for each user's validation and test item, items that the user never met."""

from collections.abc import Iterator

import numpy as np


def draw(seen: np.ndarray, items: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` distinct item numbers out of range(items) that are not in `seen`, in random order.

    seen: distinct item numbers. Uniform without replacement; all unseen items if they are fewer.
    Memory and time do not grow with the catalogue beyond what one draw needs.
    """
    seen = np.sort(seen)
    unseen = items - len(seen)
    ranks = generator.choice(unseen, min(count, unseen), replace=False)
    # The r-th unseen item is r plus the number of seen items at or before it.
    return ranks + np.searchsorted(seen - np.arange(len(seen)), ranks, side="right")


def user_lists(
    histories: Iterator[tuple[int, np.ndarray]], items: int, count: int, seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each user (number, history in order): (number, history, valid list, test list).

    A user's lists come from a generator of their own, seeded with (seed, user number); users and
    items are numbered in the order of their ids, so no file order enters.
    """
    for user, history in histories:
        generator = np.random.default_rng([seed, user])
        valid = draw(history, items, count, generator)
        yield user, history, valid, draw(history, items, count, generator)
