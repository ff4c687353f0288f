"""FeDecider: federated cross-domain recommendation with language models (arXiv 2602.16034).

config = RunConfig.of(folder=..., method="fedecider", prepared=..., dataset="goodreads")
federation.run(config)              # killed at any moment, the same call goes on
results.metrics(config.folder)      # tidy pandas frame
"""

from fedecider import federation, results
from fedecider.config import RunConfig
from fedecider.direction import LowRank, canonical, combine, decompose, inner, norm, truncate
from fedecider.methods import METHODS
from fedecider.mixture import ClientModel, Mixture

__all__ = [
    "METHODS",
    "ClientModel",
    "LowRank",
    "Mixture",
    "RunConfig",
    "canonical",
    "combine",
    "decompose",
    "federation",
    "inner",
    "norm",
    "results",
    "truncate",
]
__version__ = "0.1.0"
