"""Clients that live in processes of their own, and a server that sees bytes alone.

What comes out is, bit for bit, what the loop in one process gives: no client and no server looks
anywhere else.
"""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from toy import config, seal

from fedecider import federation
from fedecider.server import Server

SCRIPT = Path(__file__).parent / "lone_client.py"
NAMES = ("books", "comics", "games")


class LoneClient:
    """The process of one client; its folder holds a copy of its own domain and nothing else."""

    def __init__(self, folder: Path, domain: Path):
        self.folder = folder
        shutil.copytree(domain, folder / "data" / domain.name)
        seal(folder / "data", [domain.name])
        root = str(Path(__file__).resolve().parents[1])
        own = {"PYTHONPATH": root, "FEDECIDER_CACHE": str(folder / "cache"), "TQDM_DISABLE": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            cwd=folder,
            env={**os.environ, **own},
            stdin=pipe,
            stdout=pipe,
        )

    def ask(self, command: str, *given):
        pickle.dump((command, *given), self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)


@pytest.fixture(scope="module")
def lone(unlike, tmp_path_factory):
    """One process per domain."""
    place = tmp_path_factory.mktemp("lone")
    clients = {name: LoneClient(place / name, unlike / name) for name in NAMES}
    yield clients
    for client in clients.values():
        client.process.communicate(timeout=60)


@pytest.mark.parametrize("method", ["fedecider", "fedavg", "fellrec", "feddpa"])
def test_lone_clients_and_a_blind_server_give_the_numbers_of_one_process(
    method, unlike, backbone, lone, tmp_path
):
    settings = config(unlike, tmp_path, method, rounds=3)
    folder = federation.run(settings, backbone)
    values = settings.flat()
    del values["folder"], values["prepared"]
    shapes = [client.ask("begin", values) for client in lone.values()]
    server = Server(settings, shapes[0])
    rows, alphas = [], []
    for number in (1, 2, 3):
        trained = {name: client.ask("train", number) for name, client in lone.items()}
        up = {name: payload for name, (payload, *_) in trained.items()}
        down = server.aggregate(number, up)
        for name, client in lone.items():
            received = down.get(name, {})
            valid_loss, weights = client.ask("receive", number, received)
            payload, train_loss, update_norm = trained[name]
            sizes = (len(payload), sum(map(len, received.values())))
            rows.append((number, name, train_loss, valid_loss, *sizes, update_norm))
            alphas += [{"round": number, **row} for row in weights]
    columns = ["round", "client", "train_loss", "valid_loss", "bytes_up", "bytes_down"]
    columns.append("update_norm")
    whole = pd.read_csv(folder / "rounds.csv")[columns]
    pd.testing.assert_frame_equal(pd.DataFrame(rows, columns=columns), whole, check_exact=True)

    stored = pd.read_csv(folder / "alphas.csv")
    assert len(alphas) == len(stored) and bool(alphas) == (method == "fedecider")
    if alphas:
        frame = pd.DataFrame(alphas)[list(stored.columns)]
        pd.testing.assert_frame_equal(frame, stored, check_exact=True)

    ranks = pd.concat([client.ask("rank") for client in lone.values()], ignore_index=True)
    expected = pd.read_parquet(folder / "ranks.parquet")
    pd.testing.assert_frame_equal(ranks, expected, check_exact=True)


def test_a_lone_client_has_nothing_of_the_others_on_its_disk(lone):
    for name, client in lone.items():
        there = sorted(path.name for path in (client.folder / "data").iterdir())
        assert there == sorted([name, "manifest.json"])
        others = set(NAMES) - {name}
        assert not any(path.name in others for path in client.folder.rglob("*"))
