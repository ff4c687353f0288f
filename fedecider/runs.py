"""A run folder: what a run writes, and its results as tidy pandas frames.

config.json         every setting, as validated, and a digest of the data
events.jsonl        one JSON line an event: start, client, round, evaluated, finished
rounds.csv          one row a client and round: losses, bytes up and down, seconds of training, norm
                    of the update as trained, steps, peak memory (MiB) while it trained
alphas.csv          one row a round, client, source and module
geometry.csv        one row a round, module and pair of clients: norm and cosine of their updates
checkpoint/         state after the last finished round (tensors and numbers)
adapters/<client>/  the chosen model's own LoRA as PEFT saves it; mixture.safetensors beside it
ranks.parquet       rank of every test user by every ranker
metrics.csv         the same, averaged
result.json         versions, commit and choices; written last: a run that has it is finished

Frames name a run by its place below the folder that they were read from, that folder's own name
first (runs/goodreads/fedecider-seed0, sweeps/...), so frames of several folders can be joined.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from fedecider.metrics import paired_bootstrap, per_user, summarise

_RUN = ["dataset", "method", "seed"]
_NO_MODEL = ("popularity", "als")  # they rank by themselves, whatever the protocol's ranker
COLUMNS = {
    "metrics": [*_RUN, "domain", "protocol", "ranker", "metric", "value", "users", "run"],
    "ranks": [*_RUN, "domain", "protocol", "ranker", "user_id", "rank"],
    "alphas": [*_RUN, "round", "client", "source", "layer", "alpha", "run"],
    "rounds": [*_RUN, "round", "client", "train_loss", "valid_loss", "bytes_up", "bytes_down"]
    + ["seconds", "update_norm", "steps", "memory", "run"],
    "geometry": [*_RUN, "round", "layer", "client", "other", "cosine", "norm", "run"],
    "ranking": [*_RUN, "ranking_seconds", "run"],
}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it if all went well, deleted if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(beside)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    """Content as sorted, indented JSON, atomically."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A frame as CSV, atomically; floats round-trip."""
    with atomic(path) as beside:
        frame.to_csv(beside, index=False)


def versions() -> dict[str, str]:
    """Versions of what decides a number; of a checkout also its commit, see :func:`commit`."""
    found = {}
    for package in ("fedecider", "torch", "transformers", "peft", "numpy", "pandas"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    code = commit(Path(__file__).resolve().parents[1])
    return {**found, "commit": code} if code else found


def commit(checkout: Path) -> str | None:
    """The commit of a git checkout, with "-dirty" where tracked files differ from it; None outside.

    Only for the folder that holds .git itself: a package installed below somebody else's
    repository is not of that repository's commit.
    """
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a repository that it refuses
        return None
    return done.stdout.strip() or None


class Events:
    """Appends events to a JSON-lines file; each line is whole or absent."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, kind: str, **content) -> None:
        """One line, flushed to disk before this returns."""
        line = json.dumps({"event": kind, **content}, sort_keys=True) + "\n"
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict]:
        """All events; a line torn by a kill (the last) is left out."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    def keep_rounds(self, last: int) -> None:
        """Drop what came after round `last`: it is done again."""
        kept = [event for event in self.read() if event.get("round", 0) <= last]
        kept = [event for event in kept if event["event"] not in ("evaluated", "finished")]
        with atomic(self.path) as beside:
            beside.write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in kept))


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Ranks of one run to one row a domain, method, protocol, ranker and metric."""
    rows = []
    keys = ["domain", "method", "protocol", "ranker"]
    for key, group in ranks.groupby(keys, sort=True):
        for metric, value in summarise(group["rank"].to_numpy()).items():
            rows.append((*key, metric, value, len(group)))
    return pd.DataFrame(rows, columns=[*keys, "metric", "value", "users"])


def finished(folder: Path | str) -> list[Path]:
    """Finished run folders below a folder, in sorted order."""
    return sorted(path.parent for path in Path(folder).glob("**/result.json"))


def name_of(run: Path, folder: Path | str) -> str:
    """The run as frames name it: its path from the folder it was read from, whose name is first."""
    return (Path(os.path.abspath(folder)).name / run.relative_to(folder)).as_posix()


def folder_of(name: str, folder: Path | str) -> Path:
    """Where the run lies that :func:`name_of` names so."""
    return Path(os.path.abspath(folder)).parent / name


def _gather(folders: tuple[Path | str, ...], name: str, file: str, read) -> pd.DataFrame:
    frames = []
    for folder in folders:
        for run in finished(folder):
            if not (run / file).exists():
                continue  # what is published may lack a large table
            config = json.loads((run / "config.json").read_text())
            frame = read(run / file)
            for column in reversed(_RUN):
                if column not in frame:
                    frame.insert(0, column, config[column])
            if "run" in COLUMNS[name]:
                frame["run"] = name_of(run, folder)
            frames.append(frame)
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=COLUMNS[name])
    return pd.concat(frames, ignore_index=True)[COLUMNS[name]]


def _once(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Popularity is in every run with the same numbers: keep it once, with seed 0."""
    popular = frame["method"] == "popularity"
    once = frame[popular].assign(seed=0).drop_duplicates(["dataset", *keys])
    return pd.concat([frame[~popular], once], ignore_index=True)


