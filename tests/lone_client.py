"""A client in a process of its own, started by test_lone_clients.py in its client's folder.

Below that folder lie the client's own domain (data/<name>) and its own cache, and nothing of the
others. Commands come on stdin, answers go to stdout, pickled: numbers and bytes, as between
machines.
"""

import pickle
import sys
from pathlib import Path
from typing import Any, BinaryIO


class Lone:
    """Answers the commands of one client; `begin` makes it anew, with other settings."""

    def __init__(self) -> None:
        from fedecider.engine.backbone import load

        self.backbone, self.adapter = load("tiny", "cpu", "float32"), None

    def begin(self, values: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """The shapes of the adapted modules."""
        from fedecider.client import Client, make_adapter
        from fedecider.config import RunConfig
        from fedecider.domains import read_domains

        if self.adapter is not None:
            self.adapter.close()
        config = RunConfig.of(folder=Path("run"), prepared=Path("data"), **values)
        (domain,) = read_domains(config.data.prepared, config.data.domains, **config.limits())
        self.adapter = make_adapter(config, self.backbone)
        self.client = Client(config, self.adapter, domain)
        return self.adapter.shapes

    def train(self, round: int) -> tuple[bytes, float, float]:
        """The payload; training loss and norm of the update for the test."""
        payload = self.client.local_update(round)
        return payload, self.client.report.train_loss, self.client.update_norm()

    def receive(self, round: int, payloads: dict[str, bytes]) -> tuple[float, list[dict]]:
        """Validation loss and weights after the exchange."""
        self.client.receive(round, payloads)
        return self.client.validate(round), self.client.alphas()

    def rank(self):
        """The frame of ranks."""
        from fedecider.rankers.evaluate import rank_client

        return rank_client(self.client)[0]


def main(answers: BinaryIO) -> None:
    """Answer until stdin ends."""
    import torch

    torch.set_num_threads(1)
    lone = Lone()
    while True:
        try:
            command, *given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(getattr(lone, command)(*given), answers)
        answers.flush()


if __name__ == "__main__":
    # What libraries print must not come between the answers.
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    main(answers)
