"""A preset: what one `make reproduce` runs, validated, and completed by what the user gives."""

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedecider.config import RunConfig
from notebooks.workflow.pipeline import WorkflowError

T = TypeVar("T")
BUILT_IN = ("smollm2-135m", "tiny")  # models of fedecider, never folders


class Strict(BaseModel):
    """Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# That of folders, tables and figures.
DatasetName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class Dataset(Strict):
    """One data set; what it says itself comes before what the preset says."""

    kind: str = Field(description="format of the raw files, a name of data_prep.FORMATS")
    source: str | None = Field(None, description="folder, from the repository; null: must be given")
    methods: list[str] | None = None
    shown: list[str] | None = None
    prepare: dict = {}
    federation: dict = {}


class Search(Strict):
    """Own settings of each method, chosen on validation before the runs."""

    tries: dict[str, list[dict] | Literal["grid"]] = Field(
        description="method -> settings of each try; grid: all of those that its class names"
    )
    federation: dict = Field({}, description="settings over those of the runs")


class Sweeps(Strict):
    """Runs that differ from a base run by one setting, for sensitivity and ablations."""

    fields: dict[str, list] = Field(description="setting -> values")
    methods: dict[str, list[str]] = Field({}, description="setting -> methods")
    default_methods: list[str] = Field(["fedecider"], description="of settings not in `methods`")
    datasets: list[str] | None = Field(None, description="null: all")
    seeds: list[int] = Field([0], min_length=1)
    federation: dict = Field({}, description="settings over those of the runs")


class Preset(Strict):
    """What one `make reproduce` runs."""

    about: str = Field(description="a sentence for the report")
    datasets: dict[DatasetName, Dataset] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    model: str | None = Field(None, description="null: must be given with MODEL=")
    prepare: dict = Field({}, description="fields of data_prep.Settings for every data set")
    federation: dict = Field({}, description="settings of every run, plain names of RunConfig")
    search: Search = Field(Search(tries={}), description="default: nothing is searched")
    sweeps: Sweeps = Field(Sweeps(fields={}), description="default: main runs only")
    shown: list[str] | None = Field(None, description="figures and tables (figure_4); null: all")
    parameters: dict[str, dict] = Field({}, description="notebook of a picture -> its parameters")


def load(name: str, root: Path) -> Preset:
    """The preset of that name, or of that YAML file; WorkflowError in one sentence if unfit."""
    folder = root / "notebooks" / "presets"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise WorkflowError(f"no preset {name!r}: it is one of {known}, or a path to a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise WorkflowError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise WorkflowError(f"{path}: expected a table of {', '.join(Preset.model_fields)}")
    preset = checked(str(path), Preset, content)
    refuse_unknown(preset.sweeps.datasets or (), preset.datasets, f"{path}: sweeps: no data set")
    return preset


def complete(
    preset: Preset,
    name: str,
    root: Path,
    folders: dict[str, str | None] | None = None,
    model: str | None = None,
    only: list[str] | None = None,
) -> Preset:
    """The preset with what the user gave put in; WorkflowError if something is missing.

    folders: that of the raw files, of the data sets for which the command line has a name.
    """
    folders = folders or {"goodreads": None, "amazon": None}
    refuse_unknown(only or (), preset.datasets, f"preset {name} has no data set")
    datasets = {}
    for dataset in only or preset.datasets:
        entry, folder, fault = preset.datasets[dataset], folders.get(dataset), None
        variable = f"{dataset.upper()}=" if dataset in folders else ""
        source = Path(folder or root / os.path.expanduser(entry.source or "")).expanduser()
        if entry.kind == "planted" and folder:
            fault = f"makes its own {dataset} data and cannot use {variable}{folder}; "
            fault += "PRESET=paper reads published dumps"
        elif entry.kind != "planted" and not (folder or entry.source):
            fault = f"names no source, the folder of {dataset}'s files"
            if variable:
                fault = f"needs {variable}<folder with the published {dataset} dumps>"
        elif entry.kind != "planted" and not source.is_dir():
            fault = f"reads {dataset} from {source.absolute()}, but there is no such folder"
            fault += f"; name another with {variable}<folder>" if variable else ""
        elif entry.kind != "planted":
            entry = entry.model_copy(update={"source": os.path.abspath(source)})
        if fault:
            raise WorkflowError(f"preset {name} {fault}")
        datasets[dataset] = entry
    model = model or preset.model
    if not model:
        raise WorkflowError(f"preset {name} needs MODEL=<hub id or folder of a language model>")
    if model not in BUILT_IN and Path(model).expanduser().is_dir():
        model = os.path.abspath(Path(model).expanduser())  # notebooks run in another folder
    return preset.model_copy(update={"datasets": datasets, "model": model})


def refuse_unknown(names: Iterable[str], known: Iterable[str], complaint: str) -> None:
    """WorkflowError for a name that is not known, with the nearest that is, or all."""
    known = sorted(known)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise WorkflowError(f"{complaint} {name!r}: {hint}")


def checked(label: str, make: Callable[..., T], values: dict, **own: object) -> T:
    """make(**values, **own); WorkflowError, after the label, for what is refused."""
    for name in sorted(values.keys() & own.keys()):
        raise WorkflowError(f"{label}: {name} is the workflow's to choose")
    try:
        return make(**values, **own)
    except ValueError as error:
        raise WorkflowError(f"{label}: {_sentence(error)}") from error


def _sentence(error: ValueError) -> str:
    """One complaint of pydantic's; an unknown name before what follows from it."""
    if not isinstance(error, ValidationError):
        return str(error)
    entry = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    parts = entry["loc"][entry["loc"][:1] in {(group,) for group in RunConfig.GROUPS} :]
    if not parts and entry["type"] == "value_error":
        return entry["msg"].removeprefix("Value error, ")  # a sentence on settings together
    name = ".".join(map(str, parts)) or "the settings"
    words = {"extra_forbidden": f"unknown name {name!r}", "missing": f"{name!r} is missing"}
    return words.get(entry["type"], f"{name}: {entry['msg']}, not {entry['input']!r}")
