"""The methods of section 5, one file each, and the table that names them."""

from fedecider.methods.als import Als
from fedecider.methods.centralized import Centralized
from fedecider.methods.fedavg import FedAvg
from fedecider.methods.feddpa import FedDPA
from fedecider.methods.fedecider import FeDecider
from fedecider.methods.fedecider_no_both import WithoutBoth
from fedecider.methods.fedecider_no_direction import WithoutDirection
from fedecider.methods.fedecider_no_personalization import WithoutPersonalization
from fedecider.methods.fedprox import FedProx
from fedecider.methods.fedsa_lora import FedSALoRA
from fedecider.methods.fellrec import FELLRec
from fedecider.methods.ffa_lora import FFALoRA
from fedecider.methods.flora import FLoRA
from fedecider.methods.local import Local
from fedecider.methods.lora_sim import LoRASim
from fedecider.methods.rolora import RoLoRA
from fedecider.methods.zero_shot import ZeroShot

_ALL = (ZeroShot, Als, Local, Centralized, FedAvg, FedProx, FFALoRA, FLoRA, FedSALoRA, RoLoRA)
_ALL += (LoRASim, FELLRec, FedDPA, WithoutBoth, WithoutPersonalization, WithoutDirection, FeDecider)

METHODS = {method.name: method for method in _ALL}

__all__ = ["METHODS"]
