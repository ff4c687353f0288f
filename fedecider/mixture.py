"""Own LoRA plus the peers' directions, mixed by personal weights (method, section 3).

    y = W0 x + gamma B_i A_i x + sum_j alpha_ij D_j x

W0 and the own LoRA are PEFT's; the sum over the peers' directions is added by a forward hook, so
the adapter stays a plain PEFT adapter. All peers' directions of a layer are one stacked pair,
A_all (sum r_j, d_in) and B_all (d_out, sum r_j): y += B_all (w * (A_all x)), where w repeats
alpha_ij over the rank of direction j. The layer's equation is the paper's (arXiv 2602.16034); the
scopes, the sign constraint and the initial values are our reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from fedecider.adapter import Adapter, Factors
from fedecider.config import DirectionConfig, Scope, Sign
from fedecider.direction import norm, stack


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
    """Row of alpha for each adapted module: one for all, one per block, or one per module."""
    if scope == "client":
        return dict.fromkeys(adapter.names, 0)
    if scope == "layer":
        return {name: adapter.block_of(name) - adapter.first for name in adapter.names}
    if scope == "module":
        return {name: row for row, name in enumerate(adapter.names)}
    raise ValueError(f"alpha scope must be client, layer or module, got {scope!r}")


class Mixture:
    """The peers' directions of one client on the modules of an adapter; it may be empty.

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
        expected = (max(self.groups.values()) + 1, len(self.sources))
        if tuple(alpha.shape) != expected:
            raise ValueError(f"alpha must have shape {expected}, got {tuple(alpha.shape)}")
        dtype = torch.promote_types(adapter.backbone.dtype, torch.float32)
        self.alpha = nn.Parameter(alpha.detach().to(device, dtype, copy=True))
        self._layers: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name in adapter.names:
            present = [
                (j, directions[source][name])
                for j, source in enumerate(self.sources)
                if name in directions[source]
            ]
            if not present:
                continue
            pair = stack([factors for _, factors in present]).to(device, dtype)
            owner = [j for j, factors in present for _ in range(factors.rank)]
            self._layers[name] = (pair.B, pair.A, torch.tensor(owner, device=device))
        self._handles: list[RemovableHandle] = []

    @property
    def empty(self) -> bool:
        """Whether no peer adds anything to any module."""
        return not self._layers

    @torch.no_grad()
    def project(self) -> None:
        """Put alpha back into its constraint after a step (projected gradient descent)."""
        if self.sign == "nonnegative":
            self.alpha.clamp_(min=0)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        B, A, owner = self._layers[name]
        row = self.groups[name]

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
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

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def per_module(self) -> dict[str, Tensor]:
        """The weights (sources,) of every adapted module, for the alpha history."""
        weights = self.alpha.detach().cpu()
        return {name: weights[row] for name, row in self.groups.items()}


@dataclass
class ClientModel:
    """What a client's personal model is made of.

    `factors` are those of the own LoRA, raw (without gamma); `alpha` weighs the peers' directions,
    (groups, sources), None until they are weighed for the first time; `local_lora` is a second LoRA
    that stays at home, where a method has one.
    """

    factors: Factors
    peer_directions: dict[str, Factors] = field(default_factory=dict)
    alpha: Tensor | None = None
    local_lora: Factors | None = None

    def mixture(self, adapter: Adapter, config: DirectionConfig) -> Mixture:
        """Put the own LoRA into the adapter; enter the result to add the peers' directions."""
        adapter.load(self.factors)
        peers = self.peer_directions if any(self.peer_directions.values()) else {}
        alpha = self.alpha
        if not peers or alpha is None:
            peers, alpha = {}, initial_alpha(adapter, [], config.alpha_scope)
        return Mixture(adapter, peers, alpha, config.alpha_scope, config.alpha_sign)
