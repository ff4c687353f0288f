"""The ordered list of tasks that a preset asks for."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import nbformat

import data_prep
from data_prep import planted
from fedecider import federation
from fedecider.config import RunConfig
from fedecider.methods import METHODS
from fedecider.parameters import assigned
from fedecider.rankers import RANKERS
from notebooks.workflow.pipeline import Task, WorkflowError
from notebooks.workflow.preset import Preset, Strict, checked, refuse_unknown

_READ = {
    "runs": "runs/{}/*/*",
    "sweeps": "sweeps/{}/*/*",
    "data": "data/{}/**/*",
    "adapters": "runs/{}/*/adapters/*/*",
}
# By the folder that a task trains into.
_SETTINGS = {"runs": "federation", "sweeps": "sweep", "search": "search"}


class Picture(Strict):
    """A notebook of a figure or table, and what its metadata say that it reads and takes."""

    notebook: str
    parameters: list[str]
    reads: list[Literal["runs", "sweeps", "data", "adapters"]]
    per: Literal["dataset", "all"] = "dataset"
    model: bool = False  # takes the parameter `model`
    variants: list[dict[str, str]] = [{}]  # parameters of each
    serves: str | None = None  # of a main table: the data set, or the kind of data sets
    seconds: float = 8.0


def pictures(root: Path) -> list[Picture]:
    """All notebooks of figures and tables: main tables, then figures and tables by number."""

    def order(path: Path) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]

    drawn = []
    for path in sorted(root.glob("notebooks/*.ipynb"), key=order):
        if path.stem.startswith(("figure_", "table_")):
            content = nbformat.read(path, as_version=4)
            tagged = (c for c in content.cells if "parameters" in c.metadata.get("tags", ()))
            own = {
                "notebook": path.stem,
                "parameters": assigned("\n".join(c.source for c in tagged)),
            }
            metadata = content.metadata.get("fedecider", {})
            drawn.append(checked(f"{path.name}, metadata of fedecider", Picture, metadata, **own))
    return sorted(drawn, key=lambda picture: not picture.serves)


def tasks(preset: Preset, results: Path, root: Path) -> list[Task]:
    """Every notebook run of the preset, in an order that has inputs before their readers.

    Raises WorkflowError for a name or setting that the packages would refuse, so that a typing
    error shows at once and not after an hour.
    """
    inside = results.is_relative_to(root)
    folder = os.path.relpath(results, root / "notebooks") if inside else str(results)
    maker = _TaskMaker(preset, {"results": folder}, pictures(root))
    maker.refuse_unknown_names()
    prepared = [maker.prepare(dataset) for dataset in preset.datasets]
    # Seed by seed over all data sets: what there is after an hour is one seed of everything.
    runs = [run for seed in preset.seeds for run in maker.runs(seed)]
    searches, sweeps = list(maker.searches()), list(maker.sweeps())
    main, others = [], []
    for picture in maker.pictures:
        (main if picture.serves else others).extend(maker.drawn(picture, [*runs, *sweeps]))
    # The main tables before the sweeps: whoever waits sees them first.
    return [*prepared, *searches, *runs, *main, *sweeps, *others]


@dataclass(frozen=True)
class _TaskMaker:
    """Makes the tasks of a preset; `where` is the parameter that says where results lie."""

    preset: Preset
    where: dict[str, str]
    pictures: list[Picture]

    def refuse_unknown_names(self) -> None:
        """Formats, methods, pictures and parameters of theirs that there are not."""
        preset, entries = self.preset, list(self.preset.datasets.values())
        notebooks = [picture.notebook for picture in self.pictures]
        numbers = [re.sub(r"(_\d+)_.*", r"\1", notebook) for notebook in notebooks]
        methods = [entry.methods or () for entry in (preset, *entries)]
        sweeps = preset.sweeps
        methods += [preset.search.tries, sweeps.default_methods, *sweeps.methods.values()]
        shown = [entry.shown or () for entry in (preset, *entries)]
        refuse_unknown([entry.kind for entry in entries], data_prep.FORMATS, "kind: no format")
        refuse_unknown(chain(*methods), METHODS, "no method")
        refuse_unknown(chain(*shown), {*notebooks, *numbers}, "shown: no figure or table")
        refuse_unknown(preset.parameters, notebooks, "parameters: no figure or table")
        for picture in self.pictures:
            own = preset.parameters.get(picture.notebook, {})
            complaint = f"parameters: {picture.notebook} has no parameter"
            refuse_unknown(own, picture.parameters, complaint)

    def prepare(self, dataset: str) -> Task:
        """Raw files to domains."""
        entry = self.preset.datasets[dataset]
        settings = {**self.preset.prepare, **entry.prepare}
        label = f"prepare settings of {dataset}"
        checked(label, data_prep.Settings, settings, kind=entry.kind)
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

    def runs(self, seed: int) -> Iterator[Task]:
        """The main runs of one seed; what does not train has no seed: one run of it serves all."""
        for dataset, method in self.pairs():
            if seed == self.preset.seeds[0] or METHODS[method].trains:
                folder = f"runs/{dataset}/{method}-seed{seed}"
                yield self.train(folder, dataset, method, seed, over={})

    def searches(self) -> Iterator[Task]:
        """One for every method that has tries and runs on the data set."""
        search, seed = self.preset.search, self.preset.seeds[0]
        for dataset, method in self.pairs():
            if method in search.tries:
                tries = search.tries[method]
                if tries == "grid":
                    tries = METHODS[method].grid
                folder = f"search/{dataset}/{method}"
                yield self.train(folder, dataset, method, seed, search.federation, tries=tries)

    def sweeps(self) -> Iterator[Task]:
        """Runs with one setting changed, and the base runs that they are compared with."""
        sweeps, made = self.preset.sweeps, {}
        swept = [name for name in self.preset.datasets if name in (sweeps.datasets or [name])]
        for dataset, seed, (name, values) in product(swept, sweeps.seeds, sweeps.fields.items()):
            changes = {"base": {}} | {f"{name}-{value}": {name: value} for value in values}
            methods = sweeps.methods.get(name, sweeps.default_methods)
            for method, (label, change) in product(methods, changes.items()):
                folder = f"sweeps/{dataset}/{label.replace('/', '_')}-{method}-seed{seed}"
                own = {"run": folder, "change": change}
                made[folder] = self.train(folder, dataset, method, seed, sweeps.federation, **own)
        yield from made.values()

    def pairs(self) -> list[tuple[str, str]]:
        """Every data set with every method that runs on it."""
        entries = self.preset.datasets.items()
        return [(name, m) for name, entry in entries for m in entry.methods or self.preset.methods]

    def train(
        self, folder: str, dataset: str, method: str, seed: int, over: dict, **own: Any
    ) -> Task:
        """A task that trains into a folder: it depends on the data, the model, its method's file.

        over: settings over those of the preset and the data set; own: more parameters.
        """
        part = folder.split("/")[0]
        settings = {"model": self.preset.model, **self.preset.federation}
        settings |= self.preset.datasets[dataset].federation | over
        names = {"dataset": dataset, "method": method, "seed": seed}
        for change in own.get("tries") or [own.get("change", {})]:
            config = checked(
                f"{_SETTINGS[part]} settings of {dataset}",
                _config,
                {**settings, **change},
                **names,
                prepared="data",
                folder="run",
            )
        notebook, last = "02_run", "result.json"
        modules = [METHODS[method].__module__]
        inputs, needs = [f"data/{dataset}/**/*"], [f"01_prepare-{dataset}"]
        if part == "search":
            notebook, last = "03_search", "chosen.json"
        else:
            modules += [RANKERS[ranker].__module__ for ranker in config.ranking.rankers]
            if method in self.preset.search.tries and (dataset, method) in self.pairs():
                own["chosen"] = f"search/{dataset}/{method}/chosen.json"
                inputs.append(own["chosen"])
                needs.append(f"03_search-{dataset}-{method}")
        return Task(
            name=f"{notebook}-{re.sub('^(runs|search)/', '', folder).replace('/', '-')}",
            entry=f"notebooks/{notebook}.ipynb",
            parameters={**names, "settings": settings, **own},
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
        read = [run for run in runs if "sweeps" in picture.reads or "run" not in run.parameters]
        once = picture.per == "all"
        groups = [[dataset] for dataset in wanted] if not once else [wanted] if wanted else []
        for datasets, variant in product(groups, picture.variants):
            dataset, name = datasets[0], picture.notebook
            parameters = {**variant, **self.preset.parameters.get(name, {})}
            parameters |= {"model": self.preset.model} if picture.model else {}
            if not once:
                parameters["dataset"] = dataset
                name = "-".join([name, dataset, *variant.values()])
            if picture.serves:
                name = f"{picture.notebook.removesuffix(picture.serves)}{dataset}"
            stem = f"{'tables' if name.startswith('table') else 'figures'}/{name}"
            longer = [other for other in self.preset.datasets if other.startswith(f"{dataset}_")]
            needs = [f"01_prepare-{dataset}" for dataset in datasets]
            needs += [run.name for run in read if run.parameters["dataset"] in datasets]
            yield Task(
                name=name,
                entry=f"notebooks/{picture.notebook}.ipynb",
                parameters=parameters,
                where=self.where,
                # All finished runs are shown, also those that a user added by hand.
                inputs=tuple(
                    _READ[kind].format(each) for kind in picture.reads for each in datasets
                ),
                sources=self.model_folder() if picture.model else (),
                outputs=(f"notebooks/{name}.ipynb", f"{stem}*.*"),
                not_outputs=tuple(f"{stem}{other.removeprefix(dataset)}*" for other in longer),
                needs=tuple(needs),
                in_report=True,
                seconds=picture.seconds,
            )

    def wants(self, picture: Picture, dataset: str) -> bool:
        """Whether the preset, or the data set's own list, names it; a main table is not named."""
        entry = self.preset.datasets[dataset]
        if picture.serves:
            served = {picture.serves for picture in self.pictures}
            names = (name for name in (dataset, entry.kind, "goodreads") if name in served)
            return picture.serves == next(names, None)
        shown = self.preset.shown if entry.shown is None else entry.shown
        return shown is None or any(f"{picture.notebook}_".startswith(f"{name}_") for name in shown)

    def model_folder(self) -> tuple[Path, ...]:
        """A model folder of the user's, whose weights may change under its name."""
        return (Path(self.preset.model),) if os.path.isabs(self.preset.model or "") else ()


def _config(**settings: Any) -> RunConfig:
    """What `federation.run` would take; ValueError for what it would refuse."""
    config = RunConfig.of(**settings)
    federation.check(config)
    return config
