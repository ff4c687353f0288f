"""The round loop of every method: train, send, aggregate, receive, validate; then rank once.

The server sees only what goes through `wire`. A run can be killed at any moment: the same command
goes on from the last finished round and ends with the same numbers.
"""

import copy
import json
import math
import os
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from fedecider import runs, wire
from fedecider.adapter import Adapter, Factors
from fedecider.backbone import Backbone, load, pick_device
from fedecider.client import Client, ClientData, ClientModel, PooledData, train, validation_loss
from fedecider.config import RunConfig
from fedecider.direction import LowRank
from fedecider.domains import SPLITS, data_digest, read_domains
from fedecider.evaluation import evaluate
from fedecider.gram import cosines, gram, norms
from fedecider.memory import forget_peak, peak
from fedecider.methods import METHODS
from fedecider.sequences import make_form
from fedecider.trunk import prune

# Settings that may change between a start and a resumption without changing a number.
_PLACES = ("data", "folder")
# What is noted every round; attributes of a federation and files of its folder.
_TABLES = ("rounds", "alphas", "geometry")


def run(config: RunConfig, backbone: Backbone | None = None) -> Path:
    """Run one federation, or go on with it; returns the run folder.

    A finished run returns once its data are checked. Raises ValueError if the method is unknown or
    if the folder holds a run with other settings or other data (it is left untouched),
    FileNotFoundError if the data or the model is missing. `backbone` saves loading it when several
    runs share a process; on a GPU, call `settle` before loading it.
    """
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {config.method!r}")
    if (config.noise or config.truncate) and not METHODS[config.method].sends_directions:
        raise ValueError(
            f"{config.method} sends no directions: noise and truncate mean nothing there"
        )
    folder, claim = config.folder, config.stored()
    _check(folder, claim)  # before reading the data, which may take minutes
    limits = {split: getattr(config, f"{split}_users") for split in SPLITS}
    domains = read_domains(config.data, config.domains, **limits)
    claim["data_digest"] = data_digest(domains)
    _check(folder, claim)
    if not (folder / "config.json").exists():
        runs.write_json(folder / "config.json", claim)
    if (folder / "result.json").exists():
        return folder
    torch.manual_seed(config.seed)  # before any parameter exists
    settle(backbone.device if backbone else pick_device(config.device))
    backbone = backbone or load(config.backbone, config.device, config.dtype)
    settings = (config.rank, config.lora_alpha, config.targets, config.top_layers, config.seed)
    with Adapter(backbone, *settings) as adapter:
        Federation(config, adapter, domains).run()
    prune()
    return folder


def settle(device: torch.device) -> None:
    """Make a GPU's results reproducible; a CPU's are.

    cuBLAS reads its variable once, before its first product, and loading a model makes one.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _check(folder: Path, claim: dict) -> None:
    """ValueError if the folder's config.json is of another run than the one claimed."""
    path = folder / "config.json"
    if not path.exists():
        return
    stored = json.loads(path.read_text())
    for key, value in claim.items():
        if key in _PLACES or stored.get(key) == value:
            continue
        what = f"{key} = {stored.get(key)!r}, not {value!r}"
        if key == "data_digest":  # folders of before there was one do not tell
            what = f"{'other' if key in stored else 'unknown'} data ({what})"
        raise ValueError(f"{path} is of a run with {what}: name another folder or delete this one")


