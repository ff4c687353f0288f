"""From run folders to tables: one row per run, the rows of each kind of file, tries of searches.

Folders of before a setting was renamed, before popularity had runs of its own or before a run held
what its method is called are read as what they are today.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from fedecider import integrity
from fedecider.config import renamed
from fedecider.runs import COLUMNS, method_info, read_config, read_csv

METHOD = ["method", "label", "family", "color", "order"]
RUN = ["dataset", *METHOD, "seed"]
# One row per run; config, versions and choices are JSON, finished is the time (UTC).
RUNS = ["run", *RUN, "config", "data_digest", "commit", "versions", "choices", "ranking_seconds"]
RUNS += ["finished"]
SEARCH = ["dataset", *METHOD, "try", "settings", "loss", "chosen"]
_ONCE = {
    "metrics": ["run", "domain", "protocol", "metric"],
    "ranks": ["run", "domain", "protocol", "user_id"],
}


def finished(folder: Path | str) -> list[Path]:
    """Finished run folders below a folder, in sorted order; a pack has none.

    A run with a missing or damaged file is not finished: the same call makes it so.
    """
    folders = sorted(path.parent for path in Path(folder).glob("**/result.json"))
    return [folder for folder in folders if integrity.is_finished(folder)]


def name_of(run: Path, folder: Path | str) -> str:
    """The run as frames name it: its path from the folder it was read from, whose name is first."""
    return (Path(os.path.abspath(folder)).name / run.relative_to(folder)).as_posix()


def folder_of(name: str, folder: Path | str) -> Path:
    """Folder of the run that :func:`name_of` names so."""
    return Path(os.path.abspath(folder)).parent / name


def in_order(names: pd.Series) -> pd.Series:
    """Sort key: run names as their folders sort."""
    return names.map(lambda name: tuple(name.split("/")))


def _method_info(name: str) -> dict[str, Any]:
    """Label, family, colour and order of a method, for run folders that do not hold them."""
    from fedecider.methods import METHODS  # heavy, and needed for old folders alone

    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there are {', '.join(sorted(METHODS))}")
    return method_info(METHODS[name])


def records(folder: Path, unfinished: bool = False) -> pd.DataFrame:
    """The finished runs below a folder, or all of them: RUNS, sorted by name.

    Raises ValueError for a stored configuration with an unknown entry or method, and, naming the
    file, for one that is missing or damaged.
    """
    rows: dict[str, dict[str, Any]] = {}
    old = []
    files = ("config.json", "result.json") if unfinished else ("result.json",)
    folders = {path.parent for file in files for path in folder.glob(f"**/{file}")}
    for run in sorted(folders):
        if run.parent.name != "adapters":
            record, is_old = _record(run, name_of(run, folder))
            rows[record["run"]] = record
            old += [record] if is_old and record["finished"] is not None else []
    for record in old:
        if json.loads(record["config"])["ranking"]["rankers"]:
            popularity = _popularity_beside(record)
            rows.setdefault(popularity["run"], popularity)
    frame = pd.DataFrame(list(rows.values()), columns=RUNS)
    return frame.sort_values("run", key=in_order, ignore_index=True)


def _record(run: Path, name: str) -> tuple[dict[str, Any], bool]:
    """A run's row of RUNS, and whether its folder is of before popularity had runs of its own."""
    result: dict[str, Any] = {}
    if (run / "result.json").exists():
        result = integrity.read_result(run)
        integrity.check(run, "config.json")
    config, digest, info, _ = read_config(run)
    is_old = not info
    try:
        info = info or _method_info(config["method"])
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: {error}") from error
    versions = result.get("versions", {})
    record = {
        "run": name,
        "dataset": config["data"]["dataset"],
        "method": config["method"],
        **{column: info[column] for column in METHOD[1:]},
        "seed": config["seed"],
        "config": text(config),
        "data_digest": digest,
        "commit": versions.get("commit"),
        "versions": text({key: value for key, value in versions.items() if key != "commit"}),
        "choices": text(result.get("choices", {})),
        "ranking_seconds": result.get("ranking_seconds"),
        # When it was finished (UTC); a result that does not say so is finished all the same.
        "finished": result.get("finished", "") if result else None,
    }
    return record, is_old


