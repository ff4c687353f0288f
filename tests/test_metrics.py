"""Metrics against their definitions, ties, and the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedecider.metrics import METRICS, paired_bootstrap, per_user, rank_of, summarise


def test_metrics_of_known_ranks():
    found = summarise(np.array([1, 2, 6, 11]))
    expected = {
        "hit@1": 1 / 4,
        "hit@5": 2 / 4,
        "hit@10": 3 / 4,
        "ndcg@5": (1 + 1 / np.log2(3)) / 4,
        "ndcg@10": (1 + 1 / np.log2(3) + 1 / np.log2(7)) / 4,
        "mrr@10": (1 + 1 / 2 + 1 / 6) / 4,
    }
    assert found == pytest.approx(expected) and list(found) == list(METRICS)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_ties_count_against_the_target(values, data):
    target = data.draw(st.integers(0, len(values) - 1))
    rank = rank_of(np.array(values, float), target)
    assert rank == sum(value >= values[target] for value in values)


def test_constant_scores_are_the_worst_rank():
    assert rank_of(np.zeros(100), 0) == 100


def test_nan_and_bad_names_are_refused():
    with pytest.raises(ValueError, match="nan"):
        rank_of(np.array([0.0, np.nan]), 0)
    with pytest.raises(ValueError, match="got 'recall@5'"):
        per_user(np.array([1]), "recall@5")
    with pytest.raises(ValueError, match="ranks start at 1, got 0"):
        per_user(np.array([0]), "hit@1")


def test_bootstrap_tells_a_difference_from_noise():
    generator = np.random.default_rng(0)
    first = generator.integers(1, 30, 400)
    same = paired_bootstrap(-first, -first, samples=2000)
    assert same["difference"] == 0 and same["p"] == 1.0
    better = paired_bootstrap(-np.maximum(1, first - 4), -first, samples=2000)
    assert better["difference"] > 0 and better["low"] > 0 and better["p"] < 0.01
    worse = paired_bootstrap(-first, -np.maximum(1, first - 4), samples=2000)
    assert worse["difference"] == pytest.approx(-better["difference"]) and worse["high"] < 0
    other = generator.permutation(first)
    assert paired_bootstrap(first, other, samples=2000)["p"] > 0.05
    assert paired_bootstrap(first, other) == paired_bootstrap(first, other)
    with pytest.raises(ValueError, match="400, 3"):
        paired_bootstrap(first, first[:3])
