"""local: every client alone. Also the frame that the other methods change.

A method says what a client trains, sends and takes in, and what the server makes of it. The
defaults here share nothing, so a method's file shows just how it differs from training alone.
"""

from torch import Tensor

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig
from fedecider.mixture import initial_alpha

Uploads = dict[str, Factors]  # client -> factors; a part of a pair that stays at home is None
Downloads = dict[str, Uploads]  # receiver -> source -> factors


class Local:
    """Sends and receives nothing (method, section 5)."""

    name = "local"
    learns_alpha = False
    rounds_needed = True  # zero-shot has none
    language_model = True  # als and popularity are none
    pooled = False  # whether one model is trained on the data of all clients
    sends_directions = False  # or updates of which the server extracts them
    number_sent = ""  # name of a single number that goes up with the factors

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

    def shares(self, number: int) -> str:
        """Factors that travel in round `number`, up and down."""
        return "AB"

    def begin(self, client, number: int) -> None:
        """Before local training: put what waits in `client.incoming` into the model."""

    def weights(self, model, adapter: Adapter) -> Tensor:
        """Weights of the foreign updates before any is learned, (groups, sources)."""
        config, sources = self.config, sorted(model.foreign)
        own = adapter.updates(model.factors)
        return initial_alpha(adapter, sources, config.alpha_scope, config.alpha_init, own)

    def stages(self, client) -> list[tuple[float, float]]:
        """Shares of a round's steps between which `switch` is called; by default all at once."""
        return [(0.0, 1.0)]

    def switch(self, client) -> None:
        """After each of several stages of local training: another LoRA takes the place."""

    def penalty(self, client, adapter: Adapter) -> Tensor | None:
        """A term added to the local loss."""
        return None

    def upload(self, client, adapter: Adapter, number: int) -> Factors | None:
        """What the client sends after training; None for nothing."""
        return None

    def number(self, client) -> float:
        """The number of the name `number_sent`."""
        raise NotImplementedError

    def aggregate(self, uploads: Uploads, numbers: dict[str, float], number: int) -> Downloads:
        """The server's part: from decoded uploads, and sent numbers, to downloads."""
        return {}

    def receive(self, client, downloads: Uploads, adapter: Adapter, number: int) -> None:
        """What the client does with the decoded downloads."""

    def served(self, data, model, adapter: Adapter, split: str) -> list[tuple[list[str], object]]:
        """The model that each user of a split is served with: (users, model) apiece."""
        return [(getattr(data, f"{split}_users"), model)]
