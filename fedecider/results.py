"""Results of runs as tidy pandas frames, from a folder of run folders or from a pack alike.

A folder is what runs write: results/demo/runs, results/demo/sweeps, or one run. A pack (`pack`)
holds the same in one Parquet table per kind, with users numbered; <pack>/runs and <pack>/sweeps
are its runs whose names begin so, and no folders on disk.

Frames name a run by its folder below the folder that they were read from, that folder's own name
first (runs/goodreads/fedecider-seed0, sweeps/...), so frames of several folders can be joined.
What a method is called and drawn with comes from the run, not from the installed code.
"""

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from fedecider import packs, run_folders
from fedecider.config import flattened
from fedecider.metrics import paired_bootstrap, per_user
from fedecider.packs import pack
from fedecider.run_folders import RUN, SEARCH, finished, folder_of, name_of
from fedecider.runs import COLUMNS as WRITTEN

__all__ = ["alphas", "compare", "configs", "finished", "folder_of", "geometry", "metrics"]
__all__ += ["name_of", "pack", "ranking", "ranks", "rounds", "search"]

COLUMNS = {
    **{kind: [*RUN, *columns, "run"] for kind, columns in WRITTEN.items()},
    "ranking": [*RUN, "ranking_seconds", "run"],
    "search": SEARCH,
}
NO_MODEL = "no language model"  # family of methods that rank by themselves
_PARTS = ("runs", "sweeps", "search")  # of a results folder


