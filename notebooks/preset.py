"""A preset: what one `make reproduce` runs, validated, and completed by what the user gives."""

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from notebooks.stages import StageError

_BUILT_IN = ("smollm2-135m", "tiny")  # names of fedecider.backbone, never folders


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(_Strict):
    """One data set of a preset."""

    kind: Literal["goodreads", "amazon", "plain", "planted"] = Field(
        description="format of the raw files, a field of data_prep.Settings"
    )
    source: str | None = Field(
        None, description="folder of the raw files, relative to the repository; null: must be given"
    )
    methods: list[str] | None = Field(None, description="instead of the preset's")
    shown: list[str] | None = Field(None, description="instead of the preset's")
    prepare: dict = Field({}, description="fields of data_prep.Settings, over the preset's")
    federation: dict = Field({}, description="fields of RunConfig, over the preset's")


class Search(_Strict):
    """Own settings of each method, chosen on validation before the runs."""

    tries: dict[str, list[dict]] = Field(
        description="method -> fields of RunConfig of each try; as many for every method"
    )
    federation: dict = Field({}, description="fields of RunConfig, over those of the runs")


class Sweeps(_Strict):
    """Runs that differ from a base run by one field, for sensitivity and ablations."""

    fields: dict[str, list] = Field(description="field of RunConfig -> values")
    methods: dict[str, list[str]] = Field({}, description="field -> methods; default: fedecider")
    datasets: list[str] | None = Field(None, description="null: all")
    seeds: list[int] = Field([0], min_length=1)
    federation: dict = Field({}, description="fields of RunConfig, over those of the runs")


class Preset(_Strict):
    """What one `make reproduce` runs."""

    about: str = Field(description="a sentence for the report")
    datasets: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")], Dataset] = (
        Field(min_length=1, description="by name, which is that of folders, tables and figures")
    )
    methods: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    backbone: str | None = Field(None, description="null: must be given with MODEL=")
    prepare: dict = Field({}, description="fields of data_prep.Settings for every data set")
    federation: dict = Field({}, description="fields of RunConfig for every run")
    search: Search | None = Field(None, description="null: settings as given, nothing chosen")
    sweeps: Sweeps | None = Field(None, description="null: main runs only")
    shown: list[str] | None = Field(
        None, description="notebooks of figures and tables, by number (figure_4); null: all"
    )
    parameters: dict[str, dict] = Field(
        {}, description="notebook of a figure or table -> its parameters that are not the default"
    )


def load(name: str, root: Path) -> Preset:
    """The preset of that name, or of that YAML file; StageError in one sentence if it is unfit."""
    folder = root / "notebooks" / "presets"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise StageError(f"no preset {name!r}: it is one of {known}, or a path to a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StageError(f"{path}: expected a table of {', '.join(Preset.model_fields)}")
    try:
        return Preset(**content)
    except ValidationError as error:
        raise StageError(f"{path}: {first(error)}") from error


def given(
    preset: Preset,
    name: str,
    root: Path,
    goodreads: str | None = None,
    amazon: str | None = None,
    model: str | None = None,
    only: list[str] | None = None,
) -> Preset:
    """The preset with what the user gave put in, complete; StageError if something is missing."""
    unknown = sorted(set(only or []) - set(preset.datasets))
    if unknown:
        raise StageError(f"preset {name} has no data set {unknown[0]!r}: {_list(preset.datasets)}")
    folders = {"goodreads": goodreads, "amazon": amazon}
    datasets = {}
    for dataset, entry in preset.datasets.items():
        folder, variable = folders.get(dataset), dataset.upper()
        if only and dataset not in only:
            continue
        if entry.kind == "planted":
            if folder:
                raise StageError(
                    f"preset {name} makes its own {dataset} data and cannot use {variable}={folder}"
                    "; PRESET=paper reads published dumps"
                )
            datasets[dataset] = entry
            continue
        if not (folder or entry.source):
            if dataset not in folders:
                raise StageError(f"preset {name} names no source, the folder of {dataset}'s files")
            raise StageError(
                f"preset {name} needs {variable}=<folder with the published {dataset} dumps>"
            )
        place = Path(folder).expanduser() if folder else root / Path(entry.source).expanduser()
        place = Path(os.path.abspath(place))
        if not place.is_dir():
            other = not folder and dataset in folders
            instead = f"; name another with {variable}=<folder>" if other else ""
            raise StageError(
                f"preset {name} reads {dataset} from {place}, but there is no such folder{instead}"
            )
        datasets[dataset] = entry.model_copy(update={"source": str(place)})
    backbone = model or preset.backbone
    if not backbone:
        raise StageError(f"preset {name} needs MODEL=<hub id or folder of a causal language model>")
    if backbone not in _BUILT_IN and Path(backbone).expanduser().is_dir():
        backbone = os.path.abspath(Path(backbone).expanduser())  # notebooks run in another folder
    return preset.model_copy(update={"datasets": datasets, "backbone": backbone})


def first(error: ValidationError) -> str:
    """One complaint of pydantic as a sentence; an unknown name before what follows from it."""
    entry = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in entry["loc"]) or "the settings"
    if entry["type"] == "extra_forbidden":
        return f"unknown name {place!r}"
    if entry["type"] == "missing":
        return f"{place!r} is missing"
    return f"{place}: {entry['msg']}, not {entry['input']!r}"


def _list(names) -> str:
    return "it has " + " and ".join(names)
