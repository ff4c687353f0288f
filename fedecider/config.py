"""One validated configuration of a run; every field has its help line."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class RunConfig(BaseModel):
    """A federation of one method on one data set with one seed.

    Unknown names are refused, so a mistyped setting never runs with a default in its place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What runs
    data: Path = Field(description="folder of prepared domains, one folder a domain")
    folder: Path = Field(description="run folder to write or to go on from")
    dataset: str = Field(description="name of the data set in tables")
    method: str = Field(description="a name of fedecider.methods.METHODS")
    seed: int = Field(0, ge=0, description="seeds the adapter's start and the order of the data")
    domains: list[str] | None = Field(None, description="domains that take part; null: all")

    # Backbone
    backbone: str = Field(
        "smollm2-135m", description="hub id, folder, smollm2-135m or tiny; @n: its first n blocks"
    )
    device: str = Field("auto", description="auto, cpu, cuda, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto", description="of the frozen weights; auto: bf16 where the processor has it"
    )

    # Sequences
    form: Literal["history", "instruction"] = Field("history", description="form of the prompt")
    history: int = Field(10, ge=1, description="titles of the user that a target is given")
    train_users: int | None = Field(None, ge=1, description="users a domain to train on; null: all")
    windows: int | None = Field(
        None,
        ge=1,
        description="latest training examples a user: of up to `history` targets each in the "
        "history form, of one in the instruction form; null: all",
    )
    valid_users: int | None = Field(None, ge=1, description="users a domain to validate on")
    test_users: int | None = Field(None, ge=1, description="users a domain to test on")

    # LoRA
    rank: int = Field(8, ge=1, description="r of LoRA")
    lora_alpha: float = Field(16, gt=0, description="LoRA's scale: gamma = lora_alpha / r")
    targets: list[str] = Field(["q_proj", "v_proj"], description="adapted linear layers")
    top_layers: int | None = Field(None, ge=1, description="adapt the top K blocks; null: all")

    # Local training
    rounds: int = Field(4, ge=1, description="communication rounds")
    local_epochs: int = Field(1, ge=1, description="passes over the client's data a round")
    batch_tokens: int = Field(1024, ge=8, description="tokens of one packed batch")
    lr: float = Field(1e-4, gt=0, description="AdamW's learning rate of A and B")
    lr_end: float = Field(0.1, ge=0, le=1, description="last step's rate as a share of lr; linear")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay of A and B")
    clip: float = Field(1.0, gt=0, description="largest gradient norm of A and B")

    # Directions and their mixture
    norm: Literal["frobenius", "column", "spectral"] = Field(
        "frobenius", description="norm that a direction has 1 of"
    )
    send: Literal["direction", "update"] = Field(
        "direction", description="what goes up; with update the server extracts the direction"
    )
    truncate: int | None = Field(None, ge=1, description="singular directions sent; null: all")
    wire: Literal["float32", "bfloat16", "int8"] = Field(
        "float32", description="precision of what travels; int8 has one scale a singular vector"
    )
    alpha_scope: Literal["client", "layer", "module"] = Field(
        "module", description="one weight per foreign client, per layer or per adapted module"
    )
    alpha_init: float = Field(0.0, description="initial weight as a share of the own update's norm")
    alpha_sign: Literal["free", "nonnegative"] = Field("free", description="constraint on alpha")
    alpha_lr: float = Field(0.01, ge=0, description="Adam's learning rate of alpha")
    alpha_warmup: int = Field(0, ge=0, description="steps a round that train alpha alone, first")
    uniform_weight: float = Field(
        1.0, description="sum of the fixed weights where they are not learned (two ablations)"
    )
    noise: float = Field(
        0.0, ge=0, description="Gaussian noise on a direction that is sent, as a share of its norm"
    )

    # Settings of single other methods
    fedprox_mu: float = Field(0.01, ge=0, description="fedprox: weight of the proximal term")
    sim_temperature: float = Field(
        1.0, gt=0, description="lora-sim: temperature of the softmax over cosine similarities"
    )
    fellrec_alpha: float = Field(0.7, gt=0, description="fellrec: weight of others at the start")
    fellrec_beta: float = Field(1.0, gt=0, description="fellrec: rounds of the warm-up")
    fellrec_temperature: float = Field(
        0.05, gt=0, description="fellrec: temperature of the softmax over losses (nats a token)"
    )
    dpa_weight: float = Field(
        0.5, ge=0, le=1, description="feddpa: largest weight of the local LoRA at inference"
    )
    dpa_samples: int = Field(
        5, ge=1, description="feddpa: training histories that an instance is compared with"
    )
    als_factors: list[int] = Field(
        [16, 32, 64], description="als: numbers of factors among which validation chooses"
    )
    als_confidences: list[float] = Field(
        [1.0, 10.0, 40.0], description="als: weights of an interaction among which it chooses"
    )

    # Ranking
    rankers: list[Literal["likelihood", "grounding", "trie"]] = Field(
        ["likelihood", "grounding"],
        description="1 + 99 lists by likelihood, whole catalogue by grounding, by trie or by both; "
        "none: the run ends with its validation losses",
    )
    prompt_weights: list[float] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0],
        description="weights of the empty-prompt correction among which validation chooses",
    )
    beams: int = Field(4, ge=1, description="beams of the title in grounding and in trie")
    title_tokens: int = Field(24, ge=1, description="longest generated title in grounding")

    @field_validator("prompt_weights", "targets", "als_factors", "als_confidences")
    @classmethod
    def _not_empty(cls, value: list) -> list:
        if not value:
            raise ValueError("needs at least one entry")
        return value

    @model_validator(mode="after")
    def _noise_is_the_clients(self) -> "RunConfig":
        if self.noise and self.send != "direction":
            raise ValueError("noise is put on directions by the client: it needs send = direction")
        return self

    def stored(self) -> dict:
        """As plain values for the run folder; paths without the machine's part."""
        values = json.loads(self.model_dump_json())
        values["data"] = "/".join(self.data.parts[-2:])
        values["folder"] = "/".join(self.folder.parts[-2:])
        return values