class Federation:
    """Clients and server of one run, in one process, over one frozen backbone."""

    def __init__(self, config: RunConfig, adapter: Adapter, domains):
        self.config, self.adapter, self.folder = config, adapter, config.folder
        self.method = METHODS[config.method](config)
        form = make_form(config.form, adapter.backbone.tokenizer, adapter.backbone.start)
        self.clients = [
            Client(ClientData(domain, adapter, form, config), ClientModel(dict(adapter.initial)))
            for domain in domains
        ]
        self.shapes = {
            name: (pair.B.shape[0], pair.A.shape[1]) for name, pair in adapter.initial.items()
        }
        self.events = runs.Events(self.folder / "events.jsonl")
        self.rounds: list[dict] = []
        self.alphas: list[dict] = []
        self.geometry: list[dict] = []

    def run(self) -> None:
        """All rounds that are left, then the evaluation."""
        last = self._restore()
        self.events.keep_rounds(last)
        self.events.append("start", round=last, versions=runs.versions(), time=_now())
        if self.method.rounds_needed:
            self._rounds(last)
        else:
            for client in self.clients:
                client.best = client.model
        self._evaluate()

    # Rounds

    def _rounds(self, last: int) -> None:
        config = self.config
        a_round = config.local_epochs * sum(
            tree.size for client in self.clients for tree in client.data.train_trunk.trees
        )
        bar = tqdm(
            total=config.rounds * a_round,
            initial=last * a_round,
            desc=f"{config.dataset} {config.method} seed {config.seed}",
            unit="tok",
            unit_scale=True,
            mininterval=1,
        )
        with bar:
            for number in range(last + 1, config.rounds + 1):
                self._round(number, bar)

    def _round(self, number: int, bar: tqdm) -> None:
        rows = self._train(number, bar)
        for client in self.clients:
            self._refuse_diverged(client, number, "training", rows[client.name]["train_loss"])
        geometry = self._note_geometry(number)
        for client in self.clients:
            size = geometry[client.name]
            size = size if size <= wire.LARGEST_NORM else math.inf
            self._refuse_diverged(client, number, "the update's norm", size)
        up, down = self._exchange(number)
        for client in self.clients:
            # The model as the client would use it after this round.
            loss = validation_loss(client, self.adapter, self.method)
            self._refuse_diverged(client, number, "validation loss", loss)
            if loss < client.best_loss:
                client.best, client.best_loss = copy.copy(client.model), loss
                client.best_round = number
            trained = rows[client.name]
            row = {
                "round": number,
                "client": client.name,
                "train_loss": trained["train_loss"],
                "valid_loss": loss,
                "bytes_up": up.get(client.name, 0),
                "bytes_down": down.get(client.name, 0),
                "seconds": round(trained["seconds"], 3),
                "update_norm": geometry[client.name],
                "steps": trained["steps"],
                "memory": round(trained["memory"], 1),
            }
            self.rounds.append(row)
            self.events.append("client", **row)
            self._note_alphas(client, number)
        # Before the state: a kill in between leaves an event that resuming drops, never a gap.
        self.events.append("round", round=number, time=_now())
        self._save(number)

    def _refuse_diverged(self, client: Client, number: int, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what} of {client.name} is {value} after round {number}: "
                f"the learning rate {self.config.lr:g} may be too high"
            )

    def _train(self, number: int, bar: tqdm) -> dict[str, dict]:
        """Local training of every client, or of one model on the data of all; a row a client."""
        rows: dict[str, dict] = {}
        pooled = []
        if self.method.pooled:
            data = PooledData([client.data for client in self.clients])
            pooled = [Client(data, self.clients[0].model, label=self.method.name)]
        for client in pooled or self.clients:
            self._forget_peak()
            begin = time.perf_counter()
            self.method.begin(client, number)

            def progress(tokens: int, loss: float, name: str = client.name) -> None:
                bar.update(tokens)
                bar.set_postfix_str(f"round {number} {name} loss {loss:.3f}", refresh=False)

            row = train(client, self.adapter, self.method, number, progress)
            row |= {"seconds": time.perf_counter() - begin, "memory": self._peak()}
            rows[client.name] = row
        if pooled:
            rows = {client.name: row for client in self.clients}
            for client in self.clients:
                client.model = copy.copy(pooled[0].model)
        return rows

    # Memory of the device that trains: a GPU's own, else this process'.

    def _forget_peak(self) -> None:
        if self.adapter.backbone.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.adapter.backbone.device)
        else:
            forget_peak()

    def _peak(self) -> float:
        device = self.adapter.backbone.device
        return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else peak()

    def _note_geometry(self, number: int) -> dict[str, float]:
        """Norms and cosines of all updates as trained; returns each client's norm over all layers.

        For the figures alone: a simulation sees all clients, and no method does.
        """
        names = [client.name for client in self.clients]
        products = gram([self.adapter.updates(client.model.factors) for client in self.clients])
        sizes, similar = norms(products), cosines(products)
        for layer in products:
            for i, client in enumerate(names):
                for j, other in enumerate(names):
                    row = {"round": number, "layer": layer, "client": client, "other": other}
                    row |= {"cosine": similar[layer][i, j].item(), "norm": sizes[layer][i].item()}
                    self.geometry.append(row)
        whole = sum(size.double().square() for size in sizes.values()).sqrt()
        return dict(zip(names, whole.tolist(), strict=True))

    def _exchange(self, number: int) -> tuple[dict[str, int], dict[str, int]]:
        """One round trip through the wire; bytes sent and received per client."""
        method, up, down, uploads, numbers = self.method, {}, {}, {}, {}
        precision = self.config.wire
        expected = {
            "whole": self.config.truncate is None,
            "precision": precision,
            "rank": self.config.rank,
            "parts": method.shares(number),
        }
        for client in self.clients:
            factors = method.upload(client, self.adapter, number)
            if factors is not None:
                sent = {method.number_sent: method.number(client)} if method.number_sent else None
                payload = wire.encode(factors, sent, precision)
                up[client.name] = len(payload)
                # From here on the server knows only the bytes.
                uploads[client.name] = wire.decode(
                    payload, self.shapes, client.name, method.up_unit(), **expected
                )
                if method.number_sent:
                    name = method.number_sent
                    numbers[client.name] = wire.number(payload, client.name, name)
        downloads = method.aggregate(uploads, numbers, number) if uploads else {}
        for client in self.clients:
            received = {}
            for source, factors in sorted(downloads.get(client.name, {}).items()):
                payload = wire.encode(factors, precision=precision)
                down[client.name] = down.get(client.name, 0) + len(payload)
                received[source] = wire.decode(
                    payload, self.shapes, source, method.down_unit(), **expected
                )
            if received:
                method.receive(client, received, self.adapter, number)
        return up, down

    def _note_alphas(self, client: Client, number: int) -> None:
        mixture = client.model.mixture(self.adapter, self.config)
        if mixture is None or not self.method.learns_alpha:
            return
        for layer, weights in mixture.per_module().items():
            for source, alpha in zip(mixture.sources, weights.tolist(), strict=True):
                row = {"round": number, "client": client.name, "source": source}
                self.alphas.append({**row, "layer": layer, "alpha": alpha})

    # State on disk

    def _save(self, number: int) -> None:
        """The state after a round; the JSON file is renamed last and names the tensor file."""
        tensors: dict[str, torch.Tensor] = {}
        state = {"round": number, "clients": {}}
        for client in self.clients:
            state["clients"][client.name] = {
                "best_loss": client.best_loss,
                "best_round": client.best_round,
                "sources": sorted(client.model.foreign),
                "incoming": sorted(client.incoming),
                "best_sources": sorted(client.best.foreign) if client.best else None,
            }
            _flatten(tensors, f"{client.name}/model", client.model)
            _flatten(tensors, f"{client.name}/best", client.best)
            _flatten(tensors, f"{client.name}/incoming", ClientModel({}, client.incoming))
        name = f"round-{number:03d}.safetensors"
        with runs.atomic(self.folder / "checkpoint" / name) as beside:
            save_file(tensors, beside)
        state["tensors"] = name
        self._write_tables()
        runs.write_json(self.folder / "checkpoint" / "state.json", state)
        for old in (self.folder / "checkpoint").glob("round-*.safetensors"):
            if old.name != name:
                old.unlink()

    def _restore(self) -> int:
        """Number of the last finished round, its state put back; 0 for a fresh run."""
        path = self.folder / "checkpoint" / "state.json"
        if not path.exists():
            return 0
        state = json.loads(path.read_text())
        tensors = load_file(path.parent / state["tensors"])
        for client in self.clients:
            stored = state["clients"][client.name]
            client.best_loss, client.best_round = stored["best_loss"], stored["best_round"]
            client.model = _unflatten(tensors, f"{client.name}/model", stored["sources"])
            client.best = _unflatten(tensors, f"{client.name}/best", stored["best_sources"] or [])
            incoming = _unflatten(tensors, f"{client.name}/incoming", stored["incoming"])
            client.incoming = incoming.foreign
        last = state["round"]
        for name in _TABLES:
            frame = pd.read_csv(self.folder / f"{name}.csv")
            rows = getattr(self, name)
            rows += frame[frame["round"] <= last].to_dict("records")
        return last

    # The end

    def _evaluate(self) -> None:
        ranks, choices = [], {}
        begin = time.perf_counter()
        for client in tqdm(self.clients, desc=f"ranking {self.config.method}", unit="client"):
            frame, chosen = evaluate(client.data, client.best, self.adapter, self.method)
            ranks.append(frame)
            choices[client.name] = {**chosen, "best_round": client.best_round}
            if self.method.language_model:
                self._save_adapter(client)
            self.events.append("evaluated", client=client.name, **choices[client.name])
        ranks = pd.concat(ranks, ignore_index=True)
        metrics = runs.metrics_of(ranks)
        with runs.atomic(self.folder / "ranks.parquet") as beside:
            ranks.to_parquet(beside, index=False)
        runs.write_csv(self.folder / "metrics.csv", metrics)
        if not self.method.rounds_needed:
            self._write_tables()
        result = {
            "config": self.config.stored(),
            "versions": runs.versions(),
            "choices": choices,
            "ranking_seconds": round(time.perf_counter() - begin, 1),
            "finished": _now(),
        }
        self.events.append("finished", time=result["finished"])
        runs.write_json(self.folder / "result.json", result)

    def _write_tables(self) -> None:
        for name in _TABLES:
            known = ("dataset", "method", "seed", "run")  # from config.json and the folder
            columns = [column for column in runs.COLUMNS[name] if column not in known]
            runs.write_csv(
                self.folder / f"{name}.csv", pd.DataFrame(getattr(self, name), columns=columns)
            )

    def _save_adapter(self, client: Client) -> None:
        """The chosen own LoRA as PEFT writes it, and what else the model has beside it."""
        folder = self.folder / "adapters" / client.name
        folder.mkdir(parents=True, exist_ok=True)
        self.adapter.load(client.best.factors)
        self.adapter.save(folder)
        best = client.best
        if any(best.foreign.values()) or best.personal:
            tensors: dict[str, torch.Tensor] = {}
            _flatten(tensors, "mixture", ClientModel({}, best.foreign, best.alpha, best.personal))
            with runs.atomic(folder / "mixture.safetensors") as beside:
                save_file(tensors, beside, {"sources": ",".join(sorted(client.best.foreign))})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _flatten(tensors: dict[str, torch.Tensor], prefix: str, model: ClientModel | None) -> None:
    if model is None:
        return
    parts: dict[str, Factors] = {"own": model.factors}
    if model.personal is not None:
        parts["personal"] = model.personal
    parts |= {f"from {source}": factors for source, factors in model.foreign.items()}
    for label, factors in parts.items():
        for name, pair in factors.items():
            # Cloned: safetensors refuses tensors that share memory, as a shared start does.
            tensors[f"{prefix}/{label}/{name}/A"] = pair.A.contiguous().clone()
            tensors[f"{prefix}/{label}/{name}/B"] = pair.B.contiguous().clone()
    if model.alpha is not None:
        tensors[f"{prefix}/alpha"] = model.alpha.contiguous().clone()


def _unflatten(tensors: dict[str, torch.Tensor], prefix: str, sources: list[str]) -> ClientModel:
    model = ClientModel({}, {source: {} for source in sources}, tensors.get(f"{prefix}/alpha"))
    for key in sorted(tensors):
        if key.startswith(f"{prefix}/") and key.endswith("/A"):
            label, name = key[len(prefix) + 1 : -2].split("/")
            pair = LowRank(tensors[f"{key[:-1]}B"], tensors[key])
            if label == "own":
                model.factors[name] = pair
            elif label == "personal":
                model.personal = {**(model.personal or {}), name: pair}
            else:
                model.foreign[label.removeprefix("from ")][name] = pair
    return model
