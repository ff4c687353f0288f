"""fedecider (arXiv 2602.16034): share directions, mix them by personal learned weights.

Up: D. Down: (n - 1) x D. A client shares the direction of its update, never magnitude, weights or
factors as trained; the server passes directions on and averages nothing. Each client learns, on its
own data, its weights alpha together with its own LoRA (method, section 3).
"""

from fedecider.adapter import Factors
from fedecider.client import seeded
from fedecider.direction import direction
from fedecider.methods.local import Downloads, Local, Uploads
from fedecider.privacy import noised


class FeDecider(Local):
    """Own LoRA + sum over other clients of alpha_ij D_j, alpha_ij learned."""

    name = "fedecider"
    learns_alpha = True
    sends_directions = True

    def up_unit(self):
        """Directions travel unless the server is to extract them."""
        return self.config.norm if self.config.send == "direction" else None

    def down_unit(self):
        """What comes down is always a direction."""
        return self.config.norm

    def directions(self, updates: Factors) -> Factors:
        """Direction of every module in canonical form; a module with a zero update is absent."""
        found = {
            name: direction(update, self.config.norm, self.config.truncate)
            for name, update in updates.items()
        }
        return {name: pair for name, pair in found.items() if pair is not None}

    def upload(self, client, adapter, number):
        """D_i, or gamma B_i A_i where the server extracts the direction (the paper's figure 3)."""
        updates = adapter.updates(client.model.factors)
        if self.config.send == "update":
            return updates
        sent = self.directions(updates)
        if self.config.noise:
            generator = seeded(self.config, f"{client.name} noise", number)
            sent = {
                name: noised(pair, self.config.noise, generator, self.config.norm)
                for name, pair in sent.items()
            }
        return sent

    def passed_on(self, uploads: Uploads) -> Uploads:
        """What the server makes of the uploads: their directions, where it has to extract them."""
        if self.config.send == "direction":
            return uploads
        return {client: self.directions(update) for client, update in uploads.items()}

    def aggregate(self, uploads: Uploads, numbers: dict[str, float], number: int) -> Downloads:
        """Everyone gets everyone else's direction; nothing is averaged."""
        uploads = self.passed_on(uploads)
        return {
            client: {other: uploads[other] for other in uploads if other != client}
            for client in uploads
        }

    def receive(self, client, downloads, adapter, number):
        """Kept for the next round: this round's weights belong to this round's directions."""
        client.incoming = downloads

    def begin(self, client, number):
        """Directions of the previous round take the place of older ones; alpha stays."""
        if client.incoming:
            client.model.foreign, client.incoming = client.incoming, {}
