"""fedecider-no-direction (ablation): raw updates dW_j instead of directions D_j, learned weights.

Up: A, B (gamma in B). Down: (n - 1) x (A, B). What a weight means changes with the source's scale.
"""

from fedecider.methods.fedecider import FeDecider
from fedecider.mixture import initial_alpha


class WithoutDirection(FeDecider):
    """Scale travels with the update."""

    name = "fedecider-no-direction"
    sends_directions = False

    def up_unit(self):
        """Any norm."""
        return None

    def down_unit(self):
        """Any norm."""
        return None

    def weights(self, model, adapter):
        """`alpha_init` itself: dW_j has the size of an update already."""
        config = self.config
        start = initial_alpha(adapter, sorted(model.foreign), config.alpha_scope)
        return start + config.alpha_init

    def upload(self, client, adapter, number):
        """gamma B_i A_i."""
        return adapter.updates(client.model.factors)

    def passed_on(self, uploads):
        """As they came."""
        return uploads