def metrics(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Metrics of all finished runs below one or more folders, COLUMNS["metrics"]; empty without."""
    frame = _gather((folder, *more), "metrics", "metrics.csv", pd.read_csv)
    return _once(frame, ["domain", "protocol", "metric"])


def ranks(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Rank of every test user in all finished runs, COLUMNS["ranks"]."""
    frame = _gather((folder, *more), "ranks", "ranks.parquet", pd.read_parquet)
    return _once(frame, ["domain", "protocol", "user_id"])


def alphas(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Alpha history of all finished runs that learn one, COLUMNS["alphas"]."""
    return _gather((folder, *more), "alphas", "alphas.csv", pd.read_csv)


def rounds(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Losses, bytes and seconds per round and client, COLUMNS["rounds"]."""
    return _gather((folder, *more), "rounds", "rounds.csv", pd.read_csv)


def geometry(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Norms and cosines of the clients' updates in all finished runs, COLUMNS["geometry"]."""
    return _gather((folder, *more), "geometry", "geometry.csv", pd.read_csv)


def ranking(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """Seconds of ranking, all clients and rankers of a finished run, COLUMNS["ranking"]."""

    def read(path: Path) -> pd.DataFrame:
        result = json.loads(path.read_text())
        return pd.DataFrame({"ranking_seconds": [result.get("ranking_seconds")]})

    return _gather((folder, *more), "ranking", "result.json", read)


def configs(folder: Path | str, *more: Path | str) -> pd.DataFrame:
    """One row a run, finished or not: every setting, `run` and `finished`."""
    rows = []
    for place in (folder, *more):
        for path in sorted(Path(place).glob("**/config.json")):
            run = path.parent
            if run.parent.name == "adapters":
                continue
            done = (run / "result.json").exists()
            about = {"run": name_of(run, place), "finished": done}
            rows.append(json.loads(path.read_text()) | about)
    columns = [*_RUN, "run", "finished"]
    frame = pd.DataFrame(rows, columns=None if rows else columns)
    return frame[columns + [c for c in frame.columns if c not in columns]]


def compare(ranks: pd.DataFrame, method: str = "fedecider", metric: str = "ndcg@10"):
    """A method against every other, a row each and protocol: a paired bootstrap over users.

    Columns: dataset, protocol, ranker, method, against, metric, users, difference, low, high, p
    (see `metrics.paired_bootstrap`). Methods are held against each other by the same ranker, and
    against popularity and als. Users of all domains are drawn together; a user's value is the mean
    over the seeds of the method, so more seeds do not count as more users.
    """
    columns = ["dataset", "protocol", "ranker", "method", "against", "metric", "users"]
    columns.append("difference")
    rows = []
    models = ranks[~ranks["method"].isin(_NO_MODEL)]
    for key in sorted(set(zip(*(models[c] for c in columns[:3]), strict=True))):
        dataset, protocol, ranker = key
        part = ranks[(ranks["dataset"] == dataset) & (ranks["protocol"] == protocol)]
        part = part[part["ranker"].isin([ranker, *_NO_MODEL])]
        part = part.assign(value=per_user(part["rank"].to_numpy(), metric))
        values = part.groupby(["method", "domain", "user_id"])["value"].mean()
        if method not in values:
            continue
        for other in sorted(set(part["method"]) - {method}):
            both = pd.concat([values[method], values[other]], axis=1, join="inner").to_numpy()
            if not len(both):
                continue
            found = paired_bootstrap(*both.T)
            names = (*key, method, other, metric, len(both))
            rows.append(dict(zip(columns, names, strict=False)) | found)
    return pd.DataFrame(rows, columns=[*columns, "low", "high", "p"])
