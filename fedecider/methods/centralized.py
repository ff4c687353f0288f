"""centralized: one LoRA on the data of all domains, pooled. A reference, not federated.

Nothing travels. A round is as many passes over the pooled data as a client makes over its own, so
the number of steps is that of all clients together.
"""

from fedecider.methods.local import Local


class Centralized(Local):
    """One model for all; every client validates it on its own users."""

    name = "centralized"
    pooled = True
