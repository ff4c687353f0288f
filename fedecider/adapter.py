"""The own LoRA of a client: at all times a plain PEFT adapter.

All clients have one frozen backbone: their factors are swapped in and out of one PEFT adapter.
`save` writes what `PeftModel.from_pretrained` reads, without this package.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor

from fedecider.direction import LowRank
from fedecider.engine.backbone import Backbone
from fedecider.engine.files import atomic, digest
from fedecider.engine.packing import PackedBatch
from fedecider.engine.weights import exact_name

Factors = dict[str, LowRank]


class Adapter:
    """LoRA on the given linear layers of the top blocks of a frozen backbone.

    `names` are the adapted modules in sorted order, `first` the lowest adapted block, `gamma` the
    scale lora_alpha / rank. The initial A is drawn by `seed` (Kaiming uniform, as in LoRA), B is 0.
    Close it to give the backbone back as it was. Raises ValueError for targets that do not exist.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int,
        lora_alpha: float,
        targets: list[str],
        top_layers: int | None = None,
        seed: int = 0,
    ):
        self.backbone = backbone
        depth = len(backbone.layers)
        if top_layers is not None and not 1 <= top_layers <= depth:
            raise ValueError(f"top_layers must be 1 to {depth} for this model, got {top_layers}")
        self.first = depth - (top_layers or depth)
        config = LoraConfig(
            r=rank,
            lora_alpha=lora_alpha,  # type: ignore[arg-type] # a float is as good
            target_modules=targets,
            layers_to_transform=list(range(self.first, depth)),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        # PEFT draws from the global generator; it is drawn again below from an explicit one.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of a renamed property
            torch.manual_seed(seed)
            self.peft: PeftModel = get_peft_model(backbone.model, config)
        # A float64 model (tests of the theory) keeps its adapters in float64.
        if backbone.dtype == torch.float64:
            self.peft.to(torch.float64)
        self.modules = {
            name: module
            for name, module in sorted(backbone.model.named_modules())
            if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {})
        }
        if not self.modules:
            raise ValueError(f"no linear layers named {targets} in {backbone.name}")
        self.names = list(self.modules)
        self.rank, self.gamma = rank, lora_alpha / rank
        self.initial: Factors = self.draw(torch.Generator().manual_seed(seed))
        self.load(self.initial)

    def parameters(self, parts: str = "AB") -> list[torch.nn.Parameter]:
        """Trainable factors, module by module; `parts` may name only "A" or only "B"."""
        both = {"A": "lora_A", "B": "lora_B"}
        return [getattr(m, both[p])["default"].weight for m in self.modules.values() for p in parts]

    def draw(self, generator: torch.Generator) -> Factors:
        """A fresh LoRA: A Kaiming uniform as in LoRA, B zero, on the CPU."""
        factors = {}
        for name, module in self.modules.items():
            A = module.lora_A["default"].weight
            bound = A.shape[1] ** -0.5  # kaiming_uniform(a=sqrt(5)) of a (r, d_in) matrix
            fresh = torch.rand(A.shape, generator=generator, dtype=torch.float32) * 2 - 1
            B = torch.zeros(module.lora_B["default"].weight.shape, dtype=A.dtype)
            factors[name] = LowRank(B, (fresh * bound).to(A.dtype))
        return factors

    def factors(self) -> Factors:
        """A copy of the raw factors (without gamma) of every adapted module, on the CPU."""
        return {
            name: LowRank(
                module.lora_B["default"].weight.detach().cpu().clone(),
                module.lora_A["default"].weight.detach().cpu().clone(),
            )
            for name, module in self.modules.items()
        }

    @torch.no_grad()
    def load(self, factors: Factors) -> None:
        """Put a client's factors in; KeyError unless there are exactly those of `names`."""
        if sorted(factors) != self.names:
            missing = sorted(set(self.names) ^ set(factors))
            raise KeyError(f"factors do not fit the adapted modules; the difference: {missing}")
        for name, module in self.modules.items():
            for part, value in (("lora_B", factors[name].B), ("lora_A", factors[name].A)):
                weight = getattr(module, part)["default"].weight
                if weight.shape != value.shape:
                    raise ValueError(
                        f"{name} needs {part[-1]} of shape {tuple(weight.shape)}, "
                        f"got {tuple(value.shape)}"
                    )
                weight.copy_(value)

    def squared_distance(self, start: Factors) -> Tensor:
        """||theta - theta_start||^2 over all entries of A and B, (); differentiable in theta."""
        total = torch.zeros(())
        for name, module in self.modules.items():
            for part, before in (("lora_B", start[name].B), ("lora_A", start[name].A)):
                now = getattr(module, part)["default"].weight
                total = total + (now - before.to(now)).square().sum()
        return total

    def updates(self, factors: Factors) -> Factors:
        """dW = gamma B A of every module, factored; gamma goes into B."""
        return {name: factor.scaled(self.gamma) for name, factor in factors.items()}

    def save(self, folder: Path, entries: dict[str, Any] | None = None) -> None:
        """The adapter as PEFT writes it: adapter_config.json, adapter_model.safetensors.

        The configuration names the exact base and, as `revision`, a hub model's commit or a digest
        of the weights: PEFT's Auto classes ask the hub for that commit, read a folder of that name
        whatever the digest, and find a digest nowhere on the hub. `entries`, with digests of the
        tensor files in the folder, go into the field `auto_mapping`, which PEFT leaves alone.
        """
        config = self.peft.peft_config["default"].to_dict()
        config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
        config |= {
            "base_model_name_or_path": exact_name(self.backbone.name),
            "revision": self.backbone.weights.removeprefix("commit ") or None,
            "inference_mode": True,
        }
        # No embedding is trained; "auto" would look the name up on the hub to find that out.
        tensors = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic(folder / "adapter_model.safetensors") as beside:
            beside.write_bytes(save(tensors, {"format": "pt"}))
        if entries:
            files = sorted(folder.glob("[!.]*.safetensors"))
            entries = {**entries, "files": {file.name: digest(file) for file in files}}
        config["auto_mapping"] = {"fedecider": entries} if entries else None
        with atomic(folder / "adapter_config.json") as beside:
            beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def block_of(self, name: str) -> int:
        """Number of the block that a module belongs to."""
        match = re.search(r"layers\.(\d+)\.", name)
        assert match is not None, f"{name} lies in no block"
        return int(match[1])

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every adapted module."""
        return {name: (B.shape[0], A.shape[1]) for name, (B, A) in self.initial.items()}

    def close(self) -> None:
        """Take the adapter out; the backbone is frozen and plain again."""
        self.peft.unload()

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Normed last hidden states (T, width) of a batch of a `HiddenStateCache`.

        The batch holds the states below the first adapted block, (T, width).
        """
        states = batch.states.to(self.backbone.device, self.backbone.dtype)[None]
        out = self.backbone.blocks(states, batch.positions, batch, first=self.first)
        return self.backbone.normed(out)[0]
