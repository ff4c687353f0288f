"""fedsa-lora (Guo et al., arXiv 2410.01463): A is shared and averaged, B stays at home.

Up and down: A. Both are trained; the authors find general knowledge in A and the client's own in B.
"""

from fedecider.methods.fedavg import FedAvg


class FedSALoRA(FedAvg):
    """fedavg of A alone; every client keeps its own B."""

    name, label = "fedsa-lora", "FedSA-LoRA"
    color, order = "#F0E442", 44

    def shared_factors(self, round: int) -> str:
        """A."""
        return "A"
