"""The ordered list of tasks that a preset asks for."""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
from pydantic import ValidationError

import data_prep
from data_prep import planted
from fedecider import federation
from fedecider.config import RunConfig
from fedecider.methods import METHODS
from fedecider.rankers import RANKERS
from notebooks.workflow.pipeline import Task, WorkflowError
from notebooks.workflow.preset import Preset, Strict, first, refuse_unknown

_READ = {
    "runs": "runs/{}/*/*",
    "sweeps": "sweeps/{}/*/*",
    "data": "data/{}/**/*",
    "adapters": "runs/{}/*/adapters/*/*",
}


class Picture(Strict):
    """A notebook of a figure or table, and what its metadata say that it reads and takes."""

    notebook: str
    reads: list[Literal["runs", "sweeps", "data", "adapters"]]
    per: Literal["dataset", "all"] = "dataset"
    model: bool = False  # takes the parameter `model`
    variants: list[dict[str, str]] = [{}]  # parameters of each
    serves: str | None = None  # of a main table: the data set, or the kind of data sets
    seconds: float = 8.0


def pictures(root: Path) -> list[Picture]:
    """All notebooks of figures and tables: main tables, then figures and tables by number."""

    def order(path: Path) -> tuple:
        kind, number = re.match(r"(\D+)(\d*)", path.stem).groups()
        return kind, int(number or 0), path.stem

    paths = [
        path for kind in ("figure", "table") for path in root.glob(f"notebooks/{kind}_*.ipynb")
    ]
    drawn = []
    for path in sorted(paths, key=order):
        metadata = nbformat.read(path, as_version=4).metadata.get("fedecider", {})
        try:
            drawn.append(Picture(notebook=path.stem, **metadata))
        except ValidationError as error:
            raise WorkflowError(f"{path.name}, metadata of fedecider: {first(error)}") from error
    return sorted(drawn, key=lambda picture: not picture.serves)


def tasks(preset: Preset, results: Path, root: Path) -> list[Task]:
    """Every notebook run of the preset, in an order that has inputs before their readers.

    Raises WorkflowError for a name or setting that the packages would refuse, so that a typing
    error shows at once and not after an hour.
    """
    inside = results.is_relative_to(root)
    folder = os.path.relpath(results, root / "notebooks") if inside else str(results)
    plan = _Plan(preset, {"results": folder}, pictures(root))
    plan.refuse_unknown_names()
    prepared = [plan.prepare(dataset) for dataset in preset.datasets]
    # Seed by seed over all data sets: what there is after an hour is one seed of everything.
    runs = [run for seed in preset.seeds for run in plan.runs(seed)]
    searches, sweeps = list(plan.searches()), list(plan.sweeps())
    main = [
        task for picture in plan.pictures if picture.serves for task in plan.drawn(picture, runs)
    ]
    others = [picture for picture in plan.pictures if not picture.serves]
    drawn = [task for picture in others for task in plan.drawn(picture, [*runs, *sweeps])]
    # The main tables before the sweeps: whoever waits sees them first.
    return [*prepared, *searches, *runs, *main, *sweeps, *drawn]


