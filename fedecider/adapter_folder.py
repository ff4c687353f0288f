"""What a client's adapter folder says of itself: a README, PEFT's fields, the mixture's metadata.

A folder holds the own LoRA as PEFT saves it and, where the method has more, mixture.safetensors.
Names stand there as JSON: a client's name may hold a comma.
"""

import json
from dataclasses import dataclass
from typing import Any

from fedecider.adapter import Adapter
from fedecider.config import RunConfig
from fedecider.engine.weights import exact_name
from fedecider.methods import METHODS
from fedecider.mixture import ClientModel, group_index


@dataclass(frozen=True)
class About:
    """A client's saved model; `rest` is all of it but the own LoRA."""

    client: str
    config: RunConfig
    adapter: Adapter
    rest: ClientModel

    @property
    def complete(self) -> bool:
        """Whether the own LoRA is the whole model: PEFT alone loads it."""
        return not (any(self.rest.peer_directions.values()) or self.rest.local_lora)

    @property
    def rows(self) -> list[str]:
        """What a row of alpha weighs: all layers, the layers of a block, or one module."""
        scope = self.config.direction.alpha_scope
        if scope == "client":
            return ["all adapted layers"]
        if scope == "layer":
            blocks = {self.adapter.block_of(name) for name in self.adapter.names}
            return [f"layer {block}" for block in sorted(blocks)]
        groups = group_index(self.adapter, scope)
        return sorted(groups, key=groups.__getitem__)

    @property
    def columns(self) -> list[str]:
        """Whose directions a column of alpha weighs."""
        return sorted(self.rest.peer_directions)

    def entries(self) -> dict[str, Any]:
        """For adapter_config.json."""
        entries: dict[str, Any] = {
            "client": self.client,
            "method": self.config.method,
            "holds": "the whole model" if self.complete else "the own LoRA alone",
        }
        if not self.complete:
            entries["also needs"] = "mixture.safetensors"
            entries["mixture"] = METHODS[self.config.method].beside
        return entries | (self._alpha() if self.rest.alpha is not None else {})

    def metadata(self) -> dict[str, str]:
        """For mixture.safetensors: names of alpha's rows and columns, as JSON."""
        return {name: json.dumps(names) for name, names in self._alpha().items()}

    def _alpha(self) -> dict[str, list[str]]:
        return {"alpha_rows": self.rows, "alpha_columns": self.columns}

    def readme(self) -> str:
        """README.md of the folder."""
        method, lora = METHODS[self.config.method], self.config.lora
        lines = [
            f"# {self.client}: what {method.label} trained on {self.config.data.dataset}",
            "",
            f"Base: {exact_name(self.adapter.backbone.name)}. Digest of its weights: "
            f"`{self.adapter.backbone.weights or 'unknown'}`. On other weights, the unquantised "
            "model of the same name included, the adapter is not what was trained.",
            "",
            "- `adapter_model.safetensors`: the own LoRA, as PEFT saves it (r = "
            f"{lora.rank}, lora_alpha = {lora.lora_alpha:g}, on {', '.join(lora.targets)}).",
        ]
        if self.complete:
            return "\n".join([*lines, "", "It is the whole model: PEFT alone loads it.", ""])
        lines += [f"- `mixture.safetensors`: what else the model has. {method.beside}", ""]
        if self.rest.alpha is not None and self.columns:
            lines += [
                f"Rows of `alpha`, in this order: {', '.join(self.rows)}. Columns: "
                f"{', '.join(self.columns)}. The file's metadata hold both as JSON.",
                "",
            ]
        return "\n".join(
            [
                *lines,
                "PEFT alone loads the own LoRA, which is not the model that was ranked; "
                "`fedecider.checkpoint.load_model` reads both files.",
                "",
            ]
        )


def sources_of(metadata: dict[str, str]) -> list[str]:
    """Clients whose directions a mixture holds; files of before JSON join them by commas."""
    if "alpha_columns" in metadata:
        return json.loads(metadata["alpha_columns"])
    return list(filter(None, metadata["sources"].split(",")))
