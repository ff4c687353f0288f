"""The server's comparison of updates, and what coarser payloads cost a client."""

from contextlib import contextmanager

import pandas as pd
import torch

from fedecider import wire
from fedecider.adapter import Factors
from fedecider.client import Client
from fedecider.direction import LowRank, combine, direction, norm
from fedecider.gram import gram
from fedecider.training import validation_loss
from notebooks.benchmark import peer, timing
from notebooks.benchmark.bench import Bench


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
    return {
        f"{index:02d}.{name}": shape for index in range(layers) for name, shape in block.items()
    }


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


def times(
    clients: int = 8, rank: int = 16, repeats: int = 3, dense_layers: int = 1
) -> pd.DataFrame:
    """Layers per second of norms and inner products, dense and factored, at the shapes of 1B.

    The peer does the layers of `dense_layers` blocks. Columns of `timing.alternate`, and flops.
    """
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
    rows = timing.alternate("server", jobs, repeats)
    stacked = clients * rank
    flops = {
        "peer": sum(
            2 * clients * rank * d_out * d_in + 2 * clients**2 * d_out * d_in
            for d_out, d_in in (shapes[name] for name in block)
        ),
        "gram": sum(2 * stacked**2 * (d_out + d_in) for d_out, d_in in shapes.values()),
    }
    return rows.assign(flops=rows["variant"].map(flops))


def payloads(bench: Bench, top_layers: int = 8, ranks: tuple[int, ...] = (1, 2, 4)) -> pd.DataFrame:
    """Bytes that a client sends per round, the error of what arrives, and what it costs a receiver.

    A client trains one epoch; a second one on the same users learns with the first one's direction
    for an epoch, as exactly as it can be sent. The cost is the change of its validation loss when
    the direction arrives coarser. Columns: payload, bytes, error (Frobenius, of the worst layer),
    valid_loss (nats per token), of_fedavg, loss_change.
    """
    rows = []
    with bench.adapter(top_layers) as adapter:
        sender, receiver = bench.client(adapter), bench.client(adapter)
        sender.fit(1)
        raw = {name: pair.to(torch.float32) for name, pair in sender.model.factors.items()}
        updates = adapter.updates(raw)
        exact = sender.method.directions(updates)
        receiver.model.peer_directions = {"sender": exact}
        receiver.model.alpha = receiver.method.initial_alpha(receiver.model, adapter)
        receiver.fit(1, learns_alpha=True)

        def sent(
            factors: Factors, dtype: str, truncate: int | None = None
        ) -> tuple[int, float, float]:
            payload = wire.encode(factors, dtype=dtype)
            spec = wire.PayloadSpec(adapter.shapes, dtype, unit="frobenius", truncate=truncate)
            arrived = wire.decode(payload, "sender", spec)
            receiver.model.peer_directions = {"sender": arrived}
            return len(payload), _error(arrived, exact), _valid_loss(receiver)

        nan = float("nan")
        rows.append(("fedavg: A, B float32", len(wire.encode(raw, {"examples": 1})), nan, nan))
        for dtype in ("float32", "bfloat16", "int8"):
            rows.append((f"direction, {dtype}", *sent(exact, dtype)))
        for rank in ranks:
            cut = {name: direction(pair, k=rank) for name, pair in updates.items()}
            for dtype in ("float32", "int8"):
                rows.append((f"direction, {dtype}, top {rank}", *sent(cut, dtype, truncate=rank)))
    frame = pd.DataFrame(rows, columns=["payload", "bytes", "error", "valid_loss"])
    frame["of_fedavg"] = frame["bytes"] / frame["bytes"].iloc[0]
    frame["loss_change"] = frame["valid_loss"] - frame["valid_loss"].iloc[1]
    return frame


def _error(arrived: Factors, exact: Factors) -> float:
    """Largest Frobenius norm of a module's difference; the exact direction has norm 1."""
    return max(
        norm(combine([arrived[name], exact[name].to(torch.float32)], [1, -1])).item()
        for name in exact
    )


def _valid_loss(client: Client) -> float:
    """Of the client's model as it is, nats per token."""
    models = client.method.models_for(client.data, client.model, client.adapter, "valid")
    return validation_loss(client.data, models, client.adapter)
