"""FeDecider: federated cross-domain recommendation with language models (arXiv 2602.16034)."""

from fedecider.config import RunConfig
from fedecider.direction import LowRank, canonical, combine, decompose, inner, norm, truncate

__all__ = ["LowRank", "RunConfig", "canonical", "combine", "decompose", "inner", "norm", "truncate"]
__version__ = "0.1.0"
