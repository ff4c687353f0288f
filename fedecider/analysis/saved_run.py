"""A finished run as analyses read it: its settings, its data and the models that it chose."""

from dataclasses import dataclass
from pathlib import Path

from fedecider import checkpoint, integrity, runs
from fedecider.adapter import Adapter, Factors
from fedecider.client import make_adapter
from fedecider.config import RunConfig
from fedecider.domains import Domain, data_digest, read_domains
from fedecider.engine.backbone import Backbone
from fedecider.engine.weights import split_depth
from fedecider.methods import make
from fedecider.methods.fedecider import FeDecider
from fedecider.mixture import ClientModel


@dataclass(frozen=True)
class SavedRun:
    """A finished run's settings, its data as it read them, and the models that it chose."""

    folder: Path
    config: RunConfig
    domains: list[Domain]
    weights: str = ""  # `Backbone.weights` of the model that it was trained on

    def adapter(self, backbone: Backbone) -> Adapter:
        """The run's adapter, to be closed by the caller; ValueError on another backbone."""
        model = self.config.backbone.model
        if self.weights and backbone.weights:  # a folder may lie elsewhere by now
            same = self.weights == backbone.weights
            same = same and split_depth(model)[1] == split_depth(backbone.name)[1]
        else:
            same = backbone.name == model
        if not same:
            raise ValueError(f"{self.folder} was trained on {model}, not on {backbone.name}")
        return make_adapter(self.config, backbone)

    def model(self, client: str) -> ClientModel:
        """The client's chosen model."""
        return checkpoint.load_model(self.folder / "adapters" / client)

    def sent(self, client: str, adapter: Adapter) -> Factors:
        """The direction of the own update, as fedecider sends it; a zero update is absent."""
        method = FeDecider(self.config.model_copy(update={"settings": {}}))
        return method.directions(adapter.updates(self.model(client).factors))


def read_run(folder: Path | str, data: Path | str) -> SavedRun:
    """The finished run in a folder; `data` holds the prepared domains that it read.

    Raises FileNotFoundError if no finished run is there, ValueError if the data are not those of
    the run, a file of the run is not what was written, or a setting of its method is missing.
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run")
    integrity.check_all(folder)
    stored = runs.read_config(folder)
    group = {**stored.config["data"], "prepared": data}
    config = RunConfig(**{**stored.config, "data": group, "folder": folder})
    absent = sorted(set(make(config).settings.model_dump()) - set(config.settings))
    if absent:
        raise ValueError(f"{folder / 'config.json'} does not tell {absent[0]} of {config.method}")
    domains = read_domains(data, config.data.domains, **config.limits())
    if stored.data_digest != data_digest(domains):
        raise ValueError(f"{folder} was trained on other data than those in {data}")
    return SavedRun(folder, config, domains, stored.read.get("model_digest", ""))
