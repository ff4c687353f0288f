"""The parts of the benchmark: each takes a `Bench` and returns a tidy frame of repeated runs."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from notebooks.bench import peer, timing
from tqdm import tqdm

from fedecider import RunConfig, backbone, ranking, trie, wire
from fedecider.adapter import Adapter, Factors
from fedecider.cache import Prompts
from fedecider.client import (
    Client,
    ClientData,
    ClientModel,
    token_losses,
    train,
    validation_loss,
)
from fedecider.direction import LowRank, combine, direction, norm
from fedecider.domains import Domain, read_domain
from fedecider.gram import gram
from fedecider.methods import METHODS
from fedecider.metrics import per_user, rank_of
from fedecider.sequences import make_form
from fedecider.trunk import Trunk

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Bench:
    """One domain, one model, one process: what all parts share."""

    domain: Domain
    model: backbone.Backbone
    config: RunConfig
    repeats: int = 3
    peer_batch: int = 8

    @cached_property
    def form(self):
        """The history form of the model's tokenizer."""
        return make_form(self.config.form, self.model.tokenizer, self.model.start)

    @cached_property
    def limit(self) -> float:
        """Floating-point operations a second of a large matmul, in the model's own precision."""
        return timing.matmul_rate(self.model.dtype, self.model.device)

    @property
    def block_flops(self) -> int:
        """Of one token through one block, forward: two a weight of its linear layers."""
        linear = [m for m in self.model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        return 2 * sum(module.weight.numel() for module in linear)

    @property
    def head_flops(self) -> int:
        """Of one row of logits."""
        return 2 * self.model.head.numel()

    def adapter(self, top_layers: int | None) -> Adapter:
        """A fresh adapter; close it."""
        config = self.config
        return Adapter(
            self.model, config.rank, config.lora_alpha, config.targets, top_layers, config.seed
        )


def load(data: Path, domain: str, model: str, users: int, **settings) -> Bench:
    """A bench on one prepared domain, `users` of it for training, ranking and validation each."""
    settings = {"rank": 8, "lr": 5e-4, "batch_tokens": 1024, "windows": 1, **settings}
    config = RunConfig(
        data=data, folder=data, dataset="bench", method="fedecider", backbone=model, **settings
    )
    found = read_domain(data / domain, train=users, valid=users, test=users)
    return Bench(found, backbone.load(model, config.device, config.dtype), config)


def _sources(adapter: Adapter, count: int) -> dict[str, Factors]:
    """Directions of `count` clients that do not exist, drawn at random."""
    generator = torch.Generator().manual_seed(0)

    def drawn(pair: LowRank) -> LowRank:
        shaped = (torch.randn(part.shape, generator=generator) for part in pair)
        return direction(LowRank(*shaped)).to(torch.float32)

    return {
        f"client {place}": {name: drawn(pair) for name, pair in adapter.initial.items()}
        for place in range(count)
    }


# Training


def training(bench: Bench, peer_pairs: int = 24, top_layers: int = 8) -> pd.DataFrame:
    """Targets a second: the peer and ours with LoRA on all layers, ours on the top layers.

    "top 8, no trunk" computes what lies below the adapted blocks anew in every step.
    """
    config, method = bench.config, METHODS["fedecider"](bench.config)
    pairs = _pairs(bench)
    some = [pairs[place] for place in np.linspace(0, len(pairs) - 1, peer_pairs).astype(int)]
    adapted = peer.model(bench.model, config.rank, config.lora_alpha, None, config.seed)

    batch = peer.best_batch(adapted, bench.model.tokenizer, some)

    def theirs():
        return peer.trainer(adapted, bench.model.tokenizer, some, batch)

    def ours(layers: int | None, keep: bool = True):
        @contextmanager
        def job():
            with bench.adapter(layers) as adapter:
                client = _client(bench, adapter)
                if not keep:
                    client.data.train_trunk = _Recomputed(client.data.train_trunk)

                def work() -> int:
                    train(client, adapter, method, 1)
                    return client.data.training.titles

                yield work

        return job

    names = ["all layers", f"top {top_layers}, no trunk", f"top {top_layers}"]
    jobs = {
        "peer": theirs,
        names[0]: ours(None),
        names[1]: ours(top_layers, keep=False),
        names[2]: ours(top_layers),
    }
    found = timing.alternate("training", jobs, bench.repeats)
    with bench.adapter(None) as adapter:
        data = _client(bench, adapter).data
    tokens = sum(tree.size for tree in data.train_trunk.trees)
    scored = sum(len(example.targets) for example in data.training.examples)
    depth, head = len(bench.model.layers), 2 * scored * bench.head_flops
    below = tokens * (depth - top_layers) * bench.block_flops
    flops = {
        "peer": sum(
            2 * len(prompt + target) * (depth * bench.block_flops + bench.head_flops)
            for prompt, target in some
        ),
        names[0]: 2 * tokens * depth * bench.block_flops + head,
        names[1]: 2 * tokens * top_layers * bench.block_flops + head + below,
        names[2]: 2 * tokens * top_layers * bench.block_flops + head,
    }
    return found.assign(flops=found["variant"].map(flops))


def _client(bench: Bench, adapter: Adapter, others: int = 0) -> Client:
    data = ClientData(bench.domain, adapter, bench.form, bench.config)
    client = Client(data, ClientModel(dict(adapter.initial), _sources(adapter, others)))
    assert len(data.train_trunk)  # computed before the clock starts
    return client


class _Recomputed:
    """A trunk that keeps nothing."""

    def __init__(self, kept: Trunk):
        self.trees, self.forest = kept.trees, kept.forest
        self._backbone, self._first = kept.backbone, kept.first

    @torch.no_grad()
    def cat(self, indices, forest) -> torch.Tensor:
        """States below the adapted blocks, computed."""
        embedded = self._backbone.embed(forest.ids)
        return self._backbone.blocks(embedded, forest.positions, forest, last=self._first)[0]


def _pairs(bench: Bench) -> list[tuple[list[int], list[int]]]:
    """The targets of the packed sequences, one (prompt, target) each.

    Every prompt has the last titles up to `history`; in the packed form a target that stands early
    in its window has fewer before it, which is part of what makes it cheaper.
    """
    form, history, pairs = bench.form, bench.config.history, []
    for user in bench.domain.users["train"]:
        titles = [form.title(bench.domain.items[item]) for item in bench.domain.train[user]]
        for place in range(max(1, len(titles) - history), len(titles)):
            prompt = form.prompt(titles[max(0, place - history) : place])
            pairs.append((prompt, titles[place] + [form.end]))
    return pairs


def losses(bench: Bench, top_layers: int = 8) -> float:
    """Largest difference of a training target's loss with stored and with recomputed trunk."""
    with bench.adapter(top_layers) as adapter:
        data = _client(bench, adapter).data
        indices = list(range(len(data.training.examples)))
        kept = token_losses(adapter, data.train_trunk, data.training, indices)
        fresh = _Recomputed(data.train_trunk)  # in another packing: one sequence a row
        alone = [token_losses(adapter, fresh, data.training, [index]) for index in indices]
        again = torch.cat(alone)
        return (kept - again).abs().max().item()


# Ranking


def lists(bench: Bench, users: int = 16, peer_users: int = 2, top_layers: int = 8):
    """Users a second at 1 + 99 candidates: the peer, and ours with and without stored trunk."""
    config, form = bench.config, bench.form
    catalogue = ranking.Catalogue(bench.domain, form)
    some = bench.domain.users["test"][:users]
    trees = ranking.candidate_trees(catalogue, some, "test", config.history)
    trunk = Trunk(bench.model, trees, len(bench.model.layers) - top_layers)
    theirs = _peer_scores(bench, top_layers)

    @contextmanager
    def stock():
        yield lambda: len([theirs(tree) for tree in trees[:peer_users]])

    @contextmanager
    def ours():
        with bench.adapter(top_layers) as adapter:
            yield lambda: len(ranking.branch_scores(adapter, trunk, form.end))

    @contextmanager
    def untrunked():
        with bench.adapter(top_layers) as adapter:
            yield lambda: len(ranking.branch_scores(adapter, _Fresh(trunk), form.end))

    jobs = {"peer": stock, "tree, no trunk": untrunked, "tree": ours}
    found = timing.alternate("ranking", jobs, bench.repeats)
    depth, tokens = len(bench.model.layers), sum(tree.size for tree in trees)
    whole = sum(
        (len(tree.prompt) + len(branch) + 1) * (depth * bench.block_flops + bench.head_flops)
        for tree in trees[:peer_users]
        for branch in tree.branches
    )
    flops = {
        "peer": whole,
        "tree, no trunk": tokens * (depth * bench.block_flops + bench.head_flops),
        "tree": tokens * (top_layers * bench.block_flops + bench.head_flops),
    }
    return found.assign(flops=found["variant"].map(flops))


def _peer_scores(bench: Bench, top_layers: int):
    config, end = bench.config, bench.form.end
    adapted = peer.model(bench.model, config.rank, config.lora_alpha, top_layers, config.seed)

    def scores(tree) -> np.ndarray:
        candidates = [[*branch, end] for branch in tree.branches]
        return peer.scores(adapted, tree.prompt, candidates, end, 4 * bench.peer_batch)

    return scores


def agreement(bench: Bench, users: int = 2, top_layers: int = 8) -> dict[str, float]:
    """Peer and tree on the same lists: largest difference of a score, share of equal ranks."""
    catalogue = ranking.Catalogue(bench.domain, bench.form)
    some = bench.domain.users["test"][:users]
    trees = ranking.candidate_trees(catalogue, some, "test", bench.config.history)
    theirs = _peer_scores(bench, top_layers)
    with bench.adapter(top_layers) as adapter:
        trunk = Trunk(bench.model, trees, adapter.first)
        mine = ranking.branch_scores(adapter, trunk, bench.form.end)
    pairs = [(one, theirs(tree)) for one, tree in zip(mine, trees, strict=True)]
    return {
        "largest score difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "same ranks": float(np.mean([rank_of(a, 0) == rank_of(b, 0) for a, b in pairs])),
    }


class _Fresh(_Recomputed):
    """The same for ranking."""

    def __len__(self) -> int:
        return len(self.trees)


def whole_catalogue(bench: Bench, users: int = 32, beams: int = 4, top_layers: int = 8):
    """Users a second in the whole catalogue: grounding against trie, and NDCG@10 of both."""
    form, domain = bench.form, bench.domain
    catalogue = ranking.Catalogue(domain, form)
    some = domain.users["test"][:users]
    asked = [catalogue.prompt(user, "test", bench.config.history) for user in some]
    titles = [catalogue.tokens[item] for item in domain.items.index]
    targets = [domain.items.index.get_loc(domain.test[user]) for user in some]
    root = trie.build(titles, form.end)
    quality: dict[str, float] = {}
    needed: list[int] = []

    def note(name: str, ranks: list[int]) -> int:
        quality[name] = float(per_user(np.array(ranks), "ndcg@10").mean())
        return len(ranks)

    @contextmanager
    def grounding():
        with bench.adapter(top_layers) as adapter:
            known = ranking.embed_titles(adapter, titles, cached=True)

            def work() -> int:
                made = ranking.generate_titles(adapter, asked, form.end, beams, 24)
                embedded = ranking.embed_titles(adapter, made, cached=False)
                return note("grounding", ranking.grounding_ranks(embedded, known, targets))

            yield work

    @contextmanager
    def by_trie():
        with bench.adapter(top_layers) as adapter:
            prompts = Prompts(bench.model, asked, adapter.first)

            def work() -> int:
                found = trie.search(adapter, root, prompts, beams)
                needed[:] = [_prefixes(titles, one) for one in found]
                return note("trie", trie.ranks(found, targets, len(titles)))

            yield work

    @contextmanager
    def by_trie_alone():
        with bench.adapter(top_layers) as adapter:
            prompts = Prompts(bench.model, asked, 0)  # all blocks of the prompts, every time
            yield lambda: len(trie.search(adapter, root, prompts, beams))

    jobs = {"grounding": grounding, "trie, no trunk": by_trie_alone, "trie": by_trie}
    found = timing.alternate("catalogue", jobs, bench.repeats)
    token = len(bench.model.layers) * bench.block_flops + bench.head_flops
    flops = sum(map(len, asked)) * top_layers * bench.block_flops + sum(needed) * token
    return found.assign(flops=found["variant"].map({"trie": flops})), quality


def _prefixes(titles: list[list[int]], found: list[tuple[float, list[int]]]) -> int:
    """Tokens that any search has to feed to score these titles: their distinct prefixes."""
    best = [titles[items[0]] for _, items in found]
    return len({tuple(title[:stop]) for title in best for stop in range(1, len(title) + 1)})


# Server and wire


def large_shapes(layers: int = 16) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every linear layer of a Llama of 1B parameters."""
    width, narrow, inner = 2048, 512, 8192
    block = {
        "q_proj": (width, width),
        "k_proj": (narrow, width),
        "v_proj": (narrow, width),
        "o_proj": (width, width),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    return {f"{at:02d}.{name}": shape for at in range(layers) for name, shape in block.items()}


def uploads(shapes: dict[str, tuple[int, int]], clients: int, rank: int) -> list[Factors]:
    """Random float32 factors of every client."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: LowRank(
                torch.randn(d_out, rank, generator=generator),
                torch.randn(rank, d_in, generator=generator),
            )
            for name, (d_out, d_in) in shapes.items()
        }
        for _ in range(clients)
    ]


