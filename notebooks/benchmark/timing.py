"""Jobs run alternately and repeated, so that what disturbs one disturbs the other as well."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import pandas as pd
import torch
from tqdm import tqdm

Job = Callable[[], AbstractContextManager[Callable[[], int]]]


def alternate(part: str, jobs: Mapping[str, Job], repeats: int) -> pd.DataFrame:
    """Run every job once to warm up, then all in turn `repeats` times.

    A job is a context that sets up and gives the function to time, which returns how many units it
    did. Columns: part, variant, run, units, seconds, rate (units per second).
    """
    rows = []
    with tqdm(total=(repeats + 1) * len(jobs), desc=part, leave=False) as bar:
        for run in range(repeats + 1):
            for variant, job in jobs.items():
                bar.set_postfix_str(variant)
                with job() as work:
                    begin = time.perf_counter()
                    units = work()
                    seconds = time.perf_counter() - begin
                if run:
                    rows.append((part, variant, run, units, seconds, units / seconds))
                bar.update()
    return pd.DataFrame(rows, columns=["part", "variant", "run", "units", "seconds", "rate"])


def ratios(times: pd.DataFrame, ours: str, peer: str) -> pd.Series:
    """Rate of one variant over that of another, one value per run."""
    rates = times.pivot(index="run", columns="variant", values="rate")
    return rates[ours] / rates[peer]


def matmul_rate(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Floating-point operations per second of a large matmul: the limit of this machine."""
    left = torch.randn(2048, 576, device=device).to(dtype)
    right = torch.randn(1536, 576, device=device).to(dtype)
    best = 0.0
    with torch.inference_mode():
        for _ in range(repeats):
            begin = time.perf_counter()
            for _ in range(20):
                torch.nn.functional.linear(left, right)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rate = 20 * 2 * left.shape[0] * right.numel() / (time.perf_counter() - begin)
            best = max(best, rate)
    return best
