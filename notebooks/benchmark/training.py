"""Local training: the peer, and this package with LoRA on all blocks and on the top ones."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from fedecider.losses import LOSSES
from fedecider.training import token_losses
from notebooks.benchmark import peer, timing
from notebooks.benchmark.bench import Bench, RecomputedStates


def times(bench: Bench, peer_pairs: int = 24, top_layers: int = 8) -> pd.DataFrame:
    """Targets per second: the peer and ours with LoRA on all layers, ours on the top layers.

    "top 8, states not stored" computes what lies below the adapted blocks anew in every step.
    The peer trains on `peer_pairs` of the same targets. Columns of `timing.alternate`, and flops.
    """
    lora = bench.config.lora
    everything = pairs(bench)
    sample = [everything[i] for i in np.linspace(0, len(everything) - 1, peer_pairs).astype(int)]
    adapted = peer.model(bench.backbone, lora.rank, lora.lora_alpha, None, bench.config.seed)
    batch = peer.best_batch(adapted, bench.backbone.tokenizer, sample)

    def theirs():
        return peer.trainer(adapted, bench.backbone.tokenizer, sample, batch)

    def ours(layers: int | None, stored: bool = True):
        @contextmanager
        def job():
            with bench.adapter(layers) as adapter:
                client = bench.client(adapter)
                if not stored:
                    client.data.train_states = RecomputedStates(client.data.train_states)

                def work() -> int:
                    client.fit(1, learns_alpha=True)
                    return client.data.training.num_targets

                yield work

        return job

    on_all, top = "all layers", f"top {top_layers}"
    not_stored = f"{top}, states not stored"
    jobs = {
        "peer": theirs,
        on_all: ours(None),
        not_stored: ours(top_layers, stored=False),
        top: ours(top_layers),
    }
    rows = timing.alternate("training", jobs, bench.repeats)
    with bench.adapter(None) as adapter:
        data = bench.client(adapter).data
    tokens = sum(data.train_states.sizes)
    scored = sum(len(example.targets) for example in data.training.examples)
    depth, head = bench.depth, 2 * scored * bench.head_flops
    below = tokens * (depth - top_layers) * bench.block_flops
    flops = {
        "peer": sum(
            2 * len(prompt + target) * (depth * bench.block_flops + bench.head_flops)
            for prompt, target in sample
        ),
        on_all: 2 * tokens * depth * bench.block_flops + head,
        not_stored: 2 * tokens * top_layers * bench.block_flops + head + below,
        top: 2 * tokens * top_layers * bench.block_flops + head,
    }
    return rows.assign(flops=rows["variant"].map(flops))


def pairs(bench: Bench) -> list[tuple[list[int], list[int]]]:
    """The targets of the packed sequences, one (prompt, target) each.

    Every prompt has the last titles up to `history`; in the packed form a target that stands early
    in its window has fewer before it, which is part of what makes it cheaper.
    """
    template, history = bench.template, bench.config.data.history
    prompts_and_targets = []
    for user in bench.domain.users["train"]:
        titles = [template.title(bench.domain.items[item]) for item in bench.domain.train[user]]
        for position in range(max(1, len(titles) - history), len(titles)):
            prompt = template.prompt(titles[max(0, position - history) : position])
            prompts_and_targets.append((prompt, titles[position] + [template.end]))
    return prompts_and_targets


def loss_difference(bench: Bench, top_layers: int = 8) -> float:
    """Largest difference of a training target's loss with stored and with recomputed states."""
    loss = LOSSES[bench.config.training.loss]
    with bench.adapter(top_layers) as adapter:
        data = bench.client(adapter).data
        indices = list(range(len(data.training.examples)))
        stored = token_losses(adapter, data.train_states, data.training, indices, loss)
        # In another packing as well: one sequence per row.
        states = RecomputedStates(data.train_states)
        alone = [token_losses(adapter, states, data.training, [index], loss) for index in indices]
        return (stored - torch.cat(alone)).abs().max().item()