def server(clients: int = 8, rank: int = 16, repeats: int = 3, dense_layers: int = 1):
    """Layers a second of norms and inner products, dense and factored, at the shapes of 1B."""
    shapes = large_shapes()
    received = uploads(shapes, clients, rank)
    block = [name for name in shapes if int(name[:2]) < dense_layers]

    @contextmanager
    def dense():
        yield lambda: len(peer.dense_products(received, block))

    @contextmanager
    def factored():
        yield lambda: len(gram(received))

    jobs = {"peer": dense, "gram": factored}
    found = timing.alternate("server", jobs, repeats)
    size = clients * rank
    work = sum(2 * size**2 * (d_out + d_in) for d_out, d_in in shapes.values())
    whole = sum(
        2 * clients * rank * d_out * d_in + 2 * clients**2 * d_out * d_in
        for d_out, d_in in (shapes[name] for name in block)
    )
    return found.assign(flops=found["variant"].map({"peer": whole, "gram": work}))


def payloads(bench: Bench, top_layers: int = 8, ranks: tuple[int, ...] = (1, 2, 4)):
    """Bytes a client sends a round, the error of what arrives, and what it costs the receiver.

    A client trains one epoch; a second one on the same users learns with the first one's direction
    for an epoch, as exactly as it can be sent. The cost is the change of its validation loss when
    the direction arrives coarser.
    """
    method = METHODS["fedecider"](bench.config)
    rows = []
    with bench.adapter(top_layers) as adapter:
        sender, receiver = _client(bench, adapter), _client(bench, adapter)
        train(sender, adapter, method, 1)
        raw = {name: pair.to(torch.float32) for name, pair in sender.model.factors.items()}
        exact = method.directions(adapter.updates(raw))
        receiver.model.foreign = {"sender": exact}
        train(receiver, adapter, method, 1)
        shapes = {name: (pair.B.shape[0], pair.A.shape[1]) for name, pair in raw.items()}

        def row(what: str, payload: bytes, found: Factors | None) -> None:
            error = loss = float("nan")
            if found is not None:
                error = max(
                    norm(combine([found[name], exact[name].to(torch.float32)], [1, -1])).item()
                    for name in exact
                )
                receiver.model.foreign = {"sender": found}
                loss = validation_loss(receiver, adapter, method)
            rows.append((what, len(payload), error, loss))

        row("fedavg: A, B float32", wire.encode(raw, {"examples": 1}), None)
        for precision in ("float32", "bfloat16", "int8"):
            sent = wire.encode(exact, precision=precision)
            arrived = wire.decode(sent, shapes, "sender", "frobenius", precision=precision)
            row(f"direction, {precision}", sent, arrived)
        for rank in ranks:
            for precision in ("float32", "int8"):
                cut = {name: direction(pair, k=rank) for name, pair in adapter.updates(raw).items()}
                sent = wire.encode(cut, precision=precision)
                arrived = wire.decode(
                    sent, shapes, "sender", "frobenius", whole=False, precision=precision
                )
                row(f"direction, {precision}, top {rank}", sent, arrived)
    found = pd.DataFrame(rows, columns=["payload", "bytes", "error", "valid_loss"])
    found["of_fedavg"] = found["bytes"] / found["bytes"].iloc[0]
    found["loss_change"] = found["valid_loss"] - found["valid_loss"].iloc[1]
    return found


