"""Ranks to Hit, NDCG and MRR (method, section 6), and the paired bootstrap over users."""

import numpy as np

METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr@10")


def rank_of(scores: np.ndarray, target: int) -> int:
    """1-based rank of `scores[target]`, higher is better; ties count against it.

    The number of items whose score is at least its own. Raises ValueError for a nan among scores.
    """
    if np.isnan(scores).any():
        raise ValueError("scores to rank by must not contain nan")
    return int((scores >= scores[target]).sum())


def per_user(ranks: np.ndarray, metric: str) -> np.ndarray:
    """The metric of each user, in [0, 1]; one relevant item per user.

    hit@k = [rank <= k], ndcg@k = [rank <= k] / log2(1 + rank), mrr@k = [rank <= k] / rank.
    """
    ranks = np.asarray(ranks, dtype=float)
    if ranks.size and ranks.min() < 1:
        raise ValueError(f"ranks start at 1, got {ranks.min():g}")
    name, _, cut = metric.partition("@")
    gain = {"hit": np.ones_like(ranks), "ndcg": 1 / np.log2(1 + ranks), "mrr": 1 / ranks}
    if name not in gain or not cut.isdigit():
        raise ValueError(f"metric must be hit@k, ndcg@k or mrr@k, got {metric!r}")
    return np.where(ranks <= int(cut), gain[name], 0.0)


def summarise(ranks: np.ndarray) -> dict[str, float]:
    """Every metric of METRICS, averaged over users."""
    return {metric: float(per_user(ranks, metric).mean()) for metric in METRICS}


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, samples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean difference first - second of two values per user, with a 95 % interval and p.

    Aligned by user, one entry each: several seeds of a user are averaged before, since they are no
    independent observations. Users are drawn with replacement; p is two-sided, twice the smaller
    share of resampled differences on either side of 0 (at least 1 / samples), capped at 1.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"paired values must match and not be empty: {len(first)}, {len(second)}")
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    for start in range(0, samples, 500):
        stop = min(start + 500, samples)
        draw = generator.integers(0, len(difference), (stop - start, len(difference)))
        means[start:stop] = difference[draw].mean(axis=1)
    tail = min((means <= 0).mean(), (means >= 0).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, max(2 * tail, 1 / samples))),
    }
