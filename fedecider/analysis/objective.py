"""F, a client's mean loss of the target tokens of some of its training rows, nats per token.

Gradients with respect to the adapted weights are formed densely here, and here alone: they are the
second, independent way to what the method computes from factors.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedecider.adapter import Adapter
from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.engine.packing import pack
from fedecider.losses import LOSSES
from fedecider.prompts import ExampleSet
from fedecider.training import ClientData, token_losses

_BUDGET = 2048  # tokens per forward


def base_weights(adapter: Adapter) -> dict[str, Tensor]:
    """The frozen weight (d_out, d_in) of every adapted module."""
    # nn.Module types its attributes as tensors or modules; PEFT's layers have a linear layer here.
    layers = {name: module.base_layer for name, module in adapter.modules.items()}
    return {name: layer.weight for name, layer in layers.items()}  # type: ignore[union-attr, misc]


class Objective:
    """F of one client on its first `num_examples` training rows, at what the adapter holds."""

    def __init__(self, adapter: Adapter, data: ClientData, num_examples: int):
        self.adapter, self.loss = adapter, LOSSES[data.config.training.loss]
        self.examples = ExampleSet(data.training.examples[:num_examples])
        label, trees = f"{data.name} examples", self.examples.trees
        self.states = HiddenStateCache(adapter.backbone, trees, adapter.first, label)
        self.packs = pack(self.states.sizes, _BUDGET)
        self.num_tokens = sum(len(example.targets) for example in self.examples.examples)

    def _summands(self) -> Iterator[Tensor]:
        """What each pack adds to F."""
        for indices in self.packs:
            losses = token_losses(self.adapter, self.states, self.examples, indices, self.loss)
            yield losses.sum() / self.num_tokens

    @torch.no_grad()
    def value(self) -> float:
        """F."""
        return sum(summand.item() for summand in self._summands())

    def backward(self) -> float:
        """F; its gradient is added to that of every tensor that asks for one."""
        total = 0.0
        for summand in self._summands():
            summand.backward()
            total += summand.item()
        return total

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """F, and dF / dW (d_out, d_in) of every adapted module."""
        weights = base_weights(self.adapter)
        for weight in weights.values():
            weight.requires_grad_(True)
        value = self.backward()
        gradients = {}
        for name, weight in weights.items():
            assert weight.grad is not None, f"F does not depend on {name}"
            gradients[name], weight.grad = weight.grad, None
            weight.requires_grad_(False)
        return value, gradients
