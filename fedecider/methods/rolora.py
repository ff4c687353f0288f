"""rolora (Chen et al., arXiv 2502.01755): odd rounds train and average B, even rounds A.

Up and down: the factor of the round. The other one is frozen and equal on all clients, so every
average of factors is the average of the updates.
"""

from fedecider.methods.fedavg import FedAvg


class RoLoRA(FedAvg):
    """Alternating fedavg; B comes first, since with B = 0 the gradient of A is zero."""

    name = "rolora"

    def trains(self, number):
        """B in odd rounds (1-based), A in even ones."""
        return "B" if number % 2 else "A"

    def shares(self, number):
        """What was trained."""
        return self.trains(number)