@dataclass(frozen=True)
class _Plan:
    """Makes the tasks of one preset; `where` is the parameter that says where results lie."""

    preset: Preset
    where: dict[str, str]
    pictures: list[Picture]

    def refuse_unknown_names(self) -> None:
        """Formats, methods and pictures that there are not."""
        preset, entries = self.preset, list(self.preset.datasets.values())
        notebooks = [picture.notebook for picture in self.pictures]
        numbers = [re.sub(r"(_\d+)_.*", r"\1", notebook) for notebook in notebooks]
        methods = [preset.methods, *(entry.methods or () for entry in entries)]
        methods.append(preset.search.tries if preset.search else ())
        methods += preset.sweeps.methods.values() if preset.sweeps else ()
        shown = itertools.chain(*(source.shown or () for source in (preset, *entries)))
        for complaint, names, known in (
            ("kind: no format", [entry.kind for entry in entries], data_prep.FORMATS),
            ("no method", itertools.chain(*methods), METHODS),
            ("shown: no figure or table", shown, {*notebooks, *numbers}),
            ("parameters: no figure or table", preset.parameters, notebooks),
        ):
            for name in names:
                refuse_unknown(name, known, complaint)

    def prepare(self, dataset: str) -> Task:
        """Raw files to domains."""
        entry, label = self.preset.datasets[dataset], f"prepare settings of {dataset}"
        settings = {**self.preset.prepare, **entry.prepare}
        _refuse_taken(settings, {"kind"}, label)
        try:
            data_prep.Settings(kind=entry.kind, **settings)
        except ValidationError as error:
            raise WorkflowError(f"{label}: {first(error)}") from error
        generated = entry.kind == "planted"
        if generated and dataset not in planted.DATASETS:
            known = " and ".join(planted.DATASETS)
            raise WorkflowError(f"{dataset} cannot be of kind planted: that makes {known} dumps")
        return Task(
            name=f"01_prepare-{dataset}",
            entry="notebooks/01_prepare.ipynb",
            parameters={"dataset": dataset, "kind": entry.kind, "settings": settings},
            where={**self.where, "source": entry.source or ""},
            sources=() if generated else (Path(entry.source or ""),),
            outputs=(f"data/{dataset}/*/*",),
            # A changed generator of planted dumps must not find those of its older self.
            clears=(f"data/{dataset}", *(("dumps",) if generated else ())),
            modules=(data_prep.FORMATS[entry.kind].__name__,),
            seconds=20,
        )

    def methods(self, dataset: str) -> list[str]:
        """The methods that run on a data set."""
        return self.preset.datasets[dataset].methods or self.preset.methods

    def settings(self, dataset: str, more: dict | None = None) -> dict[str, Any]:
        """Plain names of RunConfig for a data set."""
        own = self.preset.datasets[dataset].federation
        return {"model": self.preset.model, **self.preset.federation, **own, **(more or {})}

    def searches(self) -> Iterator[Task]:
        """One for every method that has tries and runs on the data set."""
        search = self.preset.search
        for dataset, method in itertools.product(
            self.preset.datasets, search.tries if search else ()
        ):
            tries, grid = search.tries[method], METHODS[method].grid
            if tries == "grid":
                values = itertools.product(*grid.values())
                tries = [dict(zip(grid, value, strict=True)) for value in values]
            if method in self.methods(dataset):
                settings = self.settings(dataset, search.federation)
                parameters = {"seed": self.preset.seeds[0], "settings": settings, "tries": tries}
                yield self.train(
                    "03_search", dataset, method, f"search/{dataset}/{method}", parameters
                )

    def runs(self, seed: int) -> Iterator[Task]:
        """The main runs of one seed; what does not train has no seed: one run of it serves all."""
        for dataset in self.preset.datasets:
            for method in self.methods(dataset):
                if seed == self.preset.seeds[0] or METHODS[method].trains:
                    folder = f"runs/{dataset}/{method}-seed{seed}"
                    parameters = {"seed": seed, "settings": self.settings(dataset)}
                    yield self.train("02_run", dataset, method, folder, parameters)

    def sweeps(self) -> Iterator[Task]:
        """Runs with one setting changed, and the base runs that they are compared with."""
        if not (sweeps := self.preset.sweeps):
            return
        made: dict[str, Task] = {}
        swept = sweeps.datasets or self.preset.datasets
        datasets = [dataset for dataset in self.preset.datasets if dataset in swept]
        for dataset, seed, name in itertools.product(datasets, sweeps.seeds, sweeps.fields):
            changes = {f"{name}-{value}": {name: value} for value in sweeps.fields[name]}
            for method in sweeps.methods.get(name, ["fedecider"]):
                for label, change in {"base": {}, **changes}.items():
                    folder = f"sweeps/{dataset}/{label.replace('/', '_')}-{method}-seed{seed}"
                    settings = self.settings(dataset, sweeps.federation)
                    parameters = {
                        "seed": seed,
                        "settings": settings,
                        "run": folder,
                        "change": change,
                    }
                    made[folder] = self.train("02_run", dataset, method, folder, parameters)
        yield from made.values()

    def train(
        self, notebook: str, dataset: str, method: str, folder: str, parameters: dict[str, Any]
    ) -> Task:
        """A task that trains: it depends on the data, the model, and its method's own file."""
        kinds = {"runs": "federation", "sweeps": "sweep", "search": "search"}
        label = f"{kinds[folder.split('/')[0]]} settings of {dataset}"
        settings = parameters["settings"]
        for change in parameters.get("tries") or [parameters.get("change", {})]:
            config = _checked(dataset, method, {**settings, **change}, label)
        modules = [METHODS[method].__module__]
        inputs, needs = [f"data/{dataset}/**/*"], [f"01_prepare-{dataset}"]
        if notebook == "02_run":
            modules += [RANKERS[ranker].__module__ for ranker in config.ranking.rankers]
            tries = self.preset.search.tries if self.preset.search else {}
            if method in tries and method in self.methods(dataset):
                parameters["chosen"] = f"search/{dataset}/{method}/chosen.json"
                inputs.append(parameters["chosen"])
                needs.append(f"03_search-{dataset}-{method}")
        last = "result.json" if notebook == "02_run" else "chosen.json"
        return Task(
            name=f"{notebook}-{re.sub('^(runs|search)/', '', folder).replace('/', '-')}",
            entry=f"notebooks/{notebook}.ipynb",
            parameters={"dataset": dataset, "method": method, **parameters},
            where=self.where,
            inputs=tuple(inputs),
            sources=self.model_folder(),
            outputs=(f"{folder}/{last}", f"{folder}/*"),
            clears=(folder,),
            modules=tuple(modules),
            # By hand the notebook prepares missing data; here the data are there and are its input.
            packages=("fedecider",),
            needs=tuple(needs),
            seconds=120 if METHODS[method].trains else 45,
        )

    def drawn(self, picture: Picture, runs: list[Task]) -> Iterator[Task]:
        """The picture of every data set that shows it, in every variant."""
        wanted = [dataset for dataset in self.preset.datasets if self.wants(picture, dataset)]
        groups = [[dataset] for dataset in wanted] if picture.per == "dataset" else [wanted]
        for datasets, variant in itertools.product(filter(None, groups), picture.variants):
            yield self.draw(picture, datasets, variant, runs)

    def wants(self, picture: Picture, dataset: str) -> bool:
        """Whether the preset, or the data set's own list, names it; a main table is not named."""
        entry = self.preset.datasets[dataset]
        if picture.serves:
            served = {picture.serves for picture in self.pictures}
            names = (name for name in (dataset, entry.kind, "goodreads") if name in served)
            return picture.serves == next(names, None)
        shown = self.preset.shown if entry.shown is None else entry.shown
        return shown is None or any(f"{picture.notebook}_".startswith(f"{name}_") for name in shown)

    def draw(
        self, picture: Picture, datasets: list[str], variant: dict[str, str], runs: list[Task]
    ) -> Task:
        """A figure or table."""
        dataset, name = datasets[0], picture.notebook
        parameters = {**variant, **self.preset.parameters.get(name, {})}
        parameters |= {"model": self.preset.model} if picture.model else {}
        if picture.per == "dataset":
            parameters["dataset"] = dataset
            name = "-".join([name, dataset, *variant.values()])
        if picture.serves:
            name = f"{picture.notebook.removesuffix(picture.serves)}{dataset}"
        stem = f"{'tables' if name.startswith('table') else 'figures'}/{name}"
        longer = [other for other in self.preset.datasets if other.startswith(f"{dataset}_")]
        read = [run for run in runs if "sweeps" in picture.reads or "run" not in run.parameters]
        needs = [f"01_prepare-{dataset}" for dataset in datasets]
        needs += [run.name for run in read if run.parameters["dataset"] in datasets]
        return Task(
            name=name,
            entry=f"notebooks/{picture.notebook}.ipynb",
            parameters=parameters,
            where=self.where,
            # All finished runs are shown, also those that a user added by hand.
            inputs=tuple(
                _READ[kind].format(dataset) for kind in picture.reads for dataset in datasets
            ),
            sources=self.model_folder() if picture.model else (),
            outputs=(f"notebooks/{name}.ipynb", f"{stem}*.*"),
            not_outputs=tuple(f"{stem}{other.removeprefix(dataset)}*" for other in longer),
            needs=tuple(needs),
            in_report=True,
            seconds=picture.seconds,
        )

    def model_folder(self) -> tuple[Path, ...]:
        """A model folder of the user's, whose weights may change under its name."""
        return (Path(self.preset.model),) if os.path.isabs(self.preset.model or "") else ()


def _checked(dataset: str, method: str, settings: dict, label: str) -> RunConfig:
    """The configuration; WorkflowError for settings that RunConfig or the method would refuse."""
    _refuse_taken(settings, {"prepared", "folder", "dataset", "method", "seed"}, label)
    taken = {"prepared": "data", "folder": "run", "dataset": dataset, "method": method}
    try:
        config = RunConfig.of(**taken, **settings)
        federation.check(config)
    except ValueError as error:
        words = first(error) if isinstance(error, ValidationError) else error
        raise WorkflowError(f"{label}: {words}") from error
    return config


def _refuse_taken(settings: dict, taken: set[str], label: str) -> None:
    for name in sorted(taken & settings.keys()):
        raise WorkflowError(f"{label}: {name} is the workflow's to choose")
