"""Synthetic frames, as fedecider.results gives them, that figures are drawn from."""

import numpy as np
import pandas as pd

from figures import select

THREE = ["children", "comics_graphic", "mystery_thriller_crime"]
SIX = sorted([*THREE, "fantasy_paranormal", "history_biography", "young_adult"])
METHODS = ["zero-shot", "popularity", "local", "fedavg", "fedecider"]
KNOWN = {  # label, family, color, order, as a run stores them
    "popularity": ("Popularity", "no language model", "#000000", 0),
    "als": ("ALS", "no language model", "#6699CC", 1),
    "zero-shot": ("Zero-shot", "reference", "#999999", 10),
    "local": ("Local", "reference", "#009E73", 20),
    "centralized": ("Centralized", "reference", "#555555", 30),
    "fedavg": ("FedAvg", "federated", "#0072B2", 40),
    "fedprox": ("FedProx", "federated", "#56B4E9", 41),
    "ffa-lora": ("FFA-LoRA", "federated", "#E69F00", 42),
    "flora": ("FLoRA", "federated", "#CC79A7", 43),
    "fedsa-lora": ("FedSA-LoRA", "federated", "#F0E442", 44),
    "rolora": ("RoLoRA", "federated", "#882255", 45),
    "lora-sim": ("LoRA-Sim", "federated", "#44AA99", 46),
    "fellrec": ("FELLRec", "federated", "#999933", 47),
    "feddpa": ("FedDPA", "federated", "#AA4499", 48),
    "fedecider": ("FeDecider", "federated", "#D55E00", 60),
    "fedecider-no-direction": ("– w/o direction", "ablation", "#DDAA33", 61),
    "fedecider-no-personalization": ("– w/o personalization", "ablation", "#BB5566", 62),
    "fedecider-no-both": ("– w/o both", "ablation", "#997700", 63),
}
ALL = list(KNOWN)
SILENT = ("zero-shot", "popularity", "als")  # what does not train has no rounds
KINDS = ("q_proj", "v_proj")
OTHER = ("#123456", 99)  # colour and order of a method that nobody listed
ROUNDS = ["dataset", "method", "seed", "round", "client", "train_loss", "valid_loss", "bytes_up"]
ROUNDS += ["bytes_down", "seconds", "update_norm", "steps", "memory", "run"]
METRICS = ["dataset", "method", "seed", "domain", "protocol", "ranker", "metric", "value", "users"]
METRICS += ["run"]
BASE = {"rank": 8, "rounds": 3, "local_epochs": 1, "alpha_lr": 0.02, "alpha_init": 0.0}
BASE |= {"truncate": None, "payload_dtype": "float32", "lr": 0.002, "train_users": 200}
VALUES = {"rank": [16, 4, 32], "rounds": [1, 12], "local_epochs": [2], "alpha_lr": [0.1, 0.0]}
VALUES |= {"alpha_init": [0.5], "truncate": [1, 4], "payload_dtype": ["int8", "bfloat16"]}
VALUES |= {"lr": [0.004, 0.001], "train_users": [36]}
SIZES = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.27}


def described(frame, **families):
    """The frame with the columns that describe its methods; ``families`` of those not in KNOWN."""
    rows = frame.drop(columns=select.METHOD, errors="ignore")
    known = KNOWN | {name: (name.title(), family, *OTHER) for name, family in families.items()}
    about = {m: known.get(m, (m, "federated", *OTHER)) for m in set(rows["method"])}
    place = rows.columns.get_loc("method") + 1
    for i, name in enumerate(select.METHOD):
        rows.insert(place + i, name, [about[method][i] for method in rows["method"]])
    return rows


def synthetic_metrics(domains, methods=METHODS, seeds=(0, 1, 2), dataset="goodreads"):
    rng = np.random.default_rng(7)
    rows = []
    for domain in domains:
        for protocol, ranker, level in (
            ("catalogue", "grounding", 0.05),
            ("sampled", "likelihood", 0.4),
        ):
            for metric in select.METRICS:
                for method in methods:
                    alone = method in ("popularity", "als")
                    for seed in (0,) if method == "popularity" else seeds:
                        by = method if alone else ranker
                        value = level * rng.uniform(0.8, 1.2)
                        run = f"runs/{dataset}/{method}-seed{seed}"
                        rows.append(
                            (dataset, method, seed, domain, protocol, by, metric, value, 50, run)
                        )
    return described(pd.DataFrame(rows, columns=METRICS))


