"""The golden run: every method on both kinds of generated data, and its numbers as digests.

    python tests/golden/run.py goodreads OUT.json

Started by tests/test_golden.py in a process of its own, whose environment makes matrix products and
elementwise kernels the same on every x86-64 processor (`ENVIRONMENT`).
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
}
PREPARE = {"planted_users": 60, "planted_items": 40, "planted_history": 8, "negatives": 9}
SETTINGS = {
    "model": "tiny",
    "device": "cpu",
    "dtype": "float32",
    "top_layers": 1,
    "rank": 2,
    "lora_alpha": 4,
    "rounds": 3,
    "lr": 5e-3,
    "alpha_lr": 0.05,
    "batch_tokens": 256,
    "train_users": 8,
    "valid_users": 5,
    "test_users": 6,
    "rankers": ["likelihood", "grounding", "trie"],
    "prompt_weights": [0.0, 1.0],
    "beams": 2,
    "title_tokens": 6,
}
# Settings that the methods' own runs do not reach; name -> method and what differs.
VARIANTS = {
    "int8 and truncated": ("fedecider", {"payload_dtype": "int8", "truncate": 1}),
    "bfloat16, column norm": ("fedecider", {"payload_dtype": "bfloat16", "norm": "column"}),
    "noise, spectral norm": ("fedecider", {"direction_noise": 0.3, "norm": "spectral"}),
    "the server extracts": ("fedecider", {"send": "update", "alpha_scope": "client"}),
    "alpha from the own norm": (
        "fedecider",
        {"alpha_init": 0.3, "alpha_sign": "nonnegative", "alpha_warmup": 1, "alpha_scope": "layer"},
    ),
    "no direction, alpha_init": ("fedecider-no-direction", {"alpha_init": 0.3}),
    "instruction form": (
        "fedecider",
        {"prompt_template": "instruction", "windows_per_user": 2, "rounds": 2},
    ),
    "all layers, two epochs": (
        "fedavg",
        {"top_layers": None, "local_epochs": 2, "weight_decay": 0.1, "rounds": 2},
    ),
    "feddpa, one instance": ("feddpa", {"max_weight": 0.9, "instances": 1}),
}


def digest(content: bytes | str) -> str:
    """A short sha256."""
    content = content if isinstance(content, bytes) else content.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def table(frame) -> str:
    """Digest of a frame's values; floats by all their digits."""
    frame = frame.sort_values(list(frame.columns)).reset_index(drop=True)
    return digest(frame[sorted(frame.columns)].to_csv(index=False, float_format="%.17g"))


def probe() -> str:
    """Digest of products, exponentials and a decomposition: equal where digests have to agree."""
    import torch

    generator = torch.Generator().manual_seed(0)
    parts = []
    for dtype in (torch.float32, torch.float64):
        matrix = torch.randn(96, 64, generator=generator).to(dtype)
        parts += [matrix @ matrix.T, matrix.exp().softmax(-1), torch.linalg.svd(matrix)[1]]
    return digest(b"".join(part.contiguous().numpy().tobytes() for part in parts))


def numbers(run: Path, payloads: set[str]) -> tuple[dict, dict]:
    """Digests of one run folder, and its losses and ranks as plain numbers."""
    import pandas as pd
    from safetensors.torch import load_file

    frames = {name: pd.read_csv(run / f"{name}.csv") for name in ("rounds", "alphas", "geometry")}
    frames["rounds"] = frames["rounds"].drop(columns=["seconds", "memory"])
    frames["metrics"] = pd.read_csv(run / "metrics.csv")
    frames["ranks"] = pd.read_parquet(run / "ranks.parquet")
    digests, plain = {}, {}
    for name, frame in frames.items():
        digests[name] = table(frame)
    digests["payloads"] = digest(" ".join(sorted(payloads)))
    adapters = []
    for path in sorted(run.glob("adapters/*/adapter_model.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            adapters.append(path.parent.name.encode() + name.encode() + tensor.numpy().tobytes())
    digests["adapters"] = digest(b"".join(adapters))
    ranks = frames["ranks"]
    plain["ranks"] = ranks.sort_values(["domain", "protocol", "ranker", "user_id"])["rank"].tolist()
    plain["losses"] = frames["rounds"][["train_loss", "valid_loss", "update_norm"]].values.tolist()
    return digests, plain


def main(dataset: str, out: str) -> None:
    """Run everything on one data set; write {"probe", "data", "digests", "numbers"}."""
    import torch

    torch.set_num_threads(1)
    import data_prep
    from fedecider import RunConfig, federation, wire
    from fedecider.domains import data_digest, read_domains
    from fedecider.engine.backbone import load
    from fedecider.methods import METHODS

    payloads: set[str] = set()
    encode = wire.encode

    def recorded(*args, **kwargs):
        payload = encode(*args, **kwargs)
        payloads.add(digest(payload))
        return payload

    wire.encode = recorded
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Stored states of another process would have been computed by other kernels.
        os.environ["FEDECIDER_CACHE"] = str(root / "cache")
        data = root / "data" / dataset
        data_prep.prepare(dataset, root / "dumps", data, kind="planted", seed=0, **PREPARE)
        backbone = load("tiny", "cpu", "float32")
        todo = {method: (method, {}) for method in METHODS}
        if dataset == "goodreads":
            todo |= VARIANTS
        digests, plain = {}, {}
        for name, (method, change) in todo.items():
            payloads.clear()
            config = RunConfig.of(
                prepared=data,
                folder=root / "runs" / name,
                dataset=dataset,
                method=method,
                **{**SETTINGS, **change},
            )
            run = federation.run(config, backbone)
            digests[name], plain[name] = numbers(run, payloads)
        limits = {split: SETTINGS[f"{split}_users"] for split in ("train", "valid", "test")}
        result = {
            "probe": probe(),
            "data": data_digest(read_domains(data, **limits)),
            "digests": digests,
            "numbers": plain,
        }
    Path(out).write_text(json.dumps(result, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
