"""What a method is: what a client trains, sends and takes in, and what the server makes of it.

The defaults share nothing, so a method's file shows just how it differs from training alone. A new
method is one file in this folder (see CONTRIBUTING.md): it is found by its class. On a client run
`fit`, `upload`, `receive`, `models_for`; on the server `aggregate`; they share bytes and the
configuration.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from fedecider.adapter import Adapter, Factors
from fedecider.config import RunConfig, group_of
from fedecider.direction import NormKind
from fedecider.domains import Domain
from fedecider.mixture import ClientModel
from fedecider.training import ClientData, Progress, TrainingReport
from fedecider.wire import Metric, PayloadError, PayloadSpec

Family = Literal["no language model", "reference", "federated", "ablation"]


class Upload(NamedTuple):
    """What a client sends: factors per module, and scalars by name.

    A part of a pair that stays at home is None. `metrics` are scalars sent with the factors, such
    as the number of training targets.
    """

    factors: Factors
    metrics: dict[str, float] = {}


Uploads = dict[str, Upload]  # client -> what it sent
Downloads = dict[str, dict[str, Factors]]  # receiver -> source -> factors
UserModels = list[tuple[list[str], ClientModel]]  # groups of users, each with its model


class NoSettings(BaseModel):
    """A method without settings of its own; the base of those that have some."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodClient(Protocol):
    """What a method sees of a client (see `fedecider.client.Client`)."""

    name: str
    data: ClientData
    model: ClientModel
    adapter: Adapter
    pending_directions: dict[str, Factors]
    report: TrainingReport
    progress: Progress | None

    def fit(self, round: int, **options: Any) -> TrainingReport:
        """Local training, `fedecider.training.fit` on the client's own data and model."""
        ...

    def local_update(self, round: int) -> bytes:
        """Train and encode what goes up."""
        ...

    def begin_round(self) -> None:
        """Remember the state to fall back on, should the client be left out of the round."""
        ...

    def refuse_diverged(self, round: int) -> None:
        """FloatingPointError if training went astray."""
        ...


class Method:
    """Trains every client alone; sends and receives nothing."""

    name: ClassVar[str]
    label: ClassVar[str]  # in figures and tables
    family: ClassVar[Family]
    color: ClassVar[str]  # the same in every figure
    order: ClassVar[int]  # of rows in tables
    trains: ClassVar[bool] = True  # False: no rounds
    reads_all_users: ClassVar[bool] = False  # not the sampled ones alone
    beside: ClassVar[str] = ""  # what a saved model has beside the own LoRA, in a sentence
    learns_alpha: bool = False
    sends_whole_loras: ClassVar[bool] = False  # every module at the run's rank, in each payload
    Settings: ClassVar[type[BaseModel]] = NoSettings
    # Settings of each try of a search: three of every trained method, none of the others.
    grid: ClassVar[list[dict[str, Any]]] = [{"lr": lr} for lr in (5e-4, 1e-3, 2e-3)]

    def __init__(self, config: RunConfig):
        self.config = config
        self.settings: Any = self.own_settings(config)

    @classmethod
    def own_settings(cls, config: RunConfig) -> BaseModel:
        """The validated settings of the method; ValueError in one sentence if they are unfit."""
        try:
            return cls.Settings(**config.settings)
        except ValidationError as error:
            entry = error.errors()[0]
            name = ".".join(str(part) for part in entry["loc"])
            if entry["type"] == "extra_forbidden":
                known = ", ".join(cls.Settings.model_fields) or "none"
                message = f"{cls.name} has no setting {name!r}; its own are: {known}"
                names = [*group_of(), "folder", "method", "seed", *cls.Settings.model_fields]
                if near := difflib.get_close_matches(name, names, 1):
                    message += f"; did you mean {near[0]}?"
            else:
                message = f"{name} of {cls.name}: {entry['msg']}, not {entry['input']!r}"
            raise ValueError(message) from error

    # On a client

    def fit(self, client: MethodClient, round: int) -> TrainingReport:
        """Local training in a round (1-based): A, B and, where learned, alpha."""
        return client.fit(round)

    def upload(self, client: MethodClient, round: int) -> Upload | None:
        """What the client sends after training; None for nothing."""
        return None

    def receive(self, client: MethodClient, downloads: dict[str, Factors], round: int) -> None:
        """What the client does with the decoded downloads, by source."""

    def models_for(
        self, data: ClientData, model: ClientModel, adapter: Adapter, split: str
    ) -> UserModels:
        """The model of each user of a split: users and their model, group by group."""
        return [(data.users(split), model)]

    # On the wire

    def shared_factors(self, round: int) -> str:
        """Factors that travel in a round, up and down: "AB", "A" or "B"."""
        return "AB"

    def payload_norm(self, *, up: bool) -> NormKind | None:
        """Norm in which every module of a payload must be a direction, on its way up or down.

        None: it may have any norm.
        """
        return None

    @property
    def metrics(self) -> dict[str, Metric]:
        """Scalars that every upload has to tell, each with its kind and bound."""
        return {}

    # On the server

    def aggregate(self, uploads: Uploads, round: int, absent: Sequence[str] = ()) -> Downloads:
        """From decoded uploads to downloads.

        `absent` are clients that sent nothing since they were left out of the round; they get what
        the others get, where that is no one's own.
        """
        return {}

    # In one process only

    def fit_all(
        self,
        clients: Sequence[MethodClient],
        round: int,
        diverged: Callable[[Any, FloatingPointError], None] | None = None,
    ) -> dict[str, bytes]:
        """A round of training on every client; what each sends.

        `diverged` takes in a client whose training diverged, and the error; without it the error is
        raised. A reference that pools what clients keep apart overrides this: clients in processes
        of their own cannot run it, they call `Client.local_update`.
        """
        payloads = dict.fromkeys((client.name for client in clients), b"")
        for client in clients:
            try:
                payloads[client.name] = client.local_update(round)
            except FloatingPointError as error:
                if diverged is None:
                    raise
                diverged(client, error)
        return payloads


@runtime_checkable
class CollaborativeFilter(Protocol):
    """A method without a language model: it ranks by itself."""

    def rank(
        self, domain: Domain, protocols: Sequence[str]
    ) -> tuple[dict[str, list[int]], dict[str, Any]]:
        """Ranks of the domain's test users by protocol, and the settings that validation chose."""
        ...


def sent_metric(uploads: Uploads, name: str) -> dict[str, float]:
    """A scalar that every client has to send, by client; PayloadError if one has not."""
    for client, upload in uploads.items():
        if name not in upload.metrics:
            raise PayloadError(f"payload of {client} does not tell its {name}", client)
    return {client: upload.metrics[name] for client, upload in uploads.items()}


def payload_spec(
    config: RunConfig, method: Method, shapes: dict[str, tuple[int, int]], round: int, *, up: bool
) -> PayloadSpec:
    """What a payload of that round must be, on its way up or down."""
    direction = config.direction
    return PayloadSpec(
        shapes=shapes,
        dtype=direction.payload_dtype,
        rank=config.lora.rank,
        parts=method.shared_factors(round),
        unit=method.payload_norm(up=up),
        truncate=direction.truncate,
        complete=method.sends_whole_loras,
        metrics=method.metrics if up else {},
    )
