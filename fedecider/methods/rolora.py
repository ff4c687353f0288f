"""rolora (Chen et al., arXiv 2502.01755): odd rounds train and average B, even rounds A.

Up and down: the factor of the round. The other one is frozen and equal on all clients, so every
average of factors is the average of the updates.
"""

from fedecider.methods.base import MethodClient
from fedecider.methods.fedavg import FedAvg
from fedecider.training import TrainingReport


class RoLoRA(FedAvg):
    """Alternating fedavg; B comes first, since with B = 0 the gradient of A is zero."""

    name, label = "rolora", "RoLoRA"
    color, order = "#882255", 45
    grid = [{"lr": lr} for lr in (1e-3, 2e-3, 4e-3)]

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """B in odd rounds (1-based), A in even ones."""
        return client.fit(round, factors=self.shared_factors(round))

    def shared_factors(self, round: int) -> str:
        """What was trained."""
        return "B" if round % 2 else "A"
