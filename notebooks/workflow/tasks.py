"""The ordered list of tasks that a preset asks for."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
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
from notebooks.workflow.preset import Dataset, Preset, Strict, first, refuse_unknown


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

    def is_named(self, name: str) -> bool:
        """Whether `name` is figure_4, or the whole name."""
        return f"{self.notebook}_".startswith(f"{name}_")


def pictures(root: Path) -> list[Picture]:
    """All notebooks of figures and tables: main tables, then figures and tables by number."""
    found = []
    for path in [*root.glob("notebooks/figure_*.ipynb"), *root.glob("notebooks/table_*.ipynb")]:
        metadata = nbformat.read(path, as_version=4).metadata.get("fedecider", {})
        try:
            found.append(Picture(notebook=path.stem, **metadata))
        except ValidationError as error:
            raise WorkflowError(f"{path.name}, metadata of fedecider: {first(error)}") from error

    def order(picture: Picture) -> tuple:
        kind, number = re.match(r"(\D+)(\d*)", picture.notebook).groups()
        return picture.serves is None, kind, int(number or 0), picture.notebook

    return sorted(found, key=order)


def tasks(preset: Preset, results: Path, root: Path) -> list[Task]:
    """Every notebook run of the preset, in an order that has inputs before their readers.

    Raises WorkflowError for a name or setting that the packages would refuse, so that a typing
    error shows at once and not after an hour.
    """
    inside = results.is_relative_to(root)
    folder = os.path.relpath(results, root / "notebooks") if inside else str(results)
    plan = _Plan(preset, {"results": folder}, pictures(root))
    plan.refuse_unknown_names()
    prepared = [plan.prepare(dataset, entry) for dataset, entry in preset.datasets.items()]
    # Seed by seed over all data sets: what there is after an hour is one seed of everything.
    runs = [run for seed in preset.seeds for run in plan.runs(seed)]
    searches, sweeps = list(plan.searches()), list(plan.sweeps())
    drawn = plan.drawn([*runs, *sweeps])
    # The main tables before the sweeps: whoever waits sees them first.
    count = sum(bool(picture.serves) for picture in plan.pictures) and len(preset.datasets)
    return [*prepared, *searches, *runs, *drawn[:count], *sweeps, *drawn[count:]]


@dataclass(frozen=True)
class _Plan:
    """Makes the tasks of one preset; `where` is the parameter that says where results lie."""

    preset: Preset
    where: dict
    pictures: list[Picture]

    def refuse_unknown_names(self) -> None:
        """Formats, methods and pictures that there are not."""
        preset, entries = self.preset, self.preset.datasets.values()
        search, sweeps = preset.search, preset.sweeps
        for entry in entries:
            refuse_unknown(entry.kind, {*data_prep.FORMATS, "planted"}, "kind: no format")
        methods = [preset.methods, *(entry.methods or [] for entry in entries)]
        methods += [search.tries if search else [], *(sweeps.methods.values() if sweeps else [])]
        for method in itertools.chain(*methods):
            refuse_unknown(method, METHODS, "no method")
        for name in itertools.chain(*(one.shown or [] for one in (preset, *entries))):
            if not any(picture.is_named(name) for picture in self.pictures):
                short = [re.sub(r"(_\d+)_.*", r"\1", one.notebook) for one in self.pictures]
                refuse_unknown(name, short, "shown: no figure or table")
        for notebook in preset.parameters:
            known = [picture.notebook for picture in self.pictures]
            refuse_unknown(notebook, known, "parameters: no figure or table")

    def prepare(self, dataset: str, entry: Dataset) -> Task:
        """Raw files to domains."""
        settings = {**self.preset.prepare, **entry.prepare}
        label = f"prepare settings of {dataset}"
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
            # The same task makes the planted dumps: a changed generator must not find its older
            # self's.
            clears=(f"data/{dataset}", *(("dumps",) if generated else ())),
            seconds=20,
        )

    def methods(self, dataset: str) -> list[str]:
        """The methods that run on a data set."""
        return self.preset.datasets[dataset].methods or self.preset.methods

    def settings(self, dataset: str, *more: dict) -> dict[str, Any]:
        """Plain names of RunConfig for a data set, later ones over earlier ones."""
        settings = {"model": self.preset.model, **self.preset.federation}
        for values in (self.preset.datasets[dataset].federation, *more):
            settings |= values
        return settings

    def searches(self) -> Iterator[Task]:
        """One for every method that has tries and runs on the data set."""
        search = self.preset.search
        for dataset, method in self._searched():
            tries = search.tries[method]
            if tries == "grid":
                grid = METHODS[method].grid
                values = itertools.product(*grid.values())
                tries = [dict(zip(grid, value, strict=True)) for value in values]
            settings = self.settings(dataset, search.federation)
            for change in tries:
                _checked(dataset, method, {**settings, **change}, "search settings")
            parameters = {"seed": self.preset.seeds[0], "settings": settings, "tries": tries}
            folder = f"search/{dataset}/{method}"
            yield self._federation("03_search", dataset, method, folder, "chosen.json", parameters)

    def runs(self, seed: int) -> Iterator[Task]:
        """The main runs of one seed; what does not train has no seed: one run of it serves all."""
        for dataset in self.preset.datasets:
            for method in self.methods(dataset):
                if seed == self.preset.seeds[0] or METHODS[method].trains:
                    settings = self.settings(dataset)
                    run = f"runs/{dataset}/{method}-seed{seed}"
                    yield self._run(dataset, method, seed, settings, run)

    def sweeps(self) -> Iterator[Task]:
        """Runs with one field changed, and the base runs that they are compared with."""
        if not (sweeps := self.preset.sweeps):
            return
        runs: dict[str, Task] = {}
        for dataset in sweeps.datasets or self.preset.datasets:
            if dataset not in self.preset.datasets:
                continue
            settings = self.settings(dataset, sweeps.federation)
            for seed, (name, values) in itertools.product(sweeps.seeds, sweeps.fields.items()):
                labels = {f"{name}-{value}".replace("/", "_"): {name: value} for value in values}
                for method in sweeps.methods.get(name, ["fedecider"]):
                    for label, change in {"base": {}, **labels}.items():
                        run = f"sweeps/{dataset}/{label}-{method}-seed{seed}"
                        runs[run] = self._run(dataset, method, seed, settings, run, change)
        yield from runs.values()

    def _run(
        self,
        dataset: str,
        method: str,
        seed: int,
        settings: dict,
        run: str,
        change: dict | None = None,
    ) -> Task:
        label = "sweep settings" if change else "federation settings"
        config = _checked(dataset, method, {**settings, **(change or {})}, label)
        parameters: dict[str, Any] = {"seed": seed, "settings": settings}
        if change is not None:
            parameters |= {"run": run, "change": change}
        if (dataset, method) in self._searched():
            parameters["chosen"] = f"search/{dataset}/{method}/chosen.json"
        rankers = [RANKERS[ranker].__module__ for ranker in config.ranking.rankers]
        return self._federation("02_run", dataset, method, run, "result.json", parameters, rankers)

    def _federation(
        self,
        notebook: str,
        dataset: str,
        method: str,
        folder: str,
        last: str,
        parameters: dict,
        modules: Iterable[str] = (),
    ) -> Task:
        """A task that trains: it depends on the data, the model, and its method's own file."""
        chosen = [parameters["chosen"]] if "chosen" in parameters else []
        return Task(
            name=f"{notebook}-{re.sub('^(runs|search)/', '', folder).replace('/', '-')}",
            entry=f"notebooks/{notebook}.ipynb",
            parameters={"dataset": dataset, "method": method, **parameters},
            where=self.where,
            inputs=(f"data/{dataset}/**/*", *chosen),
            sources=self._model_folder(),
            outputs=(f"{folder}/{last}", f"{folder}/*"),
            clears=(folder,),
            modules=(METHODS[method].__module__, *modules),
            # By hand the notebook prepares missing data; here the data are there and are its input.
            packages=("fedecider",),
            needs=(f"01_prepare-{dataset}", *(f"03_search-{dataset}-{method}" for _ in chosen)),
            seconds=120 if METHODS[method].trains else 45,
        )

    def drawn(self, runs: list[Task]) -> list[Task]:
        """Figures and tables, in the order of the report."""
        found = []
        for picture in self.pictures:
            wanted = [dataset for dataset in self.preset.datasets if self._wants(picture, dataset)]
            groups = [[dataset] for dataset in wanted] if picture.per == "dataset" else [wanted]
            for datasets, variant in itertools.product(filter(None, groups), picture.variants):
                found.append(self._drawn(picture, datasets, variant, runs))
        return found

    def _wants(self, picture: Picture, dataset: str) -> bool:
        """Whether the preset, or the data set's own list, names it; a main table is not named."""
        entry, served = self.preset.datasets[dataset], {one.serves for one in self.pictures}
        if picture.serves:
            names = (name for name in (dataset, entry.kind, "goodreads") if name in served)
            return picture.serves == next(names, "")
        shown = self.preset.shown if entry.shown is None else entry.shown
        return shown is None or any(map(picture.is_named, shown))

    def _drawn(
        self, picture: Picture, datasets: list[str], variant: dict[str, str], runs: list[Task]
    ) -> Task:
        parameters = {**variant, **self.preset.parameters.get(picture.notebook, {})}
        parameters |= {"model": self.preset.model} if picture.model else {}
        name, first_of = picture.notebook, datasets[0]
        if picture.per == "dataset":
            parameters["dataset"] = first_of
            name = "-".join([name, first_of, *variant.values()])
        if picture.serves:
            name = f"{picture.notebook.removesuffix(picture.serves)}{first_of}"
        stem = f"{'tables' if name.startswith('table') else 'figures'}/{name}"
        longer = [one for one in self.preset.datasets if one.startswith(f"{first_of}_")]
        read = [run for run in runs if "sweeps" in picture.reads or "run" not in run.parameters]
        return Task(
            name=name,
            entry=f"notebooks/{picture.notebook}.ipynb",
            parameters=parameters,
            where=self.where,
            # All finished runs are shown, also those that a user added by hand.
            inputs=tuple(_READ[kind].format(one) for kind in picture.reads for one in datasets),
            sources=self._model_folder() if picture.model else (),
            outputs=(f"notebooks/{name}.ipynb", f"{stem}*.*"),
            not_outputs=tuple(f"{stem}{one.removeprefix(first_of)}*" for one in longer),
            needs=(
                *(f"01_prepare-{dataset}" for dataset in datasets),
                *(run.name for run in read if run.parameters["dataset"] in datasets),
            ),
            in_report=True,
            seconds=picture.seconds,
        )

    def _searched(self) -> list[tuple[str, str]]:
        """Data sets and methods whose settings are searched."""
        tries = self.preset.search.tries if self.preset.search else {}
        pairs = itertools.product(self.preset.datasets, tries)
        return [(dataset, method) for dataset, method in pairs if method in self.methods(dataset)]

    def _model_folder(self) -> tuple[Path, ...]:
        """A model folder of the user's, whose weights may change under its name."""
        return (Path(self.preset.model),) if os.path.isabs(self.preset.model) else ()


def _checked(dataset: str, method: str, settings: dict, what: str) -> RunConfig:
    """The configuration; WorkflowError for settings that RunConfig or the method would refuse."""
    label = f"{what} of {dataset}"
    _refuse_taken(settings, {"prepared", "folder", "dataset", "method", "seed"}, label)
    taken = {"prepared": "data", "folder": "run", "dataset": dataset, "method": method}
    try:
        config = RunConfig.of(**taken, **settings)
        federation.check(config)
    except ValidationError as error:
        raise WorkflowError(f"{label}: {first(error)}") from error
    except ValueError as error:
        raise WorkflowError(f"{label}: {error}") from error
    return config


def _refuse_taken(settings: dict, taken: set[str], label: str) -> None:
    for name in sorted(taken & settings.keys()):
        raise WorkflowError(f"{label}: {name} is the workflow's to choose")
