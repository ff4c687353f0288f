"""One validated configuration of a run, in groups; every field has its help line.

A method's own settings stand in its file and travel here as `settings`; they, and the names of
method, rankers and loss, are checked by `federation.check`. Names of fields are unique over all
groups, so that `RunConfig.of` takes them without the groups.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedecider.direction import NormKind

Scope = Literal["client", "layer", "module"]
Sign = Literal["free", "nonnegative"]
PayloadDtype = Literal["float32", "bfloat16", "int8"]


class Group(BaseModel):
    """Settings that belong together; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Group):
    """What the clients read."""

    prepared: Path = Field(description="folder of prepared domains, one folder per domain")
    dataset: str = Field(description="name of the data set in tables")
    domains: list[str] | None = Field(None, description="domains that take part; null: all")
    train_users: int | None = Field(
        None, ge=1, description="users per domain to train on; null: all"
    )
    valid_users: int | None = Field(None, ge=1, description="users per domain to validate on")
    test_users: int | None = Field(None, ge=1, description="users per domain to test on")
    history: int = Field(10, ge=1, description="titles of the user that a target is given")
    windows_per_user: int | None = Field(
        None,
        ge=1,
        description="latest training examples per user: of up to `history` targets each in the "
        "history template, of one in the instruction template; null: all",
    )
    prompt_template: Literal["history", "instruction"] = Field(
        "history", description="form of the prompt"
    )


class BackboneConfig(Group):
    """The frozen language model."""

    model: str = Field(
        "smollm2-135m", description="hub id, folder, smollm2-135m or tiny; @n: its first n blocks"
    )
    device: str = Field("auto", description="auto, cpu, cuda, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="of the frozen weights; auto: bf16 where the processor has it"
    )


class LoraConfig(Group):
    """The own LoRA of every client."""

    rank: int = Field(8, ge=1, description="r of LoRA")
    lora_alpha: float = Field(16, gt=0, description="LoRA's scale: gamma = lora_alpha / r")
    targets: list[str] = Field(
        ["q_proj", "v_proj"], min_length=1, description="adapted linear layers"
    )
    top_layers: int | None = Field(None, ge=1, description="adapt the top K blocks; null: all")


class TrainingConfig(Group):
    """Rounds and local training."""

    loss: str = Field("vocabulary", description="a name of fedecider.losses.LOSSES")
    rounds: int = Field(4, ge=1, description="communication rounds")
    min_clients: int = Field(
        1,
        ge=1,
        description="clients that a round needs: one that diverges, or whose payload is refused, "
        "is left out of the round; with fewer left the run ends",
    )
    local_epochs: int = Field(1, ge=1, description="passes over the client's data per round")
    batch_tokens: int = Field(1024, ge=8, description="tokens of one packed batch")
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate of A and B")
    lr_end: float = Field(0.1, ge=0, le=1, description="last step's rate as a share of lr; linear")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay of A and B")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm of A and B")


class DirectionConfig(Group):
    """Directions, their payloads and their mixture."""

    norm: NormKind = Field("frobenius", description="norm that directions are scaled to 1 in")
    send: Literal["direction", "update"] = Field(
        "direction", description="what goes up; with update the server extracts the direction"
    )
    truncate: int | None = Field(None, ge=1, description="singular directions sent; null: all")
    payload_dtype: PayloadDtype = Field(
        "float32", description="precision of what travels; int8 has one scale per singular vector"
    )
    direction_noise: float = Field(
        0.0, ge=0, description="Gaussian noise on a direction that is sent, as a share of its norm"
    )
    alpha_scope: Scope = Field(
        "module", description="one weight per peer client, per layer or per adapted module"
    )
    alpha_init: float = Field(0.0, description="initial weight as a share of the own update's norm")
    alpha_sign: Sign = Field("free", description="constraint on alpha")
    alpha_lr: float = Field(0.01, ge=0, description="Adam's learning rate of alpha")
    alpha_warmup: int = Field(
        0, ge=0, description="steps per round that train alpha alone, before the others"
    )

    @model_validator(mode="after")
    def _noise_is_the_clients(self) -> "DirectionConfig":
        if self.direction_noise and self.send != "direction":
            raise ValueError(
                "direction_noise is put on directions by the client: it needs send = direction"
            )
        return self


