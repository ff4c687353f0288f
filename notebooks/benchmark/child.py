"""Measurements that need a process of their own: peak memory, and time along one axis.

    python -m notebooks.bench.child clients 8 <data> <domain> <backbone>

The last line printed is JSON. Memory is resident memory in MiB.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from notebooks.bench import parts

from fedecider import trie
from fedecider.cache import Prompts
from fedecider.client import train
from fedecider.gram import gram
from fedecider.memory import forget_peak, peak
from fedecider.methods import METHODS
from fedecider.mixture import initial_alpha
from fedecider.ranking import embed_titles, grounding_ranks


def clients(count: int, *place: str) -> dict:
    """A round of training of `count` clients with each other's directions, one after another."""
    bench = _bench(place, users=8)
    method = METHODS["fedecider"](bench.config)
    with bench.adapter(_top(bench)) as adapter:
        everyone = [parts._client(bench, adapter, count - 1) for _ in range(count)]
        for client in everyone:
            train(client, adapter, method, 1)
            client.incoming = method.directions(adapter.updates(client.model.factors))
    return {"peak": peak()}


def server(count: int, rank: int) -> dict:
    """Norms and inner products at the shapes of 1B: payload and what comes on top of it."""
    received = parts.uploads(parts.large_shapes(), count, rank)
    gram(received[:1])  # what the libraries take for themselves
    payload = sum(part.nbytes for one in received for pair in one.values() for part in pair)
    before = forget_peak()
    gram(received)
    return {"payload": payload / 2**20, "extra": max(peak() - before, 0.0)}


def _bench(place, users: int, **settings) -> parts.Bench:
    data, domain, backbone = place
    return parts.load(Path(data), domain, backbone, users, **settings)


def _top(bench: parts.Bench) -> int:
    return min(8, len(bench.model.layers))


def _timed(work, repeats: int = 3) -> dict:
    """Best seconds of some runs, and the memory above what there was before the first."""
    before, times = forget_peak(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return {"seconds": min(times), "mib": max(peak() - before, 0.0)}


def growth_clients(count: int, *place: str) -> dict:
    """A training epoch with count - 1 foreign directions; the server's inner products."""
    bench = _bench(place, users=8)
    method = METHODS["fedecider"](bench.config)
    with bench.adapter(_top(bench)) as adapter:
        client = parts._client(bench, adapter, count - 1)
        sources = sorted(client.model.foreign)
        client.model.alpha = initial_alpha(adapter, sources, bench.config.alpha_scope)
        found = {"training epoch": _timed(lambda: train(client, adapter, method, 1))}
        received = parts.uploads(parts.large_shapes(4), count, 16)
    return found | {"server, Gram": _timed(lambda: gram(received))}


def growth_rank(rank: int, *place: str) -> dict:
    """The same against the rank of LoRA, with three foreign directions."""
    bench = _bench(place, users=8, rank=rank)
    method = METHODS["fedecider"](bench.config)
    with bench.adapter(_top(bench)) as adapter:
        client = parts._client(bench, adapter, 3)
        found = {"training epoch": _timed(lambda: train(client, adapter, method, 1))}
        received = parts.uploads(parts.large_shapes(4), 4, rank)
    return found | {"server, Gram": _timed(lambda: gram(received))}


def growth_history(titles: int, *place: str) -> dict:
    """A training epoch on 16 histories of so many titles each, packed by `batch_tokens`."""
    bench = _bench(place, users=16)
    form, items = bench.form, list(bench.domain.items)
    generator = torch.Generator().manual_seed(0)
    rows = [
        form.examples(
            [
                form.title(items[place])
                for place in torch.randint(len(items), (titles,), generator=generator)
            ],
            titles,
        )[0]
        for _ in range(16)
    ]
    method = METHODS["fedecider"](bench.config)
    with bench.adapter(_top(bench)) as adapter:
        client = parts._client(bench, adapter)
        client.data.training = type(client.data.training)(rows)
        del client.data.train_trunk
        assert len(client.data.train_trunk)
        return {"training epoch": _timed(lambda: train(client, adapter, method, 1))}


def growth_catalogue(size: int, *place: str) -> dict:
    """Ranking 16 users in a catalogue of so many random titles."""
    bench = _bench(place, users=16)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (size,), generator=generator).tolist()
    vocabulary = min(bench.model.head.shape[0], 4000)
    titles = [
        [token for token in torch.randint(100, vocabulary, (n,), generator=generator).tolist()]
        for n in lengths
    ]
    titles = [[token for token in title if token != bench.form.end] or [100] for title in titles]
    asked = [bench.form.prompt(titles[user : user + 10]) for user in range(16)]
    targets = list(range(16))
    with bench.adapter(_top(bench)) as adapter:
        root = trie.build(titles, bench.form.end)
        prompts = Prompts(bench.model, asked, adapter.first)
        known = torch.randn(size, bench.model.width, generator=generator)
        near = torch.randn(16, bench.model.width, generator=generator)
        return {
            "title embeddings": _timed(lambda: embed_titles(adapter, titles, cached=False), 1),
            "grounding, distances": _timed(lambda: grounding_ranks(near, known, targets)),
            "trie, search": _timed(lambda: trie.search(adapter, root, prompts, 4)),
        }


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
    values = [int(value) if value.isdigit() else value for value in values]
    print(json.dumps(PARTS[part](*values)))
