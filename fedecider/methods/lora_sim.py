"""lora-sim: personal averages by the similarity of updates ("LoRA-based Sim" in the paper).

Up and down: A, B. For client i and layer l the weights are

    w_ij = softmax_j( cos(dW_i, dW_j) / tau ),  j over all clients, i included,

and A and B are averaged apart with them. The paper shows this as a way that does not measure how
related domains are; only its name is public, the formula is our reconstruction.
"""

import torch

from fedecider.gram import cosines, gram
from fedecider.methods.fedavg import FedAvg, average
from fedecider.methods.local import Downloads, Uploads


class LoRASim(FedAvg):
    """A mean of its own for every client and layer."""

    name = "lora-sim"
    number_sent = ""

    def aggregate(self, uploads: Uploads, numbers: dict[str, float], number: int) -> Downloads:
        """Layer-wise softmax of cosines; a zero update counts as an orthogonal one."""
        clients = sorted(uploads)
        similar = cosines(gram([uploads[client] for client in clients]))
        shares = {
            name: torch.softmax(one.nan_to_num(0.0) / self.config.sim_temperature, dim=1).tolist()
            for name, one in similar.items()
        }
        found = {}
        for i, client in enumerate(clients):
            weights = {
                other: {name: rows[i][j] for name, rows in shares.items()}
                for j, other in enumerate(clients)
            }
            found[client] = {"personal": average(uploads, weights)}
        return found
