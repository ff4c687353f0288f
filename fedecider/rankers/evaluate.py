"""Ranks of the chosen models on the test users; the test split is read here, and once."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from fedecider import checkpoint, integrity, runs
from fedecider.client import Client
from fedecider.config import RunConfig
from fedecider.domains import Domain
from fedecider.methods.base import CollaborativeFilter
from fedecider.rankers import RANKERS, Ranking
from fedecider.recorder import Recorder

_COLUMNS = ["domain", "method", "protocol", "ranker", "user_id", "rank"]

Choices = dict[str, Any]  # what validation chose


def rank_client(client: Client) -> tuple[pd.DataFrame, Choices]:
    """A client's test users ranked by every configured ranker.

    One row per ranker and user: domain, method, protocol, ranker, user_id, rank.
    """
    data = client.data
    ranking = Ranking(data, client.best.model, client.adapter, client.method)
    frames: list[pd.DataFrame] = []
    choices: Choices = {}
    for name in client.config.ranking.rankers:
        ranker = RANKERS[name]
        ranks, chosen = ranker.rank(ranking)
        choices |= chosen
        key = (client.name, client.config.method, ranker.protocol, name)
        frames.append(_frame(key, data.test_users, ranks))
    return _joined(frames), {**choices, "best_round": client.best.round}


def rank_domain(
    method: CollaborativeFilter, domain: Domain, config: RunConfig
) -> tuple[pd.DataFrame, Choices]:
    """The same for a method without a language model, under the protocols of the rankers."""
    protocols = dict.fromkeys(RANKERS[name].protocol for name in config.ranking.rankers)
    if not protocols:
        return _joined([]), {}
    ranks, choices = method.rank(domain, list(protocols))
    frames = [
        _frame((domain.name, config.method, protocol, config.method), domain.users["test"], values)
        for protocol, values in ranks.items()
    ]
    return _joined(frames), choices


def write_ranks(
    config: RunConfig,
    method: object,
    clients: Sequence[Client] | Sequence[Domain],
    recorder: Recorder,
) -> None:
    """Rank for every client, or domain where no model is trained, and finish the run folder."""
    begin, folder = time.perf_counter(), config.folder
    frames, choices = [], {}
    for client in tqdm(clients, desc=f"ranking {config.method}", unit="client"):
        if isinstance(client, Client):
            frame, chosen = rank_client(client)
            path = folder / "adapters" / client.name
            checkpoint.save_model(path, client.best.model, client.adapter, config)
        else:
            assert isinstance(method, CollaborativeFilter)
            frame, chosen = rank_domain(method, client, config)
        frames.append(frame)
        choices[client.name] = chosen
        recorder.events.append("evaluated", client=client.name, **chosen)
    ranks = _joined(frames)
    with runs.atomic(folder / "ranks.parquet") as beside:
        ranks.to_parquet(beside, index=False)
    runs.write_csv(folder / "metrics.csv", runs.metrics_of(ranks))
    recorder.write()
    result = {
        "config": config.stored(),
        "versions": runs.versions(),
        "choices": choices,
        "ranking_seconds": round(time.perf_counter() - begin, 1),
        "finished": runs.now(),
        "files": integrity.digests(folder),
    }
    recorder.events.append("finished", time=result["finished"])
    integrity.write_sealed(folder / "result.json", result)


def _frame(
    key: tuple[str, str, str, str], users: Sequence[str], ranks: Iterable[int]
) -> pd.DataFrame:
    rows = [(*key, user, int(rank)) for user, rank in zip(users, ranks, strict=True)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The frames as one; with columns of the right types where there is none."""
    if frames:
        return pd.concat(frames, ignore_index=True)
    empty = pd.DataFrame({column: pd.Series(dtype=str) for column in _COLUMNS})
    return empty.astype({"rank": int})
