"""local: every client alone. Also the frame that the other methods change.

A method says what a client trains, sends and takes in, and what the server makes of it. The
defaults here share nothing, so a method's file shows just how it differs from training alone.
"""

from torch import Tensor

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig

Uploads = dict[str, Factors]  # client -> factors
Downloads = dict[str, Uploads]  # receiver -> source -> factors


class Local:
    """Sends and receives nothing (method, section 5)."""

    name = "local"
    learns_alpha = False
    rounds_needed = True  # zero-shot has none
    sends_examples = False  # whether the number of training targets goes up with the factors

    def __init__(self, config: RunConfig):
        self.config = config

    def up_unit(self) -> str | None:
        """Norm kind of which every uploaded module must be a direction, or None."""
        return None

    def down_unit(self) -> str | None:
        """The same for downloads."""
        return None

    def trains(self, number: int) -> str:
        """Factors that are trained in round `number` (1-based): "AB", "A" or "B"."""
        return "AB"

    def begin(self, client, number: int) -> None:
        """Before local training: put what waits in `client.incoming` into the model."""

    def penalty(self, client, adapter: Adapter) -> Tensor | None:
        """A term added to the local loss."""
        return None

    def upload(self, client, adapter: Adapter) -> Factors | None:
        """What the client sends after training; None for nothing."""
        return None

    def aggregate(self, uploads: Uploads, weights: dict[str, int], number: int) -> Downloads:
        """The server's part: from decoded uploads, and sent numbers of targets, to downloads."""
        return {}

    def receive(self, client, downloads: Uploads, adapter: Adapter) -> None:
        """What the client does with the decoded downloads."""
