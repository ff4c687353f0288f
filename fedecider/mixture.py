"""Own LoRA plus foreign directions, mixed by personal weights (method, section 3, step 1).

    y = W0 x + gamma B_i A_i x + sum_j alpha_ij D_j x

W0 and the own LoRA are PEFT's; the sum over foreign directions is added by a forward hook, so the
adapter stays a plain PEFT adapter. All foreign directions of a layer are one stacked pair,
A_all (sum r_j, d_in) and B_all (d_out, sum r_j): y += B_all (w * (A_all x)), where w repeats
alpha_ij over the rank of direction j. The layer's equation is the paper's (arXiv 2602.16034); the
scopes, the sign constraint and the initial values are our reconstruction.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedecider.adapter import Adapter, Factors
from fedecider.direction import norm, stack

Scope = Literal["client", "layer", "module"]
Sign = Literal["free", "nonnegative"]


def initial_alpha(
    adapter: Adapter,
    sources: list[str],
    scope: Scope,
    fraction: float = 0.0,
    own: Factors | None = None,
) -> Tensor:
    """Weights before training, (groups, sources) float32.

    0, or `fraction` times the Frobenius norm of the own update, averaged over the modules that
    share a weight; a client that has not trained starts at 0 either way.
    """
    groups = group_index(adapter, scope)
    alpha = torch.zeros(max(groups.values()) + 1, len(sources))
    if fraction and own is not None:
        for group in range(alpha.shape[0]):
            norms = [norm(own[name]).item() for name in adapter.names if groups[name] == group]
            alpha[group] = fraction * sum(norms) / len(norms)
    return alpha


def group_index(adapter: Adapter, scope: Scope) -> dict[str, int]:
    """Row of alpha for each adapted module: all one, one a block, or one a module."""
    if scope == "client":
        return dict.fromkeys(adapter.names, 0)
    if scope == "layer":
        return {name: adapter.group_of(name) - adapter.first for name in adapter.names}
    if scope == "module":
        return {name: row for row, name in enumerate(adapter.names)}
    raise ValueError(f"alpha scope must be client, layer or module, got {scope!r}")


class Mixture:
    """Foreign directions of one client on the modules of an adapter.

    Parameters: `directions` maps a source client to its factors per module (a module that the
    source did not change is absent); `alpha` is (groups, sources) in the order of sorted sources
    and becomes a parameter. Use as a context: the hooks are on the modules only inside it.
    """

    def __init__(
        self,
        adapter: Adapter,
        directions: dict[str, Factors],
        alpha: Tensor,
        scope: Scope = "client",
        sign: Sign = "free",
    ):
        self.adapter, self.sign = adapter, sign
        self.sources = sorted(directions)
        device = adapter.backbone.device
        self.groups = group_index(adapter, scope)
        wanted = (max(self.groups.values()) + 1, len(self.sources))
        if tuple(alpha.shape) != wanted:
            raise ValueError(f"alpha must have shape {wanted}, got {tuple(alpha.shape)}")
        working = torch.promote_types(adapter.backbone.dtype, torch.float32)
        self.alpha = nn.Parameter(alpha.detach().to(device, working, copy=True))
        self._layers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name in adapter.names:
            present = [
                (j, directions[source][name])
                for j, source in enumerate(self.sources)
                if name in directions[source]
            ]
            if not present:
                continue
            pair = stack([factor for _, factor in present]).to(device, working)
            owner = [j for j, factor in present for _ in range(factor.rank)]
            self._layers[name] = (pair.B, pair.A, torch.tensor(owner, device=device))
        self._handles: list = []

    @torch.no_grad()
    def project(self) -> None:
        """Put alpha back into its constraint after a step (projected gradient descent)."""
        if self.sign == "nonnegative":
            self.alpha.clamp_(min=0)

    def _hook(self, name: str):
        B, A, owner = self._layers[name]
        row = self.groups[name]

        def add(module, inputs, output):
            x = inputs[0].to(A.dtype)
            w = self.alpha[row, owner]
            return output + linear(w * linear(x, A), B).to(output.dtype)

        return add

    def __enter__(self) -> "Mixture":
        self._handles = [
            self.adapter.modules[name].register_forward_hook(self._hook(name))
            for name in self._layers
        ]
        return self

    def __exit__(self, *exc) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def per_module(self) -> dict[str, Tensor]:
        """The weights (sources,) of every adapted module, for the alpha history."""
        weights = self.alpha.detach().cpu()
        return {name: weights[row] for name, row in self.groups.items()}
