"""A round of all clients in one process: train, send, aggregate, receive, validate.

A client whose training or validation diverges, whose upload the server refuses or who refuses its
download is left out of the round:

- It goes back to its model of before the round, and its upload does not count. (If it fails after
  the upload was taken in, the others keep what they got.)
- It receives what the others get, where that is no one's own, and is validated.
- An event names it, the round and the reason; its row of the round has no training loss and no
  norm, and no bytes of what was not sent or not taken.

The others go on if at least `min_clients` are left.
"""

import warnings
from collections.abc import Sequence

from fedecider.client import Client
from fedecider.methods import Method
from fedecider.recorder import Recorder
from fedecider.server import Server
from fedecider.wire import PayloadError


class LeftOut:
    """The clients that are left out of a round, by name, each with its first error."""

    def __init__(self, round: int, clients: Sequence[Client], least: int, recorder: Recorder):
        self.round, self.total, self.least, self.recorder = round, len(clients), least, recorder
        self.errors: dict[str, FloatingPointError | PayloadError] = {}

    def add(self, client: Client, error: FloatingPointError | PayloadError) -> None:
        """Leave a client out: it falls back, and the event names it, the round and why."""
        client.fall_back()
        self.errors.setdefault(client.name, error)
        self.recorder.events.append(
            "left out", round=self.round, client=client.name, reason=str(error)
        )
        warnings.warn(f"{client.name} is left out of round {self.round}: {error}", stacklevel=2)

    def check(self) -> None:
        """End the run if too few are left: FloatingPointError if any diverged, or PayloadError."""
        left = self.total - len(self.errors)
        if left >= self.least:
            return
        errors = sorted(self.errors.values(), key=lambda e: not isinstance(e, FloatingPointError))
        said = f"; {left} of {self.total} clients are left and min_clients is {self.least}"
        raise type(errors[0])(f"{errors[0]}{said if left else ''}")


def play_round(
    round: int, method: Method, clients: Sequence[Client], server: Server, recorder: Recorder
) -> None:
    """Round `round` (1-based) of all clients, noted by the recorder.

    Raises FloatingPointError if fewer than `min_clients` are left and one of the others diverged,
    `wire.PayloadError` if payloads alone were refused.
    """
    left_out = LeftOut(round, clients, method.config.training.min_clients, recorder)
    up = method.fit_all(clients, round, left_out.add)
    left_out.check()
    trained = [client for client in clients if client.name not in left_out.errors]
    updates = {client.name: client.adapter.updates(client.model.factors) for client in trained}
    recorder.geometry(round, updates)
    sizes = {client.name: client.update_norm() for client in trained}
    down = _exchanged(round, clients, server, up, left_out)
    for client in clients:
        received = down.get(client.name, {})
        try:
            client.receive(round, received)
        except PayloadError as error:
            left_out.add(client, error)
            received = {}
        measured: dict[str, float | None] = {
            "valid_loss": _validated(round, client, left_out),
            "bytes_up": len(up[client.name]),
            "bytes_down": sum(map(len, received.values())),
            "update_norm": sizes.get(client.name),
        }
        if client.name in left_out.errors:
            measured |= {"train_loss": None, "update_norm": None}
        recorder.client(round, client, **measured)
    left_out.check()


def _exchanged(
    round: int,
    clients: Sequence[Client],
    server: Server,
    up: dict[str, bytes],
    left_out: LeftOut,
) -> dict[str, dict[str, bytes]]:
    """The server's downloads; a client whose payload it refuses has sent nothing."""
    while True:
        try:
            return server.aggregate(round, up)
        except PayloadError as error:
            refused = [client for client in clients if client.name == error.sender]
            if not refused or not up[error.sender]:
                raise
            left_out.add(refused[0], error)
            left_out.check()
            up[error.sender] = b""


def _validated(round: int, client: Client, left_out: LeftOut) -> float | None:
    """The validation loss; a client without one falls back, and is validated as it was before."""
    try:
        return client.validate(round)
    except FloatingPointError as error:
        left_out.add(client, error)
    try:
        return client.validate(round)
    except FloatingPointError:
        return None
