"""A preset, validated, and the ordered list of stages that it asks for."""

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

import data_prep
from data_prep import planted
from fedecider.config import RunConfig
from fedecider.methods import METHODS
from notebooks.stages import Stage, StageError

# In the order of the report, after the tables: notebook and further parameters. The two protocols
# are never put into one picture.
_FIGURES: tuple[tuple[str, dict[str, str]], ...] = (
    ("figure_1_local_vs_fedavg", {"protocol": "catalogue"}),
    ("figure_1_local_vs_fedavg", {"protocol": "sampled"}),
    ("figure_4_alpha_heatmap", {}),
    ("figure_5_alpha_convergence", {}),
)
# The paper's data sets have notebooks of their own, which serve others too.
_TABLES = {"goodreads": "table_2_goodreads", "amazon": "table_3_amazon"}

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
    prepare: dict = Field({}, description="fields of data_prep.Settings, over the preset's")
    federation: dict = Field({}, description="fields of RunConfig, over the preset's")


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
        raise StageError(f"{path}: {_first(error)}") from error


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


def stages(preset: Preset, results: Path, root: Path) -> list[Stage]:
    """Every notebook run of the preset, in an order that has inputs before their readers.

    Raises StageError for settings that data_prep.Settings or RunConfig would refuse, so that a
    typing error shows at once and not after an hour.
    """
    where = {"results": os.path.relpath(results, root / "notebooks")}
    if not results.is_relative_to(root):
        where = {"results": str(results)}
    prepared, runs = [], []
    for dataset, entry in preset.datasets.items():
        prepared.append(_prepare(preset, dataset, entry, where))
    # Seed by seed over all data sets: what there is after an hour is one seed of everything.
    for seed in preset.seeds:
        for dataset, entry in preset.datasets.items():
            for method in entry.methods or preset.methods:
                # What does not train has no seed: one run of it serves all.
                if (
                    seed != preset.seeds[0]
                    and method in METHODS
                    and not METHODS[method].rounds_needed
                ):
                    continue
                runs.append(_run(preset, dataset, entry, method, seed, where, root))
    tables = [
        _table(dataset, _TABLES[_served_by(dataset, entry)], runs, where)
        for dataset, entry in preset.datasets.items()
    ]
    figures = [
        _figure(preset, notebook, dataset, runs, where, **more)
        for notebook, more in _FIGURES
        for dataset in preset.datasets
    ]
    return [*prepared, *runs, *tables, *figures]


def _served_by(dataset: str, entry: Dataset) -> str:
    """goodreads or amazon: the data set in whose notebooks this one is prepared and shown."""
    return dataset if dataset in _TABLES else "amazon" if entry.kind == "amazon" else "goodreads"


def _prepare(preset: Preset, dataset: str, entry: Dataset, where: dict) -> Stage:
    settings = {**preset.prepare, **entry.prepare}
    _refuse(settings, {"kind"}, f"prepare settings of {dataset}")
    try:
        data_prep.Settings(kind=entry.kind, **settings)
    except ValidationError as error:
        raise StageError(f"prepare settings of {dataset}: {_first(error)}") from error
    generated = entry.kind == "planted"
    if generated and dataset not in planted.DATASETS:
        known = " and ".join(planted.DATASETS)
        raise StageError(f"{dataset} cannot be of kind planted: that makes {known} dumps")
    return Stage(
        name=f"prepare_{dataset}",
        notebook=f"prepare_{_served_by(dataset, entry)}",
        parameters={"dataset": dataset, "kind": entry.kind, "settings": settings},
        unkeyed={**where, "source": entry.source or ""},
        sources=() if generated else (Path(entry.source),),
        outputs=(f"data/{dataset}/*/*",),
        # The planted dumps are made by the same stage, so a change of the generator's code must
        # not find the dumps of its older self.
        clears=(f"data/{dataset}", *(("dumps",) if generated else ())),
        seconds=20,
    )


def _run(
    preset: Preset, dataset: str, entry: Dataset, method: str, seed: int, where: dict, root: Path
) -> Stage:
    settings = {"backbone": preset.backbone, **preset.federation, **entry.federation}
    run = f"runs/{dataset}/{method}-seed{seed}"
    label = f"federation settings of {dataset}"
    _refuse(settings, {"data", "folder", "dataset", "method", "seed"}, label)
    try:
        RunConfig(data="data", folder=run, dataset=dataset, method=method, seed=seed, **settings)
    except ValidationError as error:
        raise StageError(f"{label}: {_first(error)}") from error
    # A method in a file of its own depends on that file (and what it imports), not on the others.
    own = root / "fedecider" / "methods" / f"{method.replace('-', '_')}.py"
    chosen = {"fedecider.methods": f"fedecider.methods.{own.stem}"} if own.is_file() else {}
    return Stage(
        name=f"run_federation-{dataset}-{method}-seed{seed}",
        notebook="run_federation",
        parameters={"dataset": dataset, "method": method, "seed": seed, "settings": settings},
        unkeyed=where,
        inputs=(f"data/{dataset}/**/*",),
        sources=_model_folder(preset),
        outputs=(f"{run}/result.json", f"{run}/metrics.csv", f"{run}/*"),
        clears=(run,),
        chosen=chosen,
        # By hand the notebook prepares missing data; here the data are there and are its input.
        packages=("fedecider",),
        needs=(f"prepare_{dataset}",),
        seconds=45 if method == "zero-shot" else 120,
    )


def _table(dataset: str, notebook: str, runs: list[Stage], where: dict) -> Stage:
    name = f"{notebook.rpartition('_')[0]}_{dataset}"
    files = [
        f"tables/{name}_{end}" for end in ("catalogue.*", "trie.*", "sampled.*", "bootstrap.csv")
    ]
    return _picture(name, notebook, {"dataset": dataset}, files, runs, where)


def _figure(
    preset: Preset, notebook: str, dataset: str, runs: list[Stage], where: dict, **more: str
) -> Stage:
    name = "-".join([notebook, dataset, *more.values()])
    parameters, inputs, seconds = {"dataset": dataset, **more}, (), 8
    if notebook == "figure_4_alpha_heatmap":
        parameters["backbone"], inputs, seconds = preset.backbone, (f"data/{dataset}/**/*",), 25
    files = [f"figures/{name}.*"]
    return _picture(name, notebook, parameters, files, runs, where, inputs, seconds)


def _picture(
    name: str,
    notebook: str,
    parameters: dict[str, str],
    files: list[str],
    runs: list[Stage],
    where: dict,
    inputs: tuple[str, ...] = (),
    seconds: float = 8,
) -> Stage:
    dataset = parameters["dataset"]
    mine = (run.name for run in runs if run.parameters["dataset"] == dataset)
    return Stage(
        name=name,
        notebook=notebook,
        parameters=parameters,
        unkeyed=where,
        # All finished runs are shown, also those that a user added by hand.
        inputs=(f"runs/{dataset}/*/*", *inputs),
        outputs=(*files, f"notebooks/{name}.ipynb"),
        needs=(f"prepare_{dataset}", *mine),
        in_report=True,
        seconds=seconds,
    )


def _model_folder(preset: Preset) -> tuple[Path, ...]:
    """The folder of a model that the user named, whose weights may change under its name."""
    return (Path(preset.backbone),) if os.path.isabs(preset.backbone) else ()


def _refuse(settings: dict, taken: set[str], label: str) -> None:
    for name in sorted(taken & settings.keys()):
        raise StageError(f"{label}: {name} is the driver's to choose")


def _first(error: ValidationError) -> str:
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