class RankingConfig(Group):
    """From a trained model to ranks."""

    rankers: list[str] = Field(
        ["likelihood", "grounding"],
        description="names of fedecider.rankers.RANKERS; none: the run ends with its validation "
        "losses",
    )
    prompt_weights: list[float] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0],
        min_length=1,
        description="weights of the empty-prompt correction among which validation chooses",
    )
    beams: int = Field(4, ge=1, description="beams of the title in grounding and in trie")
    title_tokens: int = Field(24, ge=1, description="longest generated title in grounding")


class RunConfig(Group):
    """A federation of one method on one data set with one seed.

    Unknown names are refused, so a mistyped setting never runs with a default in its place.
    """

    folder: Path = Field(description="run folder to write or to go on from")
    method: str = Field(description="a name of fedecider.methods.METHODS")
    seed: int = Field(0, ge=0, description="seeds the adapter's start and the order of the data")
    settings: dict[str, Any] = Field({}, description="the method's own, see its Settings")
    data: DataConfig
    backbone: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    direction: DirectionConfig = DirectionConfig()
    ranking: RankingConfig = RankingConfig()

    GROUPS: ClassVar[dict[str, type[Group]]] = {
        "data": DataConfig,
        "backbone": BackboneConfig,
        "lora": LoraConfig,
        "training": TrainingConfig,
        "direction": DirectionConfig,
        "ranking": RankingConfig,
    }

    @field_validator("settings")
    @classmethod
    def _not_a_group(cls, settings: dict[str, Any]) -> dict[str, Any]:
        misplaced = sorted(set(settings) & group_of().keys())
        if misplaced:
            raise ValueError(
                f"{misplaced[0]} belongs to the group {group_of()[misplaced[0]]}, not to a method"
            )
        return settings

    @classmethod
    def of(cls, **values: Any) -> "RunConfig":
        """The configuration of plain names: `RunConfig.of(folder=..., rank=4, lr=1e-3, mu=0.1)`.

        A name that no group has is one of the method's own; these may also come as a dict
        `settings`. Raises ValueError for the name of a group and for a setting that comes both
        ways, and pydantic's ValidationError.
        """
        groups = sorted(set(values) & cls.GROUPS.keys())
        if groups:
            names = ", ".join(cls.GROUPS[groups[0]].model_fields)
            raise ValueError(
                f"{groups[0]} is a group: name its settings themselves ({names}), "
                "or call RunConfig(...) with groups"
            )
        own = values.pop("settings", {})
        if not isinstance(own, dict):
            raise ValueError(f"settings must be a dict of the method's own, got {own!r}")
        nested = grouped(values)
        twice = sorted(set(own) & nested.get("settings", {}).keys())
        if twice:
            raise ValueError(f"{twice[0]} is given twice, in settings and by its plain name")
        return cls(**{**nested, "settings": {**nested.get("settings", {}), **own}})

    def limits(self) -> dict[str, int | None]:
        """Users per domain of each split, as `domains.read_domains` takes them."""
        data = self.data
        return {"train": data.train_users, "valid": data.valid_users, "test": data.test_users}

    def flat(self) -> dict[str, Any]:
        """Every setting by its plain name, the method's own included."""
        return flattened(json.loads(self.model_dump_json()))

    def stored(self) -> dict[str, Any]:
        """As plain values for the run folder; paths without the machine's part."""
        values = json.loads(self.model_dump_json())
        values["data"]["prepared"] = "/".join(self.data.prepared.parts[-2:])
        values["folder"] = "/".join(self.folder.parts[-2:])
        return values


def group_of() -> dict[str, str]:
    """Group of every setting that is no method's own, by name."""
    return {name: group for group, cls in RunConfig.GROUPS.items() for name in cls.model_fields}


def grouped(values: dict[str, Any]) -> dict[str, Any]:
    """Plain names put into their groups; names that none has are the method's own settings."""
    groups, known = group_of(), set(RunConfig.model_fields)
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if name in groups:
            nested.setdefault(groups[name], {})[name] = value
        elif name in known and name not in RunConfig.GROUPS and name != "settings":
            nested[name] = value
        else:
            nested.setdefault("settings", {})[name] = value
    return nested


