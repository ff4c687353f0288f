"""Small prepared domains, runs on the tiny model, and a federation that a test drives by rounds."""

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_prep import folders
from fedecider.adapter import Adapter
from fedecider.client import Client, make_adapter
from fedecider.config import RunConfig
from fedecider.direction import LowRank
from fedecider.domains import read_domains
from fedecider.engine.backbone import Backbone, load
from fedecider.methods import make
from fedecider.mixture import ClientModel
from fedecider.recorder import Recorder
from fedecider.rounds import play_round
from fedecider.server import Server

_WORDS = ["dragon", "garden", "silver", "harbour", "moon", "paper", "winter", "engine", "cat"]


def write_domain(folder: Path, seed: int, users: int = 12, items: int = 30, history: int = 8):
    """A prepared domain in the format of data_prep, with random histories."""
    generator = np.random.default_rng(seed)
    ids = [f"i{number:03d}" for number in range(items)]
    titles = [f"{_WORDS[n % 9]} {_WORDS[(n // 9 + seed) % 9]} {n}" for n in range(items)]
    splits, candidates = [], []
    for number in range(users):
        user = f"u{number:02d}"
        chosen = generator.permutation(items)[:history]
        names = ["train"] * (history - 2) + ["valid", "test"]
        for place, (item, split) in enumerate(zip(chosen, names, strict=True)):
            splits.append((user, ids[item], place, split))
        unseen = sorted(set(range(items)) - set(chosen))
        for split, item in (("valid", chosen[-2]), ("test", chosen[-1])):
            drawn = generator.choice(unseen, 9, replace=False)
            candidates.append((user, split, ids[item], [ids[n] for n in drawn]))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"item_id": ids, "title": titles}).to_parquet(folder / "items.parquet")
    columns = ["user_id", "item_id", "position", "split"]
    pd.DataFrame(splits, columns=columns).to_parquet(folder / "splits.parquet")
    columns = ["user_id", "split", "item_id", "negatives"]
    pd.DataFrame(candidates, columns=columns).to_parquet(folder / "candidates.parquet")
    seal(folder.parent, [folder.name])


def seal(out: Path, added: Iterable[str] = ()) -> None:
    """Write the manifest of the domains in `out` anew, after a file was changed on purpose."""
    path = out / folders.MANIFEST  # read as it is: a toy's names may be others than data_prep's
    known = json.loads(path.read_text())["domains"] if path.exists() else {}
    folders.write_manifest(out, sorted({*known, *(n for n in added if n[0] != ".")}))


def write_domains(folder: Path, names=("books", "comics", "games")) -> Path:
    """Several domains, each with its own seed."""
    for seed, name in enumerate(names):
        write_domain(folder / name, seed)
    return folder


def config(data: Path, folder: Path, method: str = "fedecider", **settings) -> RunConfig:
    """A run of a few seconds on the tiny model; settings by their plain names."""
    small = {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "top_layers": 1,  # of 2: stored hidden states, as in every preset
        "rank": 2,
        "rounds": 2,
        "lr": 5e-3,
        "alpha_lr": 0.05,
        "batch_tokens": 128,
        "valid_users": 6,
        "test_users": 6,
        "beams": 2,
        "title_tokens": 6,
    }
    return RunConfig.of(
        prepared=data, folder=folder, dataset="toy", method=method, **{**small, **settings}
    )


class Rounds:
    """The parts of a federation in one process, driven round by round; close it, or use `with`."""

    def __init__(self, data: Path, folder: Path, backbone: Backbone, method: str, **settings):
        self.config = config(data, folder, method, **settings)
        self.adapter = make_adapter(self.config, backbone)
        domains = read_domains(data, self.config.data.domains, **self.config.limits())
        self.clients = [Client(self.config, self.adapter, domain) for domain in domains]
        self.method = make(self.config)
        self.server = Server(self.config, self.adapter.shapes)
        self.recorder = Recorder(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Rounds":
        return self

    def __exit__(self, *exc: object) -> None:
        self.adapter.close()

    def round(self, number: int) -> None:
        """Training, exchange and validation of every client."""
        play_round(number, self.method, self.clients, self.server, self.recorder)

    def models(self) -> dict[str, ClientModel]:
        """The clients' models as they are now; what training replaces stays in them."""
        return {client.name: copy.copy(client.model) for client in self.clients}

    def play(self, count: int) -> Iterator[tuple[int, dict, dict, dict]]:
        """Rounds 1 to count: (round, models before, as trained, after the exchange)."""
        aggregate, trained = self.server.aggregate, {}

        def seen(number, payloads):
            trained.update(self.models())
            return aggregate(number, payloads)

        self.server.aggregate = seen
        for number in range(1, count + 1):
            before = self.models()
            self.round(number)
            yield number, before, dict(trained), self.models()

    @property
    def shares(self) -> dict[str, float]:
        """Every client's share of all training targets; no two are alike."""
        sizes = {client.name: client.data.training.num_targets for client in self.clients}
        assert len(set(sizes.values())) == len(sizes)
        return {name: size / sum(sizes.values()) for name, size in sizes.items()}

    @property
    def rows(self) -> list[dict]:
        """What the recorder noted per client and round."""
        return self.recorder.rows["rounds"]


def dense(pair: LowRank):
    """B A in float64."""
    return pair.B.double() @ pair.A.double()


def cloned(model: ClientModel) -> ClientModel:
    """A copy that no later training can reach."""

    def copies(factors):
        return {name: LowRank(pair.B.clone(), pair.A.clone()) for name, pair in factors.items()}

    peers = {source: copies(factors) for source, factors in model.peer_directions.items()}
    alpha = None if model.alpha is None else model.alpha.clone()
    return ClientModel(copies(model.factors), peers, alpha)


def random_factors(adapter, seed, rank=2, scale=0.1, only=None):
    """Float64 factors of every module, or of those whose names hold `only`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(pair.B.shape[0], rank, generator=generator, dtype=torch.float64) * scale,
            torch.randn(rank, pair.A.shape[1], generator=generator, dtype=torch.float64) * scale,
        )
        for name, pair in adapter.initial.items()
        if only is None or only in name
    }


@contextmanager
def moved_adapter() -> Iterator[Adapter]:
    """An adapter on the tiny model in float64 whose update is not zero."""
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        generator = torch.Generator().manual_seed(0)
        adapter.load(
            {
                name: LowRank(torch.randn(pair.B.shape, generator=generator) * 0.3, pair.A)
                for name, pair in adapter.initial.items()
            }
        )
        yield adapter
