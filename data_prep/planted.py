"""Generated dumps in the published raw formats, with a known truth about who can help whom.

Every item belongs to one of eight themes, which its title shows. A user stays in a theme with
probability 0.45, moves to the domain's next theme with 0.45 and anywhere with 0.10, and takes an
unseen item of the theme by long-tailed popularity. A domain's "next" is drawn from a mixture of
fixed permutations of the themes that agree nowhere: in each data set the first two domains share
one of them to the planted affinity, the third has its own.

The affinity of two domains is the overlap of their next-theme distributions, the sum over themes
of the smaller probability, averaged over the current theme: 1 for a domain with itself.

The dumps carry a few lines of every kind that a reader has to reject or repair. As a format, the
folder of a data set's dumps is read as what its name says.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from . import amazon, goodreads
from .planted_files import DAY, WRITERS, History
from .planted_titles import THEMES, titles
from .settings import Settings
from .store import Files, Store

KIND = "planted"
_READERS = {"goodreads": goodreads, "amazon": amazon}
DATASETS = {
    "goodreads": ("children", "comics_graphic", "mystery_thriller_crime"),
    "amazon": ("office_products", "industrial_and_scientific", "video_games"),
}
PERSIST, MOVE = 0.45, 0.45  # the rest is noise: any theme with equal probability
_START = 1_325_376_000  # 2012-01-01, seconds


def find(folder: Path, domains: list[str] | None = None) -> dict[str, Files]:
    """Domain -> its two files, for the dumps of one data set (`write_dumps`/<data set>)."""
    return _READERS[folder.name].find(folder, domains)


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one domain's dumps."""
    _READERS[files.interactions.parent.name].load(store, files, settings)


def write_dumps(
    folder: str | Path,
    seed: int = 0,
    users: int = 400,
    items: int = 320,
    history: int = 14,
    affinity: float = 0.9,
) -> Path:
    """Write folder/goodreads, folder/amazon and folder/planted.json; the same bytes every time.

    users, items: of each of the six domains, before any filter. history: mean interactions per
    user (at least 6 each). affinity: in [0, 1], between the first two domains of each data set.
    Raises ValueError if the folder holds something that is not planted dumps, or if the
    vocabulary is too small for `items`.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "planted.json").is_file():
        raise ValueError(f"{folder}: expected an empty folder or planted dumps (planted.json)")
    if not 0 <= affinity <= 1:
        raise ValueError(f"affinity {affinity}: expected a number from 0 to 1")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    truth = {}
    for index, (dataset, domains) in enumerate(DATASETS.items()):
        dumps = partial / dataset
        dumps.mkdir(parents=True)
        moves = _moves(np.random.default_rng([seed, index]), affinity)
        for k, domain in enumerate(domains):
            generator = np.random.default_rng([seed, index, k])
            catalogue = _catalogue(domain, items, generator)
            histories = _histories(catalogue, moves[k], users, history, generator)
            WRITERS[domain](dumps, catalogue, histories, generator)
        truth[dataset] = {"domains": list(domains), "affinity": _overlap(moves).tolist()}
    parameters = _parameters(users, items, history, affinity)
    record = {"seed": seed, "parameters": parameters, "datasets": truth}
    (partial / "planted.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return folder


def ensure_dumps(folder: Path, seed: int, users: int, items: int, history: int) -> Path:
    """write_dumps, unless the folder already holds the dumps of these parameters."""
    path = folder / "planted.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record["seed"], record["parameters"]) == (seed, _parameters(users, items, history)):
            return folder
    return write_dumps(folder, seed, users, items, history)


def _parameters(users: int, items: int, history: int, affinity: float = 0.9) -> dict:
    return {"users": users, "items": items, "history": history, "affinity": affinity}


def _moves(generator: np.random.Generator, affinity: float) -> np.ndarray:
    """Next-theme distributions (3 domains x themes x themes), rows sum to 1.

    Three cycles through all themes that agree nowhere: one is the first domain's, the second
    takes it with weight `affinity` and a cycle of its own otherwise, the third is unrelated.
    """
    count = len(THEMES)
    order = generator.permutation(count)
    # Steps 1, 3 and 5 around one random circle of 8: each visits all themes, no two agree.
    cycles = np.zeros((3, count, count))
    for cycle, step in zip(cycles, (1, 3, 5), strict=True):
        cycle[order, np.roll(order, -step)] = 1.0
    shared, own, unrelated = cycles
    return np.stack([shared, affinity * shared + (1 - affinity) * own, unrelated])


def _overlap(moves: np.ndarray) -> np.ndarray:
    """The affinity matrix (domains x domains) of next-theme distributions."""
    return np.minimum(moves[:, None], moves[None]).sum(axis=3).mean(axis=2).round(6)


def transitions(moves: np.ndarray) -> np.ndarray:
    """One domain's theme transition matrix: persist, move, noise."""
    count = len(moves)
    noise = (1 - PERSIST - MOVE) / count
    return PERSIST * np.eye(count) + MOVE * moves + noise


def _catalogue(domain: str, items: int, generator: np.random.Generator) -> list[dict]:
    """Items in random order, as {"id", "title", "theme", "weight"}; weights are long-tailed."""
    catalogue = []
    sizes = [len(part) for part in np.array_split(np.arange(items), len(THEMES))]
    for index, (theme, size) in enumerate(zip(THEMES, sizes, strict=True)):
        for rank, title in enumerate(titles(domain, theme, size, generator)):
            weight = (rank + 2) ** -0.8
            catalogue.append({"title": title, "theme": index, "weight": weight})
    ids = generator.permutation(len(catalogue))
    for item, item_id in zip(catalogue, ids, strict=True):
        item["id"] = int(item_id)
    return sorted(catalogue, key=lambda item: item["id"])


def _histories(
    catalogue: list[dict], moves: np.ndarray, users: int, mean: int, generator: np.random.Generator
) -> list[History]:
    """One history per user."""
    matrix = transitions(moves)
    themes = np.array([item["theme"] for item in catalogue])
    weights = np.array([item["weight"] for item in catalogue])
    members = [np.flatnonzero(themes == theme) for theme in range(len(matrix))]
    histories = []
    for _ in range(users):
        length = min(6 + int(generator.poisson(mean - 6)), len(catalogue) // 2)
        theme = int(generator.integers(len(matrix)))
        moment = _START + int(generator.integers(4 * 365)) * DAY + int(generator.integers(DAY))
        remaining = weights.copy()
        history: History = []
        while len(history) < length:
            pool = members[theme]
            if remaining[pool].sum() == 0:  # everything of the theme is taken
                theme = int(generator.integers(len(matrix)))
                continue
            item = int(generator.choice(pool, p=remaining[pool] / remaining[pool].sum()))
            remaining[item] = 0.0
            history.append((item, moment, int(generator.choice([3, 4, 5], p=[0.2, 0.4, 0.4]))))
            moment += DAY + int(generator.exponential(12 * DAY))
            theme = int(generator.choice(len(matrix), p=matrix[theme]))
        histories.append(history)
    return histories