def flattened(nested: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `grouped`: every setting of a stored configuration by its plain name."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= value if name in RunConfig.GROUPS or name == "settings" else {name: value}
    return flat


# Names of before the groups, when a configuration was one flat table with every method's settings.
_RENAMED = {
    "data": "prepared",
    "backbone": "model",
    "form": "prompt_template",
    "windows": "windows_per_user",
    "clip": "max_grad_norm",
    "wire": "payload_dtype",
    "noise": "direction_noise",
}
# The same of methods' own settings, which no other method's run needs.
_UNIFORM = {"uniform_weight": "uniform_weight"}
_OWN = {
    "als": {"als_factors": "factors", "als_confidences": "confidences"},
    "feddpa": {"dpa_weight": "max_weight", "dpa_samples": "instances"},
    "fedecider": _UNIFORM,
    "fedecider-no-both": _UNIFORM,
    "fedecider-no-direction": _UNIFORM,
    "fedecider-no-personalization": _UNIFORM,
    "fedprox": {"fedprox_mu": "mu"},
    "fellrec": {
        "fellrec_alpha": "alpha",
        "fellrec_beta": "beta",
        "fellrec_temperature": "temperature",
    },
    "lora-sim": {"sim_temperature": "temperature"},
}
# What folders meant that are older than a name, by the form that they have. No other name may lack.
_MEANT: dict[str, dict[str, Any]] = {
    "grouped": {"min_clients": 1},
    "flat": {
        "loss": "vocabulary",
        "min_clients": 1,
        "payload_dtype": "float32",
        "direction_noise": 0.0,
    },
}
# The same of methods' own settings; only flat folders are older than these.
_OWN_MEANT: dict[str, dict[str, Any]] = {
    "als": {"confidences": [1.0]},
    "fedecider": {"shared": "direction", "weights": "learned", "uniform_weight": 1.0},
    "fedecider-no-both": {"shared": "update", "weights": "uniform"},
    "fedecider-no-direction": {"shared": "update", "weights": "learned"},
    "fedecider-no-personalization": {"shared": "direction", "weights": "uniform"},
    "fellrec": {"temperature": 0.05},
}


def from_stored(values: dict[str, Any]) -> dict[str, Any]:
    """A run folder's configuration in groups; a flat one of before the groups is mapped.

    Raises ValueError for a name that neither form has and for one that is missing: nothing is read
    with a silent default. What a folder older than a name meant by it stands in a table. A grouped
    configuration's `settings` are those that the run had; `claims` and `read_run` compare them with
    the method's.
    """
    if isinstance(values.get("data"), dict):
        unknown = sorted(set(values) - set(RunConfig.model_fields))
        if unknown:
            raise ValueError(f"a stored configuration has the unknown entry {unknown[0]!r}")
        return _complete(values, "grouped")
    method = values.get("method")
    own = _OWN.get(str(method), {})
    plain = {**_OWN_MEANT.get(str(method), {}), **renamed(values)}
    absent = [before for before, now in own.items() if now not in plain]
    if absent:
        raise ValueError(f"a stored configuration lacks the entry {absent[0]!r} of {method}")
    return _complete({"settings": {}, **grouped(plain)}, "flat")


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Entries of a flat configuration by today's plain names, without other methods' settings.

    Raises ValueError for an unknown name.
    """
    known = {*group_of(), *RunConfig.model_fields} - {*RunConfig.GROUPS, "settings"}
    own = _OWN.get(str(values.get("method")), {})
    others = {name for names in _OWN.values() for name in names}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name in own:
            plain[own[name]] = value
        elif _RENAMED.get(name, name) in known:
            plain[_RENAMED.get(name, name)] = value
        elif name not in others:
            raise ValueError(f"a stored configuration has the unknown entry {name!r}")
    return plain


def _complete(nested: dict[str, Any], form: str) -> dict[str, Any]:
    """A stored configuration with what its form meant by names that did not exist then."""
    meant = _MEANT[form]
    for name in RunConfig.model_fields:
        if name not in nested:
            raise ValueError(f"a stored configuration lacks the entry {name!r}")
    for group, cls in RunConfig.GROUPS.items():
        missing = [name for name in cls.model_fields if name not in nested[group]]
        for name in missing:
            if name not in meant:
                before = {now: old for old, now in _RENAMED.items()} if form == "flat" else {}
                raise ValueError(
                    f"a stored configuration lacks the entry {before.get(name, name)!r} of {group}"
                )
        if missing:
            nested = {**nested, group: {**nested[group], **{name: meant[name] for name in missing}}}
    return nested
