"""Measurements that need a process of their own: peak memory, and time along one axis.

    python -m notebooks.benchmark.child clients 8 <prepared data> <domain> <model>

The last line printed is JSON. Memory is resident memory in MiB. `source` are always the prepared
data, the domain and the model (`Bench.source`).
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedecider.engine.kv_cache import PromptCache
from fedecider.engine.memory import peak_memory, reset_peak
from fedecider.gram import gram
from fedecider.prompts import ExampleSet
from fedecider.rankers import beam
from fedecider.rankers.grounding import embed_titles, grounding_ranks
from notebooks.benchmark.bench import Bench, load
from notebooks.benchmark.server import large_shapes, uploads

_TOP_LAYERS = 8  # adapted blocks, if the model has so many
_RANK = 16  # of what the server receives


def clients(count: int, *source: str) -> dict[str, float]:
    """A round of training of `count` clients with each other's directions, one after another."""
    bench = _bench(source, users=8)
    with _adapter(bench) as adapter:
        federation = [bench.client(adapter, count - 1) for _ in range(count)]
        peaks = [peak_memory()]
        for client in federation:
            client.fit(1, learns_alpha=True)  # starts the peak anew
            directions = client.method.directions(adapter.updates(client.model.factors))
            client.pending_directions = {client.name: directions}
            peaks.append(peak_memory())
    return {"peak": max(peaks)}


def server(count: int, rank: int) -> dict[str, float]:
    """Norms and inner products at the shapes of 1B: payload and what comes on top of it."""
    received = uploads(large_shapes(), count, rank)
    gram(received[:1])  # what the libraries take for themselves
    payload = sum(part.nbytes for factors in received for pair in factors.values() for part in pair)
    before = reset_peak()
    gram(received)
    return {"payload": payload / 2**20, "extra": max(peak_memory() - before, 0.0)}


def growth_clients(count: int, *source: str) -> dict[str, dict[str, float]]:
    """A training epoch with count - 1 peers' directions; the server's inner products."""
    bench = _bench(source, users=8)
    with _adapter(bench) as adapter:
        client = bench.client(adapter, count - 1)
        epoch = _timed(lambda: client.fit(1, learns_alpha=True))
        received = uploads(large_shapes(4), count, _RANK)
    return {"training epoch": epoch, "server, Gram": _timed(lambda: gram(received))}


def growth_rank(rank: int, *source: str) -> dict[str, dict[str, float]]:
    """The same against the rank of LoRA, with three peers' directions."""
    bench = _bench(source, users=8, rank=rank)
    with _adapter(bench) as adapter:
        client = bench.client(adapter, 3)
        epoch = _timed(lambda: client.fit(1, learns_alpha=True))
        received = uploads(large_shapes(4), 4, rank)
    return {"training epoch": epoch, "server, Gram": _timed(lambda: gram(received))}


def growth_history(length: int, *source: str) -> dict[str, dict[str, float]]:
    """A training epoch on 16 histories of `length` titles each, packed by `batch_tokens`."""
    bench = _bench(source, users=16)
    template, items = bench.template, list(bench.domain.items)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(16):
        drawn = torch.randint(len(items), (length,), generator=generator)
        titles = [template.title(items[index]) for index in drawn]
        examples.append(template.examples(titles, length)[0])
    with _adapter(bench) as adapter:
        client = bench.client(adapter)
        client.data.training = ExampleSet(examples)
        del client.data.train_states
        assert len(client.data.train_states)
        return {"training epoch": _timed(lambda: client.fit(1, learns_alpha=True))}


def growth_catalogue(size: int, *source: str) -> dict[str, dict[str, float]]:
    """Ranking 16 users in a catalogue of `size` random titles."""
    bench = _bench(source, users=16)
    generator, end = torch.Generator().manual_seed(0), bench.template.end
    lengths = torch.randint(3, 12, (size,), generator=generator).tolist()
    vocabulary = min(bench.backbone.head.shape[0], 4000)
    titles = [torch.randint(100, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    titles = [[token for token in title if token != end] or [100] for title in titles]
    prompts = [bench.template.prompt(titles[user : user + 10]) for user in range(16)]
    targets = list(range(16))
    with _adapter(bench) as adapter:
        root = beam.build(titles, end)
        cache = PromptCache(bench.backbone, prompts, adapter.first)
        known = torch.randn(size, bench.backbone.width, generator=generator)
        near = torch.randn(16, bench.backbone.width, generator=generator)
        return {
            "title embeddings": _timed(lambda: embed_titles(adapter, titles, cached=False), 1),
            "grounding, distances": _timed(lambda: grounding_ranks(near, known, targets)),
            "trie, search": _timed(lambda: beam.search(adapter, root, cache, 4)),
        }


def _bench(source: tuple[str, ...], users: int, **settings: Any) -> Bench:
    prepared, domain, model = source
    return load(Path(prepared), domain, model, users, **settings)


def _adapter(bench: Bench):
    return bench.adapter(min(_TOP_LAYERS, bench.depth))


def _timed(work: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Best seconds of some runs, and the memory above what there was before the first."""
    before = reset_peak()
    times, peaks = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
        peaks.append(peak_memory())  # per run: training starts the peak anew
    return {"seconds": min(times), "mib": max(max(peaks) - before, 0.0)}


PARTS = {
    "clients": clients,
    "server": server,
    "growth-clients": growth_clients,
    "growth-rank": growth_rank,
    "growth-history": growth_history,
    "growth-catalogue": growth_catalogue,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    np.random.seed(0)
    part, *values = sys.argv[1:]
    print(json.dumps(PARTS[part](*(int(x) if x.isdigit() else x for x in values))))
