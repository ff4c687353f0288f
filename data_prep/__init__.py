"""Raw dumps in, prepared domains out. See README.md beside this file for every format.

Public: prepare, its Settings and errors (FormatError, EmptyDomainError, WriteError, BusyError),
FORMATS with the reader per kind (reader_of for one of them), write_dumps for the generated raw
files, rejections and examples to look at the outcome.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from . import planted
from .domains import FORMAT_VERSION, EmptyDomainError, prepare_domain
from .folders import (
    BusyError,
    WriteError,
    digest,
    held,
    install,
    nearest,
    read_manifest,
    remove,
    unprepared,
    write_json,
    write_manifest,
    writing,
)
from .formats import FORMATS, reader_of
from .names import check_name, check_names
from .planted import write_dumps
from .reading import FormatError
from .settings import Settings
from .store import Files, RawFormat

__all__ = [
    "FORMATS",
    "BusyError",
    "EmptyDomainError",
    "FormatError",
    "Settings",
    "WriteError",
    "examples",
    "prepare",
    "reader_of",
    "rejections",
    "write_dumps",
]

_AFFINITY = "affinity.json"


def prepare(dataset: str, source: str | Path, out: str | Path, **settings: Any) -> pd.DataFrame:
    """Prepare every domain of a data set into out/<domain>/; return one row per domain.

    dataset: the data set's name; where it is a kind in FORMATS it also names its reader.
    source: the folder of raw files; for kind "planted" the dumps folder, generated if absent.
    settings: fields of Settings; `kind` defaults to the data set's name, else "plain".

    Writes interactions, items, splits, candidates (Parquet) and meta.json per domain; for planted
    data also out/affinity.json; last of all out/manifest.json, which says what the data set is. A
    failed preparation leaves the earlier data set as it was; a finished one replaces it whole.
    Returns dataset, domain, users, items, interactions, density, median_history, filter_rounds,
    duplicates, rejected_interactions, rejected_items.
    Raises FileNotFoundError (no such file, no such domain), FormatError (a file of another
    format), EmptyDomainError (nothing left), WriteError (a full disk, a limit, a file in the way),
    BusyError (another preparation writes `out`), ValueError (no such kind, a name against the
    rule) and pydantic's ValidationError (bad settings).
    """
    check_name("data set", dataset)
    # "planted" is no data set's name: its dumps are named as the published ones.
    published = dataset in FORMATS and dataset != planted.KIND
    settings.setdefault("kind", dataset if published else "plain")
    reader, config = reader_of(settings["kind"]), Settings(**settings)
    if config.domains is not None:
        check_names(config.domains)
    source, out = Path(source), Path(out)
    folder = source
    if config.kind == planted.KIND:
        if dataset not in planted.DATASETS:
            raise ValueError(
                f"dataset {dataset!r}: planted dumps exist for {', '.join(planted.DATASETS)}"
            )
        with writing(source.parent), writing(source):
            planted.ensure_dumps(
                source,
                seed=config.seed,
                users=config.planted_users,
                items=config.planted_items,
                history=config.planted_history,
            )
        folder = source / dataset
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected a folder with the raw files of {dataset}; "
            f"{nearest(folder, holding='')}"
        )
    files = reader.find(folder, config.domains)
    absent = [name for name in config.domains or [] if name not in files]
    if absent:
        raise FileNotFoundError(
            f"{folder}: no domain {', '.join(absent)}; found {', '.join(files)}"
        )
    names = list(files) if config.domains is None else config.domains
    check_names(names)
    halves = _half_pairs(reader, folder) if config.domains is None else {}
    built, metas = {name: out / f".{name}.partial" for name in names}, []
    with held(out):
        try:
            for name, partial in built.items():
                remove(partial)
                metas.append(prepare_domain(dataset, name, reader, files[name], partial, config))
            if config.kind == planted.KIND:
                built[_AFFINITY] = out / f".{_AFFINITY}.partial"
                write_json(built[_AFFINITY], _affinity(dataset, source, names))
            with install(out, built):
                write_manifest(
                    out,
                    names,
                    format_version=FORMAT_VERSION,
                    dataset=dataset,
                    settings=config.recorded(),
                    left_alone=_left_alone(folder, [files[name] for name in names]),
                    half_pairs=halves,
                    files={_AFFINITY: digest(out / _AFFINITY)} if _AFFINITY in built else {},
                )
            if _AFFINITY not in built:  # that of an earlier, planted preparation
                remove(out / _AFFINITY)
        finally:
            for partial in built.values():
                remove(partial)
    return summary(metas)


def _half_pairs(reader: RawFormat, folder: Path) -> dict[str, str]:
    """Names of the files that lack their other half, with what is expected; each with a warning."""
    find = getattr(reader, "half_pairs", None)
    halves: dict[str, str] = find(folder) if find else {}
    for name, expected in halves.items():
        warnings.warn(f"{folder / name} is left alone: {expected}", stacklevel=3)
    return halves


def _left_alone(folder: Path, used: list[Files]) -> list[str]:
    """Names of the files beside the raw ones that were not read."""
    read = {path for files in used for path in files[:2]}
    read |= {files.part.path for files in used if files.part}
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path not in read)


def summary(metas: list[dict]) -> pd.DataFrame:
    """The counts of several meta.json, one row per domain."""
    return pd.DataFrame(
        [
            {
                "dataset": meta["dataset"],
                "domain": meta["domain"],
                "users": meta["result"]["users"],
                "items": meta["result"]["items"],
                "interactions": meta["result"]["interactions"],
                "density": meta["result"]["density"],
                "median_history": meta["result"]["median_history"],
                "filter_rounds": meta["filter_rounds"],
                "duplicates": meta["interactions"]["duplicates"],
                "rejected_interactions": sum(meta["interactions"]["rejected"].values()),
                "rejected_items": sum(meta["items"]["rejected"].values()),
            }
            for meta in metas
        ]
    )


def rejections(out: str | Path, first: bool = False) -> pd.DataFrame:
    """Every reason for which lines of the prepared domains under `out` were left out.

    first: with the line number and the value of the first line of each (columns line, value).
    Raises FileNotFoundError, naming the nearest folder, if nothing is prepared in `out`, and
    FormatError for a damaged file.
    """
    out, rows = Path(out), []
    manifest = read_manifest(out)
    if manifest is None:
        raise unprepared(out)
    for domain in sorted(manifest["domains"]):
        path = out / domain / "meta.json"
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise FormatError(f"{path} is missing or damaged: prepare the data set again") from None
        for table in ("interactions", "items"):
            for reason, lines in meta[table]["rejected"].items():
                example = meta["examples"][table][reason]
                rows.append((domain, table, reason, lines, example["line"], example["value"]))
    columns = ["domain", "file", "reason", "lines", "line", "value"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame if first else frame[columns[:4]]


def examples(domain: str | Path, users: int = 2, titles: int = 8) -> pd.DataFrame:
    """The last titles of a prepared domain's first users, oldest first: user, history.

    Raises FileNotFoundError, naming the nearest folder, if none is there.
    """
    domain = Path(domain)
    if not (domain / "interactions.parquet").is_file():
        raise unprepared(domain)
    rows = pd.read_parquet(domain / "interactions.parquet", columns=["user_id", "item_id"])
    rows = rows[rows.user_id.isin(rows.user_id.drop_duplicates().head(users))]
    title_of = pd.read_parquet(domain / "items.parquet").set_index("item_id").title
    last = rows.assign(title=rows.item_id.map(title_of)).groupby("user_id").tail(titles)
    return last.groupby("user_id").title.agg("; ".join).rename("history").reset_index()


def _affinity(dataset: str, dumps: Path, names: list[str]) -> dict[str, Any]:
    """The planted truth of these domains."""
    truth = json.loads((dumps / "planted.json").read_text(encoding="utf-8"))["datasets"][dataset]
    indices = [truth["domains"].index(name) for name in names]
    affinity = [[truth["affinity"][i][j] for j in indices] for i in indices]
    return {"domains": list(names), "affinity": affinity}
