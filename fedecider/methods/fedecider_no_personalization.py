"""fedecider-no-personalization (ablation): directions with uniform fixed weights.

Up: D. Down: (n - 1) x D. Every foreign direction has the weight c / (n - 1), c a setting: with
c = 1 their mean is added.
"""

import torch

from fedecider.methods.fedecider import FeDecider


class WithoutPersonalization(FeDecider):
    """The same weights for every client, source and module; nothing of them is learned."""

    name = "fedecider-no-personalization"
    learns_alpha = False

    def weights(self, model, adapter):
        """c / (n - 1)."""
        shaped = super().weights(model, adapter)
        return torch.full_like(shaped, self.config.uniform_weight / len(model.foreign))
