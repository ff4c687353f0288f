"""The rows of the benchmark's table: what is compared with what, and the ratio that is asked."""

from typing import Any

import pandas as pd
import torch

from notebooks.benchmark import timing
from notebooks.benchmark.bench import Bench


def rows(
    bench: Bench,
    training: pd.DataFrame,
    ranking: pd.DataFrame,
    catalogue: pd.DataFrame,
    server: pd.DataFrame,
    memory: pd.DataFrame,
    top_layers: int = 8,
) -> list[dict[str, Any]]:
    """What `figures.benchmark.summary` takes, one row per comparison.

    The frames are those of `training.times`, `ranking.list_times`, `ranking.catalogue_times`,
    `server.times` and `growth.memory`.
    """
    top = f"top {top_layers}"
    wanted = [
        ("training", training, "all layers", "peer", 4.0),
        ("frozen lower blocks", training, top, "all layers", 2.0),
        ("stored states", training, top, f"{top}, states not stored", 1.0),
        ("ranking, 1 + 99", ranking, "tree", "peer", 15.0),
        ("ranking, 1 + 99", ranking, "tree, states not stored", "peer", 1.0),
        ("whole catalogue", catalogue, "trie", "grounding", 5.0),
        ("whole catalogue", catalogue, "trie, states not stored", "grounding", 1.0),
        ("server", server, "gram", "peer", 50.0),
    ]
    compared = []
    for part, times, ours, against, at_least in wanted:
        rate = bench.matmul_rate
        if part == "server":
            rate = timing.matmul_rate(torch.float32, torch.device("cpu"))
        variant = times[times["variant"] == ours]
        compared.append(
            {
                "part": part,
                "ours": ours,
                "against": against,
                "ratios": timing.ratios(times, ours, against),
                "at_least": at_least,
                "limit_share": (variant["flops"] / variant["seconds"]).median() / rate,
            }
        )
    return [*compared, _memory(memory)]


def _memory(memory: pd.DataFrame) -> dict[str, Any]:
    """As many models as clients would need that many times the memory of one."""
    first, last = memory.iloc[0], memory.iloc[-1]
    several, times_as_many = int(last["clients"]), last["clients"] / first["clients"]
    return {
        "part": f"memory, {several} clients",
        "ours": "one frozen model",
        "against": "a model per client",
        "ratios": pd.Series([times_as_many * first["peak_mib"] / last["peak_mib"]]),
        "at_least": times_as_many / 1.2,
        "limit_share": float("nan"),
    }