def metrics(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Metrics of all finished runs, one row per domain, protocol, ranker and metric."""
    return _frame("metrics", path, *more)


def ranks(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Rank (1 is best) of every test user in all finished runs."""
    return _frame("ranks", path, *more)


def rounds(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Losses (nats), bytes and seconds per round and client."""
    return _frame("rounds", path, *more)


def alphas(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """History of alpha per round, client, source and layer of all runs that learn one."""
    return _frame("alphas", path, *more)


def geometry(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Norms and cosines of the clients' updates per round and layer.

    A pack holds them for the last round of the method local alone.
    """
    return _frame("geometry", path, *more)


def ranking(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Seconds of ranking, all clients and rankers of a finished run."""
    frame = pd.concat([_records(folder) for folder in (path, *more)], ignore_index=True)
    return frame.dropna(subset="ranking_seconds")[COLUMNS["ranking"]].reset_index(drop=True)


def configs(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """One row per run, finished or not: its method, `finished`, and every setting by its name.

    A setting that only other methods have is missing. Raises ValueError for a stored configuration
    with an unknown entry.
    """
    records = pd.concat([_records(folder, unfinished=True) for folder in (path, *more)])
    first = [*RUN, "run", "finished"]
    rows = []
    for record in records.to_dict("records"):
        settings = flattened(json.loads(record["config"]))
        own = {name: record[name] for name in (*RUN, "run")}
        own["finished"] = not pd.isna(record["finished"])
        rows.append({**own, **settings, **own, "data_digest": record["data_digest"]})
    frame = pd.DataFrame(rows, columns=None if rows else first)
    return frame[[*first, *(name for name in frame.columns if name not in first)]]


def search(path: Path | str, *more: Path | str) -> pd.DataFrame:
    """Every try of every search below results/<name>/search or in a pack.

    `settings` is JSON, `loss` the mean over clients of the best validation loss (infinite where the
    try diverged), `chosen` marks the try whose settings the runs have.
    """
    return pd.concat([_tries(folder) for folder in (path, *more)], ignore_index=True)


def compare(
    ranks: pd.DataFrame, method: str = "fedecider", metric: str = "ndcg@10"
) -> pd.DataFrame:
    """A method against every other, one row per protocol and ranker: a paired bootstrap over users.

    `ranks` is the frame of :func:`ranks`. Columns: dataset, protocol, ranker, method, against,
    metric, users, difference, low, high, p (see `metrics.paired_bootstrap`). Methods are compared
    by the same ranker, and with those that rank without a language model. Users of all domains are
    drawn together; a user's value is the mean over the seeds of the method, so more seeds do not
    count as more users. A method without runs has no rows; ValueError, with the nearest name, for
    one that is neither among the ranks nor installed.
    """
    _refuse_unknown(method, ranks["method"])
    columns = ["dataset", "protocol", "ranker", "method", "against", "metric", "users"]
    columns.append("difference")
    rows = []
    models = ranks[ranks["family"] != NO_MODEL]
    for key in sorted(set(zip(*(models[c] for c in columns[:3]), strict=True))):
        dataset, protocol, ranker = key
        part = ranks[(ranks["dataset"] == dataset) & (ranks["protocol"] == protocol)]
        part = part[(part["ranker"] == ranker) | (part["family"] == NO_MODEL)]
        part = part.assign(value=per_user(part["rank"].to_numpy(), metric))
        values = part.groupby(["method", "domain", "user_id"])["value"].mean()
        if method not in values:
            continue
        for other in sorted(set(part["method"]) - {method}):
            both = pd.concat([values[method], values[other]], axis=1, join="inner").to_numpy()
            if not len(both):
                continue
            names = (*key, method, other, metric, len(both))
            rows.append(dict(zip(columns, names, strict=False)) | paired_bootstrap(*both.T))
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "p"])


def _refuse_unknown(method: str, ranked: Iterable[str]) -> None:
    names = set(ranked)
    if method in names:
        return
    from fedecider.methods import METHODS  # heavy, and needed for a method without runs alone

    names |= set(METHODS)
    if method not in names:
        [nearest] = difflib.get_close_matches(method, sorted(names), n=1, cutoff=0.0)
        raise ValueError(f"no method is called {method!r}; the nearest name is {nearest!r}")


# From a path to the tables that it names


def _frame(kind: str, *paths: Path | str) -> pd.DataFrame:
    """The table of one kind with the run's data set, method and seed: COLUMNS[kind]."""
    frames = []
    for path in paths:
        records = _records(path)
        rows = _rows(path, records, kind)
        frames.append(rows.merge(records[["run", *RUN]], on="run")[COLUMNS[kind]])
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS[kind])


def _located(path: Path | str) -> tuple[Path, str | None]:
    """A folder and None, or a pack and how the names of its runs begin ("" for all of it).

    Raises FileNotFoundError for a path that is neither. A part of a results folder that no run has
    reached yet is a folder without runs.
    """
    path = Path(os.path.abspath(path))
    base = next(folder for folder in (path, *path.parents) if folder.is_dir())
    if packs.is_pack(base):
        start = "" if path == base else path.relative_to(base).as_posix()
        starts = {str(part) for run in packs.read(base, "runs")["run"] for part in _parts(run)}
        if start not in {"", *starts, *_PARTS}:
            raise _missing(path, [base / part for part in starts])
        return base, start
    begun = any((path.parent / part).is_dir() for part in (*_PARTS, "data"))
    if path != base and not (path.name in _PARTS and begun):
        _, *rest = path.relative_to(base).parts
        beside = [folder for folder in base.iterdir() if folder.is_dir()]
        likely = [folder.joinpath(*rest) for folder in beside if folder.joinpath(*rest).is_dir()]
        raise _missing(path, likely or beside)
    return path, None


def _parts(run: str) -> Iterable[PurePosixPath]:
    """runs/goodreads/fedecider-seed0, runs/goodreads, runs."""
    return (PurePosixPath(run), *PurePosixPath(run).parents[:-1])


def _missing(path: Path, known: list[Path]) -> FileNotFoundError:
    nearest = difflib.get_close_matches(str(path), sorted(map(str, known)), n=1, cutoff=0.0)
    return FileNotFoundError(
        f"{path} is neither a folder of runs nor in a pack; "
        + (f"the nearest name is {nearest[0]}" if nearest else "nothing is beside it")
    )


def _records(path: Path | str, unfinished: bool = False) -> pd.DataFrame:
    """The runs at a path, one row each: run_folders.RUNS."""
    folder, start = _located(path)
    if start is None:
        return run_folders.records(folder, unfinished)
    return _part(packs.read(folder, "runs"), start)


def _rows(path: Path | str, records: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows of one kind of these runs: run and WRITTEN[kind], in the order of the runs."""
    folder, start = _located(path)
    if start is None:
        return run_folders.rows(folder, records, kind)
    return _part(packs.read(folder, kind), start)


def _part(table: pd.DataFrame, start: str) -> pd.DataFrame:
    """Rows of a pack's runs below `start`, named from its last part on as a folder's are."""
    if not start:
        return table
    inside = (table["run"] == start) | table["run"].str.startswith(f"{start}/")
    names = table.loc[inside, "run"].str.slice(len(start) - len(PurePosixPath(start).name))
    return table[inside].assign(run=names).reset_index(drop=True)


def _tries(path: Path | str) -> pd.DataFrame:
    """The tries at a path: SEARCH."""
    folder, start = _located(path)
    if start is None:
        return run_folders.tries(folder)
    return packs.read(folder, "search") if start in ("", "search") else pd.DataFrame(columns=SEARCH)
