"""The peer: what a user would write with stock tools, in its best honest setting.

Training: transformers' Trainer over a PEFT model, one prompt-target pair per example, batches
padded to their longest (grouped by length), frozen weights in the same precision, logits at every
position as the model's own loss needs them. Ranking: one full forward per candidate, batched and
sorted by length. Server: every update formed densely and compared as one matmul.
"""

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from fedecider.direction import LowRank
from fedecider.engine.backbone import Backbone


def model(backbone: Backbone, rank: int, lora_alpha: float, top_layers: int | None, seed: int):
    """A copy of the backbone's model under plain PEFT, with the fused attention of transformers."""
    plain = copy.deepcopy(backbone.model)
    plain.set_attn_implementation("sdpa")
    depth = len(backbone.layers)
    layers = list(range(depth - (top_layers or depth), depth))
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=lora_alpha,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(plain, settings)


@contextmanager
def trainer(adapted, tokenizer, pairs: Sequence[tuple[list[int], list[int]]], batch: int):
    """Trainer over (prompt, target) pairs, ready; gives the function that runs one epoch."""
    examples = [
        {
            "input_ids": prompt + target,
            "attention_mask": [1] * len(prompt + target),
            "labels": [-100] * len(prompt) + target,
        }
        for prompt, target in pairs
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=5e-4,
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=adapted.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        ready = Trainer(
            adapted,
            arguments,
            train_dataset=examples,
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        )

        def epoch() -> int:
            ready.train()
            return len(pairs)

        yield epoch


def best_batch(adapted, tokenizer, pairs, sizes: Sequence[int] = (1, 2, 4, 8)) -> int:
    """The batch size at which the peer trains these pairs fastest, each tried once warm."""
    seconds = {}
    for batch in (sizes[0], *sizes):  # the first once more: it warms up
        with trainer(adapted, tokenizer, pairs, batch) as epoch:
            begin = time.perf_counter()
            epoch()
            seconds[batch] = time.perf_counter() - begin
    return min(seconds, key=seconds.get)


@torch.no_grad()
def scores(adapted, prompt: list[int], candidates: Sequence[list[int]], pad: int, batch: int):
    """Mean log p of every candidate (its end included) given the prompt, float64 (candidates,)."""
    adapted.eval()
    means = np.empty(len(candidates))
    order = sorted(range(len(candidates)), key=lambda index: len(candidates[index]))
    for at in range(0, len(order), batch):
        indices = order[at : at + batch]
        width = len(prompt) + max(len(candidates[index]) for index in indices)
        ids = torch.full((len(indices), width), pad)
        mask = torch.zeros(len(indices), width, dtype=torch.long)
        for row, index in enumerate(indices):
            whole = prompt + candidates[index]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
        ids, mask = ids.to(adapted.device), mask.to(adapted.device)
        logits = adapted(input_ids=ids, attention_mask=mask).logits
        logs = logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
        logs = logs.gather(-1, ids[:, len(prompt) :, None])[..., 0]
        real = mask[:, len(prompt) :]
        means[indices] = ((logs * real).sum(-1) / real.sum(-1)).double().cpu().numpy()
    return means


def dense_products(updates: Sequence[dict[str, LowRank]], names: Sequence[str]) -> dict:
    """Inner products (n, n) of the clients' updates of the named layers, formed densely."""
    products = {}
    for name in names:
        flat = torch.stack([(update[name].B @ update[name].A).flatten() for update in updates])
        products[name] = flat @ flat.T
    return products
