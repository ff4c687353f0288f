"""A finished run's models and data, read back from its folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fedecider import runs
from fedecider.adapter import Adapter, Factors
from fedecider.backbone import Backbone
from fedecider.config import RunConfig
from fedecider.direction import LowRank
from fedecider.domains import SPLITS, Domain, data_digest, read_domains
from fedecider.methods.fedecider import FeDecider


@dataclass(frozen=True)
class SavedRun:
    """A run's settings, its data as it read them, and the models that it chose and saved."""

    folder: Path
    config: RunConfig
    domains: list[Domain]

    @property
    def name(self) -> str:
        """The run as frames of <results>/runs name it, where it is runs/<dataset>/<run>."""
        run = Path(os.path.abspath(self.folder))
        return runs.name_of(run, run.parents[1])

    def adapter(self, backbone: Backbone) -> Adapter:
        """The run's adapter, to be closed by the caller; ValueError on another backbone."""
        config = self.config
        if backbone.name != config.backbone:
            raise ValueError(
                f"{self.name} was trained on {config.backbone}, not on {backbone.name}"
            )
        settings = (config.rank, config.lora_alpha, config.targets, config.top_layers, config.seed)
        return Adapter(backbone, *settings)

    def own(self, client: str) -> Factors:
        """The client's own LoRA, raw factors without gamma, by the adapted modules' names."""
        return _pairs(
            load_file(self.folder / "adapters" / client / "adapter_model.safetensors"),
            "base_model.model.",
            "lora_{}.weight",
        )

    def sent(self, client: str, adapter: Adapter) -> Factors:
        """The direction of that update, as fedecider sends it; a module without one is absent."""
        return FeDecider(self.config).directions(adapter.updates(self.own(client)))

    def foreign(self, client: str) -> tuple[dict[str, Factors], Tensor | None]:
        """The foreign directions by source and their weights (groups, sources); none: {}, None."""
        path = self.folder / "adapters" / client / "mixture.safetensors"
        if not path.exists():
            return {}, None
        with safe_open(path, "pt") as file:
            sources = list(filter(None, file.metadata()["sources"].split(",")))
        tensors = load_file(path)
        found = {name: _pairs(tensors, f"mixture/from {name}/", "{}", "/") for name in sources}
        return found, tensors.get("mixture/alpha")


def _pairs(tensors: dict[str, Tensor], prefix: str, ending: str, mark: str = ".") -> Factors:
    """Factors from the tensors named `<prefix><module><mark><ending>`, the ending's {} A or B."""
    A, B = (mark + ending.format(part) for part in "AB")
    return {
        name[len(prefix) : -len(A)]: LowRank(tensors[name[: -len(A)] + B], tensors[name])
        for name in sorted(tensors)
        if name.startswith(prefix) and name.endswith(A)
    }


def read(folder: Path | str, data: Path | str) -> SavedRun:
    """The run in a folder; `data` holds the prepared domains that it read.

    Raises FileNotFoundError if no finished run is there, ValueError if the data are not those of
    the run.
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run")
    stored = json.loads((folder / "config.json").read_text())
    known = {key: value for key, value in stored.items() if key in RunConfig.model_fields}
    config = RunConfig(**{**known, "data": data, "folder": folder})
    limits = {split: getattr(config, f"{split}_users") for split in SPLITS}
    domains = read_domains(data, config.domains, **limits)
    if stored.get("data_digest", "") != data_digest(domains):
        raise ValueError(f"{folder} was trained on other data than those in {data}")
    return SavedRun(folder, config, domains)