def synthetic_alphas(domains, seeds=(0, 1), rounds=4, layers=3, scale=0.3):
    rng = np.random.default_rng(11)
    rows = [
        ("goodreads", "fedecider", seed, r, client, source, f"layers.{layer}.q_proj", value)
        + (f"runs/goodreads/fedecider-seed{seed}",)
        for seed in seeds
        for r in range(1, rounds + 1)
        for client in domains
        for source in domains
        if client != source
        for layer, value in enumerate(rng.normal(0, scale, layers))
    ]
    columns = ["dataset", "method", "seed", "round", "client", "source", "layer", "alpha", "run"]
    return described(pd.DataFrame(rows, columns=columns))


def square(domains, diagonal=0.0, low=0.1, high=0.9):
    values = np.random.default_rng(len(domains)).uniform(low, high, (len(domains),) * 2)
    values = (values + values.T) / 2
    np.fill_diagonal(values, diagonal)
    return pd.DataFrame(values, index=domains, columns=domains)


def without_rows(frame):
    """As fedecider.results gives it: the columns, and no types."""
    return pd.DataFrame(columns=list(frame.columns))


def synthetic_geometry(domains, seeds=(0, 1, 2), rounds=2, blocks=4, method="local"):
    """Norms grow with the domain's place; cosines are symmetric."""
    rng, rows = np.random.default_rng(3), []
    layers = [f"model.layers.{b}.self_attn.{kind}" for b in range(blocks) for kind in KINDS]
    for seed in seeds:
        for number in range(1, rounds + 1):
            for layer in layers:
                found = {}
                for place, client in enumerate(domains):
                    norm = (1 + place) * rng.uniform(0.8, 1.2)
                    for other in domains:
                        pair = tuple(sorted((client, other)))
                        same = client == other
                        cosine = 1.0 if same else found.setdefault(pair, rng.normal(0.03, 0.04))
                        key = ("goodreads", method, seed, number, layer, client, other)
                        rows.append((*key, cosine, norm, f"runs/goodreads/{method}-seed{seed}"))
    columns = ["dataset", "method", "seed", "round", "layer", "client", "other", "cosine", "norm"]
    columns += ["run"]
    return described(pd.DataFrame(rows, columns=columns))


def round_rows(run, domains, *, method, seed=0, rounds=3, up=1000, down=2000, losses=None):
    """One run's rows of the rounds frame; losses[round - 1] + place / 10 by domain."""
    losses = losses or [3 - 0.2 * number for number in range(rounds)]
    return [
        ("goodreads", method, seed, number, domain, 3.0, losses[number - 1] + place / 10)
        + (up, down, 1.0, 5.0, 10, 900.0, run)
        for number in range(1, rounds + 1)
        for place, domain in enumerate(domains)
    ]


def rounds_frame(rows):
    return described(pd.DataFrame(rows, columns=ROUNDS))


def synthetic_rounds(domains, methods, seeds=(0, 1, 2)):
    rows = []
    for place, method in enumerate(methods):
        if method in SILENT:
            continue
        up = 0 if method in ("local", "centralized") else 160_000
        down = up * (len(domains) - 1 if method.startswith("fedecider") else 1)
        for seed in seeds:
            losses = [3.0, 2.5 + 0.021 * place + 0.004 * seed, 2.9]
            run = f"runs/goodreads/{method}-seed{seed}"
            more = {"seed": seed, "up": up, "down": down, "losses": losses}
            rows += round_rows(run, domains, method=method, **more)
    return rounds_frame(rows)


def synthetic_sweeps(fields=tuple(VALUES), seeds=(0,), domains=THREE, method="fedecider"):
    """metrics, rounds and configs of a folder of sweeps."""
    rng, metrics, rounds, configs = np.random.default_rng(9), [], [], []
    runs = [("base", None)] + [(field, value) for field in fields for value in VALUES[field]]
    for field, value in runs:
        name = "base" if field == "base" else f"{field}-{value}"
        config = BASE | ({} if field == "base" else {field: value})
        size = SIZES[config["payload_dtype"]] * (config["truncate"] or 8) / 8
        for seed in seeds:
            run = f"sweeps/goodreads/{name}-{method}-seed{seed}"
            key = ("goodreads", method, seed)
            configs.append(dict(zip(("dataset", "method", "seed"), key, strict=True)) | config)
            configs[-1] |= {"run": run, "finished": True}
            for domain in domains:
                row = (domain, "sampled", "likelihood", "ndcg@10", rng.uniform(0.18, 0.2), 50, run)
                metrics.append((*key, *row))
            number = config["rounds"]
            losses = [2.8 - 0.3 * (r == number - 1) + rng.uniform(0, 0.1) for r in range(number)]
            more = {"seed": seed, "up": int(160_000 * size), "down": int(320_000 * size)}
            rounds += round_rows(run, domains, method=method, rounds=number, losses=losses, **more)
    metrics = described(pd.DataFrame(metrics, columns=METRICS))
    return metrics, rounds_frame(rounds), described(pd.DataFrame(configs))


def nothing(*parts):
    return [without_rows(part) for part in parts]
