"""The loop of every method, in one process: train, send, aggregate, receive, validate; rank once.

Clients and server share bytes alone. A client that diverges, or whose payload is refused, is left
out of the round (`rounds`). A run can be killed at any moment: the same call goes on from the last
finished round and ends with the same numbers.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from fedecider import checkpoint, runs
from fedecider.claims import Claim
from fedecider.client import Client, make_adapter
from fedecider.config import RunConfig
from fedecider.domains import Domain, data_digest, interactions_digest, read_domains
from fedecider.engine.backbone import Backbone, digest_of, load, make_deterministic, pick_device
from fedecider.engine.hidden_states import prune, remove_unfinished
from fedecider.integrity import is_finished
from fedecider.losses import LOSSES
from fedecider.methods import Method, make
from fedecider.methods.base import CollaborativeFilter
from fedecider.rankers import RANKERS
from fedecider.rankers.evaluate import write_ranks
from fedecider.recorder import Recorder
from fedecider.rounds import play_round
from fedecider.server import Server
from fedecider.training import Progress


def run(config: RunConfig, backbone: Backbone | None = None) -> Path:
    """Run one federation, or go on with it; returns the run folder.

    A finished run returns once its data and its files are checked; what is missing or damaged of
    its ranks, metrics and adapters is made again. Raises

    - ValueError as `check` does, if the folder holds a run with other settings, other data or
      another model (it is left untouched), and, naming the file, if its state is damaged;
    - FileNotFoundError if the data or the model is missing;
    - `claims.BusyError` if another process writes the folder;
    - `engine.files.WriteError` if the disk refuses;
    - what `rounds.play_round` raises if too few clients are left in a round.

    `backbone` saves loading it when several runs share a process; on a GPU, call
    `engine.backbone.make_deterministic` before loading it.
    """
    check(config)
    method = make(config)
    claim = Claim(config, method)
    claim.check()  # before reading the data, which may take minutes
    domains = read_domains(config.data.prepared, config.data.domains, **config.limits())
    least = config.training.min_clients
    if method.trains and least > len(domains):
        raise ValueError(f"min_clients is {least}, but {config.data.prepared} has {len(domains)}")
    everyone = interactions_digest(domains) if method.reads_all_users else ""
    claim.check(data_digest=data_digest(domains), interactions_digest=everyone)
    if not isinstance(method, CollaborativeFilter):
        claim.check(model_digest=digest_of(config.backbone.model))
    if not is_finished(config.folder):
        with claim.held():
            _run(config, method, domains, claim, backbone)
    return config.folder


def _run(
    config: RunConfig,
    method: Method,
    domains: Sequence[Domain],
    claim: Claim,
    backbone: Backbone | None,
) -> None:
    """What is left to do of a run whose folder is held."""
    recorder = Recorder(config.folder)
    if isinstance(method, CollaborativeFilter):
        _start(recorder, 0)
        claim.write()
        write_ranks(config, method, domains, recorder)
        return
    torch.manual_seed(config.seed)  # before any parameter exists
    make_deterministic(backbone.device if backbone else pick_device(config.backbone.device))
    remove_unfinished()
    wanted = config.backbone
    backbone = backbone or load(wanted.model, wanted.device, wanted.dtype)
    claim.check(model_digest=backbone.weights)
    with make_adapter(config, backbone) as adapter:
        clients = [Client(config, adapter, domain) for domain in domains]
        last = checkpoint.restore_round(config.folder, clients)
        _start(recorder, last)
        if method.trains:
            server = Server(config, adapter.shapes)
            _rounds(config, method, clients, server, recorder, last, claim)
        claim.write()
        write_ranks(config, method, clients, recorder)
    prune()


def check(config: RunConfig) -> None:
    """ValueError, in one sentence, for names that nobody has and settings that mean nothing."""
    method, direction = make(config), config.direction
    for name in config.ranking.rankers:
        if name not in RANKERS:
            raise ValueError(f"ranker must be one of {', '.join(RANKERS)}, got {name!r}")
    if config.training.loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {config.training.loss!r}")
    if (direction.direction_noise or direction.truncate) and method.payload_norm(up=False) is None:
        raise ValueError(
            f"{config.method} sends no directions: direction_noise and truncate mean nothing there"
        )


def _start(recorder: Recorder, last: int) -> None:
    recorder.restore(last)
    recorder.events.append("start", round=last, versions=runs.versions(), time=runs.now())


def _rounds(
    config: RunConfig,
    method: Method,
    clients: Sequence[Client],
    server: Server,
    recorder: Recorder,
    last: int,
    claim: Claim,
) -> None:
    """The rounds behind `last`, each with its state on disk at its end."""
    training = config.training
    tokens = training.local_epochs * sum(sum(c.data.train_states.sizes) for c in clients)
    title = f"{config.data.dataset} {config.method} seed {config.seed}"
    whole, done, look = training.rounds * tokens, last * tokens, {"unit": "tok", "unit_scale": True}
    with tqdm(total=whole, initial=done, desc=title, mininterval=1, **look) as bar:
        for round in range(last + 1, training.rounds + 1):
            for client in clients:
                client.progress = _progress(bar, f"round {round} {client.name}")
            play_round(round, method, clients, server, recorder)
            # Before the state: a kill in between leaves an event that resuming drops, never a gap.
            recorder.events.append("round", round=round, time=runs.now())
            recorder.write()
            claim.write()
            checkpoint.save_round(config.folder, round, clients)


def _progress(bar: tqdm, label: str) -> Progress:
    def show(tokens: int, loss: float) -> None:
        bar.update(tokens)
        bar.set_postfix_str(f"{label} loss {loss:.3f}", refresh=False)

    return show
