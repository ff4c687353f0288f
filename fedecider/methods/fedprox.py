"""fedprox (Li et al., arXiv 1812.06127): fedavg with a pull towards the last global model.

    F_i(theta) + (mu / 2) ||theta - theta_global||^2,  theta all entries of A and B

Up and down: A, B. With mu = 0 it is fedavg.
"""

from pydantic import Field
from torch import Tensor

from fedecider.adapter import Adapter, Factors
from fedecider.methods.base import NoSettings
from fedecider.methods.fedavg import FedAvg


class FedProx(FedAvg):
    """The proximal term over the factors, as the papers on federated LoRA take it."""

    class Settings(NoSettings):
        """Of fedprox."""

        mu: float = Field(0.01, ge=0, description="weight of the proximal term")

    name, label = "fedprox", "FedProx"
    color, order = "#56B4E9", 41
    grid = {"mu": [0.001, 0.01, 0.1]}

    def fit(self, client, round):
        """Before round 1 the shared start is the global model."""
        mu, start = self.settings.mu, client.model.factors
        if mu == 0:
            return client.fit(round)
        return client.fit(round, penalty=lambda: mu / 2 * squared_distance(client.adapter, start))


def squared_distance(adapter: Adapter, start: Factors) -> Tensor:
    """||theta - theta_start||^2 of the factors that the adapter holds, ()."""
    total = 0.0
    for name, module in adapter.modules.items():
        for part, before in (("lora_B", start[name].B), ("lora_A", start[name].A)):
            now = getattr(module, part)["default"].weight
            total = total + (now - before.to(now)).square().sum()
    return total
