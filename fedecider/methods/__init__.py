"""The methods of section 5, one file each, and the table that names them."""

from fedecider.methods.fedavg import FedAvg
from fedecider.methods.fedecider import FeDecider
from fedecider.methods.local import Local
from fedecider.methods.zero_shot import ZeroShot

METHODS = {method.name: method for method in (ZeroShot, Local, FedAvg, FeDecider)}

__all__ = ["METHODS", "FeDecider", "FedAvg", "Local", "ZeroShot"]
