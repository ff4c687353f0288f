"""fedprox (Li et al., arXiv 1812.06127): fedavg with a pull towards the last global model.

    F_i(theta) + (mu / 2) ||theta - theta_global||^2,  theta all entries of A and B

Up and down: A, B. With mu = 0 it is fedavg.
"""

from fedecider.methods.fedavg import FedAvg


class FedProx(FedAvg):
    """The proximal term over the factors, as the papers on federated LoRA take it."""

    name = "fedprox"

    def penalty(self, client, adapter):
        """(mu / 2) ||theta - theta_global||^2; before round 1 the shared start is the global."""
        mu = self.config.fedprox_mu
        if mu == 0:
            return None
        total = 0.0
        for name, module in adapter.modules.items():
            start = client.model.factors[name]
            for part, before in (("lora_B", start.B), ("lora_A", start.A)):
                now = getattr(module, part)["default"].weight
                total = total + (now - before.to(now)).square().sum()
        return mu / 2 * total
