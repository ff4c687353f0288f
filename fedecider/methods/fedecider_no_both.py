"""fedecider-no-both (ablation): uniform fixed weights over raw updates.

Up: A, B. Down: (n - 1) x (A, B). Neither direction nor personalization: c / (n - 1) each.
"""

from fedecider.methods.fedecider_no_direction import WithoutDirection
from fedecider.methods.fedecider_no_personalization import WithoutPersonalization


class WithoutBoth(WithoutPersonalization, WithoutDirection):
    """Weights as without personalization, payloads as without direction."""

    name = "fedecider-no-both"
    sends_directions = False
