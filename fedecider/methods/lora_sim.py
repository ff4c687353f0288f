"""lora-sim: personal averages by the similarity of updates ("LoRA-based Sim" in the paper).

Up and down: A, B. For client i and layer l the weights are

    w_ij = softmax_j( cos(dW_i, dW_j) / tau ),  j over all clients, i included,

and A and B are averaged separately with them. The paper shows this as a way that does not measure
how related domains are; only its name is public, the formula is our reconstruction.
"""

from collections.abc import Sequence

import torch
from pydantic import Field

from fedecider.gram import cosines, gram
from fedecider.methods.base import Downloads, MethodClient, NoSettings, Upload, Uploads
from fedecider.methods.fedavg import FedAvg, average
from fedecider.wire import Metric


class LoRASim(FedAvg):
    """A mean of its own for every client and layer."""

    class Settings(NoSettings):
        """Of lora-sim."""

        temperature: float = Field(1.0, gt=0, description="of the softmax over cosine similarities")

    name, label = "lora-sim", "LoRA-Sim"
    color, order = "#44AA99", 46
    grid = [{"lr": 2e-3, "temperature": value} for value in (0.1, 0.3, 1.0)]

    @property
    def metrics(self) -> dict[str, Metric]:
        """None."""
        return {}

    def upload(self, client: MethodClient, round: int) -> Upload:
        """The raw factors alone."""
        return Upload(client.model.factors)

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """Layer-wise softmax of cosines; a zero update counts as an orthogonal one.

        A client that sent nothing resembles nobody: it gets nothing and keeps its own.
        """
        clients = sorted(uploads)
        similarities = cosines(gram([uploads[client].factors for client in clients]))
        temperature = self.settings.temperature
        shares = {
            # Infinite where the square of a tiny update underflows.
            name: torch.softmax(cosine.nan_to_num(0.0, 0.0, 0.0) / temperature, dim=1).tolist()
            for name, cosine in similarities.items()
        }
        downloads: Downloads = {}
        for i, client in enumerate(clients):
            weights = {
                other: {name: rows[i][j] for name, rows in shares.items()}
                for j, other in enumerate(clients)
            }
            downloads[client] = {"personal": average(uploads, weights)}
        return downloads
