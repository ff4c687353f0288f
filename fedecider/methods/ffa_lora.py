"""ffa-lora (Sun et al., arXiv 2403.12313): A stays at one shared random start; B is averaged.

Up and down: B. With A equal everywhere the average of B is the average of the updates B A, so the
aggregation is exact.
"""

from fedecider.methods.fedavg import FedAvg


class FFALoRA(FedAvg):
    """fedavg of B alone; the frozen A is the start that all clients share through the seed."""

    name, label = "ffa-lora", "FFA-LoRA"
    color, order = "#E69F00", 42
    grid = {"lr": [1e-3, 2e-3, 4e-3]}

    def fit(self, client, round):
        """B."""
        return client.fit(round, factors="B")

    def shared_factors(self, round):
        """B."""
        return "B"
