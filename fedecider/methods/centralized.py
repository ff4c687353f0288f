"""centralized: one LoRA on the data of all domains, pooled. A reference, not federated.

Nothing travels. A round is as many passes over the pooled data as a client makes over its own, so
the number of steps is that of all clients together.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from fedecider.methods.base import Method, MethodClient
from fedecider.training import PooledData, fit


class Centralized(Method):
    """One model for all; every client validates it on its own users."""

    name, label, family = "centralized", "Centralized", "reference"
    color, order = "#555555", 30

    def fit_all(
        self,
        clients: Sequence[MethodClient],
        round: int,
        diverged: Callable[[Any, FloatingPointError], None] | None = None,
    ) -> dict[str, bytes]:
        """One LoRA on everybody's data; if it diverges, every client has."""
        for client in clients:
            client.begin_round()
        first = clients[0]
        pooled = PooledData([client.data for client in clients])
        model = first.model
        report = fit(
            pooled, model, first.adapter, self.config, round, self.name, progress=first.progress
        )
        for client in clients:
            client.model, client.report = copy.copy(model), report
            client.refuse_diverged(round)
        return dict.fromkeys((client.name for client in clients), b"")
