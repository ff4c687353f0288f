"""ffa-lora (Sun et al., arXiv 2403.12313): A stays at one shared random start; B is averaged.

Up and down: B. With A equal everywhere the average of B is the average of the updates B A, so the
aggregation is exact.
"""

from fedecider.methods.base import MethodClient
from fedecider.methods.fedavg import FedAvg
from fedecider.training import TrainingReport


class FFALoRA(FedAvg):
    """fedavg of B alone; the frozen A is the start that all clients share through the seed."""

    name, label = "ffa-lora", "FFA-LoRA"
    color, order = "#E69F00", 42
    grid = [{"lr": lr} for lr in (1e-3, 2e-3, 4e-3)]

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """B."""
        return client.fit(round, factors="B")

    def shared_factors(self, round: int) -> str:
        """B."""
        return "B"