# What needs a process of its own


def child(part: str, *values: object) -> dict:
    """Seconds and memory of one measurement in a fresh process (see `notebooks.bench.child`)."""
    command = [sys.executable, "-m", "notebooks.bench.child", part, *map(str, values)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"the measurement {' '.join(command[3:])} failed: {last[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory(bench: Bench, clients: tuple[int, ...] = (1, 8)) -> pd.DataFrame:
    """Peak resident memory (MiB) of a federation of so many clients over one frozen model."""
    place = (bench.config.data, bench.domain.name, bench.config.backbone)
    rows = [(count, child("clients", count, *place)["peak"]) for count in clients]
    return pd.DataFrame(rows, columns=["clients", "peak_mib"])


def server_memory(clients: int = 8, rank: int = 16) -> dict:
    """Payload and the further memory (MiB) that `gram` takes at the shapes of 1B."""
    return child("server", clients, rank)


def growth(bench: Bench, axes: dict[str, list[int]]) -> pd.DataFrame:
    """Seconds and memory (MiB above the loaded model) along each axis, a process a point."""
    place = (bench.config.data, bench.domain.name, bench.config.backbone)
    rows = []
    points = [(axis, value) for axis, values in axes.items() for value in values]
    for axis, value in tqdm(points, desc="growth", leave=False):
        for what, measured in child(f"growth-{axis}", value, *place).items():
            rows.append((axis, value, what, measured["seconds"], measured["mib"]))
    return pd.DataFrame(rows, columns=["axis", "value", "what", "seconds", "mib"])


def comparisons(
    bench: Bench,
    training: pd.DataFrame,
    ranking: pd.DataFrame,
    catalogue: pd.DataFrame,
    server: pd.DataFrame,
    memory: pd.DataFrame,
    top_layers: int = 8,
) -> list[dict]:
    """What `figures.benchmark.summary` takes: a row a comparison, with the least that is asked."""
    top = f"top {top_layers}"
    wanted = [
        ("training", training, "all layers", "peer", 4.0),
        ("frozen trunk", training, top, "all layers", 2.0),
        ("stored trunk", training, top, f"{top}, no trunk", 1.0),
        ("ranking, 1 + 99", ranking, "tree", "peer", 15.0),
        ("ranking, 1 + 99", ranking, "tree, no trunk", "peer", 1.0),
        ("whole catalogue", catalogue, "trie", "grounding", 5.0),
        ("whole catalogue", catalogue, "trie, no trunk", "grounding", 1.0),
        ("server", server, "gram", "peer", 50.0),
    ]
    rows = []
    for part, times, ours, against, least in wanted:
        share = float("nan")
        if "flops" in times:
            mine = times[times["variant"] == ours]
            limit = bench.limit
            if part == "server":
                limit = timing.matmul_rate(torch.float32, torch.device("cpu"))
            share = (mine["flops"] / mine["seconds"]).median() / limit
        found = timing.ratios(times, ours, against)
        row = {"part": part, "ours": ours, "against": against, "ratios": found}
        rows.append({**row, "at_least": least, "limit_share": share})
    first, last = memory.iloc[0], memory.iloc[-1]
    # As many models as clients would need that many times the memory of one.
    spared = last["clients"] / first["clients"] * first["peak_mib"] / last["peak_mib"]
    several = int(last["clients"])
    return [
        *rows,
        {
            "part": f"memory, {several} clients",
            "ours": "one frozen model",
            "against": "a model a client",
            "ratios": pd.Series([spared]),
            "at_least": several / first["clients"] / 1.2,
            "limit_share": float("nan"),
        },
    ]