def text(content: Any) -> str:
    """JSON, the same for equal content."""
    return json.dumps(content, sort_keys=True)


def _popularity_beside(record: dict[str, Any]) -> dict[str, Any]:
    """Popularity, which every run once ranked by too, as a run of its own beside that run."""
    run = _popularity_name(record["run"])
    config = json.loads(record["config"]) | {"method": "popularity", "seed": 0, "settings": {}}
    config["folder"] = "/".join(PurePosixPath(run).parts[-2:])
    own = {"run": run, "method": "popularity", **_method_info("popularity"), "seed": 0}
    own |= {"config": text(config), "choices": text({}), "ranking_seconds": None}
    return record | own


def _popularity_name(run: str) -> str:
    return PurePosixPath(run).with_name("popularity-seed0").as_posix()


def rows(folder: Path, records: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows of one kind of these runs: run and runs.COLUMNS[kind], sorted by run."""
    columns = ["run", *COLUMNS[kind]]
    file = "ranks.parquet" if kind == "ranks" else f"{kind}.csv"
    frames = []
    for run, method in zip(records["run"], records["method"], strict=True):
        path = folder_of(run, folder) / file
        if (path.parent / "result.json").exists():
            integrity.check(path.parent, file)
        if not path.exists():
            continue  # an old folder may lack a large table; popularity may have no folder
        frame = pd.read_parquet(path) if kind == "ranks" else read_csv(path, kind)
        frame = frame.assign(run=run)
        if "method" in frame:
            other = frame["method"] != method
            if not folder_of(_popularity_name(run), folder).exists():
                frames.append(frame[other].assign(run=_popularity_name(run)))
            frame = frame[~other]
        frames.append(frame)
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=columns)
    table = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    if kind in _ONCE:  # popularity is the same in every run that once held it
        popular = table["run"] == table["run"].map(_popularity_name)
        table = table[~(popular & table.duplicated(_ONCE[kind]))]
    return table.sort_values("run", key=in_order, kind="stable", ignore_index=True)


# Searches


def tries(folder: Path) -> pd.DataFrame:
    """Every try of every search below a folder, from <dataset>/<method>/chosen.json: SEARCH.

    Raises `integrity.DamagedError` for a chosen.json that is not what was written.
    """
    rows = []
    for file in sorted(folder.glob("**/chosen.json")):
        method, content = file.parent.name, integrity.read_chosen(file)
        about = {"dataset": file.parent.parent.name, "method": method, **_info_of_search(file)}
        tried = [{k: v for k, v in t.items() if k not in ("loss", "run")} for t in content["tried"]]
        chosen = tried.index(content["settings"])  # the first of equals
        for number, settings in enumerate(tried):
            loss = content["tried"][number]["loss"]
            own = {"try": number, "settings": text(plain(settings, method))}
            own |= {"loss": float("inf") if loss is None else loss, "chosen": number == chosen}
            rows.append({**about, **own})
    return pd.DataFrame(rows, columns=SEARCH)


def _info_of_search(chosen: Path) -> dict[str, Any]:
    for config in sorted(chosen.parent.glob("try-*/config.json")):
        info = json.loads(config.read_text()).get("method_info")
        if info:
            return {column: info[column] for column in METHOD[1:]}
    return _method_info(chosen.parent.name)


def plain(settings: dict[str, Any], method: str) -> dict[str, Any]:
    """Settings of an old search by the names that they have today; today's stay."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        try:
            mapped = renamed({"method": method, name: value})
        except ValueError:  # the method's own
            mapped = {}
        named |= {key: mapped[key] for key in mapped if key != "method"} or {name: value}
    return named
