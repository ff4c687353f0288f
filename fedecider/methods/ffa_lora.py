"""ffa-lora (Sun et al., arXiv 2403.12313): A stays at one shared random start; B is averaged.

Up and down: B. With A equal everywhere the average of B is the average of the updates B A, so the
aggregation is exact.
"""

from fedecider.methods.fedavg import FedAvg


class FFALoRA(FedAvg):
    """fedavg of B alone."""

    name = "ffa-lora"

    def trains(self, number):
        """B; the frozen A is the start that all clients share through the seed."""
        return "B"

    def shares(self, number):
        """B."""
        return "B"
