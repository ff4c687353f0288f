"""The state of a run on disk; every tensor's name stands here.

    checkpoint/round-003.safetensors   <client>/<state>/<tensor>, states model, best and pending
    checkpoint/state.json              numbers, and the name of that file; renamed last
    adapters/<client>/                 the chosen own LoRA as PEFT saves it; mixture.safetensors
                                       beside it holds what else the model has (`adapter_folder`)

Tensors of a model are `own/<module>/A`, `local/<module>/A`, `from <source>/<module>/A` (and B), and
`alpha`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedecider import adapter_folder, integrity, runs
from fedecider.adapter import Adapter, Factors
from fedecider.client import Best, Client
from fedecider.config import RunConfig
from fedecider.direction import LowRank
from fedecider.mixture import ClientModel

Tensors = dict[str, Tensor]


def flatten(model: ClientModel) -> Tensors:
    """A model's tensors by name; copies, since safetensors refuses tensors that share memory."""
    parts: dict[str, Factors] = {"own": model.factors}
    if model.local_lora is not None:
        parts["local"] = model.local_lora
    parts |= {f"from {source}": pairs for source, pairs in model.peer_directions.items()}
    tensors = {
        f"{part}/{module}/{name}": tensor.contiguous().clone()
        for part, pairs in parts.items()
        for module, pair in pairs.items()
        for name, tensor in (("A", pair.A), ("B", pair.B))
    }
    if model.alpha is not None:
        tensors["alpha"] = model.alpha.contiguous().clone()
    return tensors


def unflatten(tensors: Tensors, sources: Sequence[str]) -> ClientModel:
    """The inverse of `flatten`; a source whose directions are all absent leaves no tensor."""
    model = ClientModel({}, {source: {} for source in sources}, tensors.get("alpha"))
    for name in sorted(tensors):
        if not name.endswith("/A"):
            continue
        part, module, _ = name.rsplit("/", 2)
        pair = LowRank(tensors[f"{part}/{module}/B"], tensors[name])
        if part == "own":
            model.factors[module] = pair
        elif part == "local":
            model.local_lora = {**(model.local_lora or {}), module: pair}
        else:
            model.peer_directions[part.removeprefix("from ")][module] = pair
    return model


# Between rounds


def client_state(client: Client) -> tuple[Tensors, dict[str, Any]]:
    """A client's tensors by name, and its numbers, after a round."""
    models = {
        "model": client.model,
        "best": client.best.model,
        "pending": ClientModel({}, client.pending_directions),
    }
    tensors = {
        f"{state}/{name}": tensor
        for state, model in models.items()
        for name, tensor in flatten(model).items()
    }
    sources = {state: sorted(model.peer_directions) for state, model in models.items()}
    return tensors, {
        "best_loss": client.best.loss,
        "best_round": client.best.round,
        "sources": sources,
    }


def restore_client(client: Client, tensors: Tensors, numbers: dict[str, Any]) -> None:
    """Put the state of `client_state` back."""
    models = {
        state: unflatten(_below(tensors, state), sources)
        for state, sources in numbers["sources"].items()
    }
    client.model = models["model"]
    client.pending_directions = models["pending"].peer_directions
    client.best = Best(models["best"], numbers["best_loss"], numbers["best_round"])


def save_round(folder: Path, round: int, clients: Sequence[Client]) -> None:
    """The state after a round; the JSON file is renamed last and names the tensor file."""
    tensors: Tensors = {}
    numbers: dict[str, Any] = {}
    for client in clients:
        own, numbers[client.name] = client_state(client)
        tensors |= {f"{client.name}/{name}": tensor for name, tensor in own.items()}
    file = f"round-{round:03d}.safetensors"
    with runs.atomic(folder / "checkpoint" / file) as beside:
        beside.write_bytes(save(tensors))
    integrity.write_state(folder, round, numbers, file)
    for old in (folder / "checkpoint").glob("round-*.safetensors"):
        if old.name != file:
            old.unlink()


def restore_round(folder: Path, clients: Sequence[Client]) -> int:
    """The last finished round, its state put back; 0 for a fresh run.

    Raises `integrity.DamagedError` if the state is not what was written.
    """
    state = integrity.read_state(folder)
    if state is None:
        return 0
    integrity.check_state(folder, state)
    tensors = load_file(folder / "checkpoint" / state.tensors)
    for client in clients:
        restore_client(client, _below(tensors, client.name), state.clients[client.name])
    return state.round


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix/`, without it."""
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


# At the end


def save_model(folder: Path, model: ClientModel, adapter: Adapter, config: RunConfig) -> None:
    """The own LoRA as PEFT writes it, what else the model has beside it, and a README of both."""
    rest = ClientModel({}, model.peer_directions, model.alpha, model.local_lora)
    about = adapter_folder.About(folder.name, config, adapter, rest)
    mixture = folder / "mixture.safetensors"
    if about.complete:
        mixture.unlink(missing_ok=True)
    else:
        with runs.atomic(mixture) as beside:
            beside.write_bytes(_ordered(save(flatten(rest), about.metadata())))
    adapter.load(model.factors)
    adapter.save(folder, about.entries())  # after the mixture, whose digest it notes
    with runs.atomic(folder / "README.md") as beside:
        beside.write_text(about.readme())


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: `save` writes them in any order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_model(folder: Path) -> ClientModel:
    """The model that `save_model` wrote, factors raw (without gamma).

    Raises `integrity.DamagedError`, naming the file, if it is missing or not what was written.
    """
    integrity.check_adapter(folder)
    mixture = folder / "mixture.safetensors"
    model = ClientModel({})
    if mixture.exists():
        with safe_open(mixture, "pt") as file:
            sources = adapter_folder.sources_of(file.metadata())
        model = unflatten(load_file(mixture), sources)
    adapter = load_file(folder / "adapter_model.safetensors")
    for name in sorted(adapter):
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            pair = LowRank(adapter[f"{module}.lora_B.weight"], adapter[name])
            model.factors[module.removeprefix("base_model.model.")] = pair
    return model
