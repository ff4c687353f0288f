"""fellrec (Zhao et al., arXiv 2402.09959): similarity-attention aggregation with a warm-up.

Up and down: A, B (up also the training loss). With s_ij = (cos(theta_i, theta_j) + 1) / 2 over all
entries of the factors, client i gets

    theta_i <- (s_ii theta_i + w_i sum_{j != i} s_ij theta_j) / (s_ii + w_i sum_{j != i} s_ij),
    w_i = tanh( alpha / p_i^(t / beta) ),   p = softmax(losses / temperature),

in round t: clients that still lose much learn from themselves first, and w_i grows with the round.
Source: the paper and its authors' code, from which the default temperature 0.05 is. There clients
are groups of users of one domain; between domains whose losses are apart by some tenths of a nat
the softmax saturates, and w_i is 1 for all but the client that loses most, for which it stays near
tanh(alpha). Ours: the exponent is t / beta as in the paper (the code has t - 1 + 1 / beta, and
leaves the warm-up out for beta = 1); the splitting of the model between client and server changes
no number and is left out.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field

from fedecider.adapter import Factors
from fedecider.methods.base import (
    Downloads,
    MethodClient,
    NoSettings,
    Upload,
    Uploads,
    sent_metric,
)
from fedecider.methods.fedavg import FedAvg, average
from fedecider.wire import Metric


class FELLRec(FedAvg):
    """Personal averages; the attention is one number for each pair of clients."""

    class Settings(NoSettings):
        """Of fellrec."""

        alpha: float = Field(0.7, gt=0, description="weight of others at the start")
        beta: float = Field(1.0, gt=0, description="rounds of the warm-up")
        temperature: float = Field(
            0.05, gt=0, description="temperature of the softmax over losses (nats per token)"
        )

    name, label = "fellrec", "FELLRec"
    color, order = "#999933", 47
    grid = [{"lr": 2e-3, "alpha": alpha} for alpha in (0.1, 0.3, 0.7)]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The training loss, nats per token."""
        return {"loss": Metric("positive", 1e6)}

    def upload(self, client: MethodClient, round: int) -> Upload:
        """The raw factors, and the mean training loss of the round, nats per token."""
        return Upload(client.model.factors, {"loss": client.report.train_loss})

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """The formula above; A and B are averaged separately.

        A client that sent nothing resembles nobody: it gets nothing and keeps its own.
        """
        clients, losses = sorted(uploads), sent_metric(uploads, "loss")
        similarity = attention([_flat(uploads[client].factors) for client in clients])
        warm = self.warm_up([losses[client] for client in clients], round)
        downloads: Downloads = {}
        for i, client in enumerate(clients):
            raw = {
                other: similarity[i][j] * (1.0 if i == j else warm[i])
                for j, other in enumerate(clients)
            }
            weights = {other: value / sum(raw.values()) for other, value in raw.items()}
            downloads[client] = {"personal": average(uploads, weights)}
        return downloads

    def warm_up(self, losses: list[float], round: int) -> list[float]:
        """w_i of a round (1-based), each in (0, 1]."""
        settings = self.settings
        shares = torch.softmax(torch.tensor(losses, dtype=torch.float64) / settings.temperature, 0)
        # In logarithms: p^(t / beta) underflows after some rounds, and tanh is 1 long before.
        exponents = (-shares.log() * round / settings.beta).clamp(max=50).tolist()
        return [math.tanh(settings.alpha * math.exp(value)) for value in exponents]


def attention(models: list[torch.Tensor]) -> list[list[float]]:
    """(cos + 1) / 2 of all pairs of flat models."""
    stacked = torch.nn.functional.normalize(torch.stack(models).double(), dim=1)
    return ((stacked @ stacked.T + 1) / 2).tolist()


def _flat(factors: Factors) -> torch.Tensor:
    return torch.cat([part.flatten() for name in sorted(factors) for part in factors[name]])
