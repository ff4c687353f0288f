"""fedprox (Li et al., arXiv 1812.06127): fedavg with a pull towards the last global model.

    F_i(theta) + (mu / 2) ||theta - theta_global||^2,  theta all entries of A and B

Up and down: A, B. With mu = 0 it is fedavg.
"""

from pydantic import Field

from fedecider.methods.base import MethodClient, NoSettings
from fedecider.methods.fedavg import FedAvg
from fedecider.training import TrainingReport


class FedProx(FedAvg):
    """The proximal term over the factors, as the papers on federated LoRA take it."""

    class Settings(NoSettings):
        """Of fedprox."""

        mu: float = Field(0.01, ge=0, description="weight of the proximal term")

    name, label = "fedprox", "FedProx"
    color, order = "#56B4E9", 41
    grid = [{"lr": 2e-3, "mu": mu} for mu in (0.001, 0.01, 0.1)]

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """Before round 1 the shared start is the global model."""
        mu, start = self.settings.mu, client.model.factors
        if mu == 0:
            return client.fit(round)
        return client.fit(round, penalty=lambda: mu / 2 * client.adapter.squared_distance(start))
