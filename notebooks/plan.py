"""The ordered list of stages that a preset asks for."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

import data_prep
from data_prep import planted
from fedecider.config import RunConfig
from fedecider.methods import METHODS
from notebooks.preset import Dataset, Preset, first, given, load
from notebooks.stages import Stage, StageError

__all__ = ["Dataset", "Preset", "given", "load", "stages"]

# The paper's data sets have notebooks of their own, which serve others too.
_TABLES = {"goodreads": "table_2_goodreads", "amazon": "table_3_amazon"}


@dataclass(frozen=True)
class Shown:
    """A notebook of the report: its parameters beyond results and dataset, and what it writes."""

    notebook: str
    more: tuple[tuple[str, str], ...] = ()
    files: str = "figures/{name}.*"  # {name}: that of the stage
    model: bool = False  # whether it loads the backbone and reads the prepared data
    adapters: bool = False  # whether it reads the models that the runs have saved
    once: bool = False  # for all data sets together
    sweeps: bool = False  # whether it shows sweeps, too
    seconds: float = 8.0


# In the order of the report, after the main tables. The two protocols never share a picture.
_FIGURES: tuple[Shown, ...] = (
    Shown("figure_1_local_vs_fedavg", (("protocol", "catalogue"),)),
    Shown("figure_1_local_vs_fedavg", (("protocol", "sampled"),)),
    Shown("figure_2_scale_noise"),
    Shown("figure_3_overview"),
    Shown("figure_4_alpha_heatmap", files="figures/{name}*.*", model=True, seconds=25),
    Shown("figure_5_alpha_convergence"),
    Shown("figure_6_sensitivity", sweeps=True),
    Shown("figure_7_quality_vs_bytes", sweeps=True),
    Shown("table_1_datasets", files="tables/{name}.*", once=True),
    Shown("table_4_ablations", files="tables/{name}*.*", sweeps=True),
    Shown("table_5_communication", files="tables/{name}.*", sweeps=True),
    Shown(
        "table_6_privacy",
        files="tables/{name}*.*",
        model=True,
        adapters=True,
        sweeps=True,
        seconds=300,
    ),
    Shown("table_7_backbones", files="tables/{name}.*", sweeps=True),
    Shown("table_8_theory", files="tables/{name}*.*", model=True, adapters=True, seconds=120),
    Shown("table_9_cost", files="tables/{name}.*"),
)


def stages(preset: Preset, results: Path, root: Path) -> list[Stage]:
    """Every notebook run of the preset, in an order that has inputs before their readers.

    Raises StageError for settings that data_prep.Settings or RunConfig would refuse, so that a
    typing error shows at once and not after an hour.
    """
    where = {"results": os.path.relpath(results, root / "notebooks")}
    if not results.is_relative_to(root):
        where = {"results": str(results)}
    plan = _Plan(preset, where, root)
    prepared = [plan.prepare(dataset, entry) for dataset, entry in preset.datasets.items()]
    # Seed by seed over all data sets: what there is after an hour is one seed of everything.
    runs = [run for seed in preset.seeds for run in plan.runs(seed)]
    searches, sweeps = plan.searches(), plan.sweeps()
    tables = [
        plan.table(dataset, _TABLES[_served_by(dataset, entry)], runs)
        for dataset, entry in preset.datasets.items()
    ]
    figures = [
        plan.figure(shown, datasets, [*runs, *(sweeps if shown.sweeps else [])])
        for shown in _FIGURES
        for wanted in [[name for name in preset.datasets if plan.wants(shown, name)]]
        for datasets in ([wanted] if shown.once else [[name] for name in wanted])
        if datasets
    ]
    # The main tables before the sweeps: whoever waits sees them first.
    return [*prepared, *searches, *runs, *tables, *sweeps, *figures]


def _served_by(dataset: str, entry: Dataset) -> str:
    """goodreads or amazon: the data set in whose notebooks this one is prepared and shown."""
    return dataset if dataset in _TABLES else "amazon" if entry.kind == "amazon" else "goodreads"


@dataclass(frozen=True)
class _Plan:
    """Makes the stages of one preset; `where` is the parameter that says where results lie."""

    preset: Preset
    where: dict
    root: Path

    def prepare(self, dataset: str, entry: Dataset) -> Stage:
        """Raw files to domains."""
        settings = {**self.preset.prepare, **entry.prepare}
        _refuse(settings, {"kind"}, f"prepare settings of {dataset}")
        try:
            data_prep.Settings(kind=entry.kind, **settings)
        except ValidationError as error:
            raise StageError(f"prepare settings of {dataset}: {first(error)}") from error
        generated = entry.kind == "planted"
        if generated and dataset not in planted.DATASETS:
            known = " and ".join(planted.DATASETS)
            raise StageError(f"{dataset} cannot be of kind planted: that makes {known} dumps")
        return Stage(
            name=f"prepare_{dataset}",
            notebook=f"prepare_{_served_by(dataset, entry)}",
            parameters={"dataset": dataset, "kind": entry.kind, "settings": settings},
            unkeyed={**self.where, "source": entry.source or ""},
            sources=() if generated else (Path(entry.source),),
            outputs=(f"data/{dataset}/*/*",),
            # The planted dumps are made by the same stage, so a change of the generator's code must
            # not find the dumps of its older self.
            clears=(f"data/{dataset}", *(("dumps",) if generated else ())),
            seconds=20,
        )

    def wants(self, shown: Shown, dataset: str) -> bool:
        """Whether the preset, or the data set's own list, names the figure or table."""
        named = self.preset.datasets[dataset].shown
        named = self.preset.shown if named is None else named
        return named is None or any(shown.notebook.startswith(f"{one}_") for one in named)

    def methods(self, dataset: str) -> list[str]:
        """The methods that run on a data set."""
        return self.preset.datasets[dataset].methods or self.preset.methods

    def settings(self, dataset: str, *more: dict) -> dict:
        """Fields of RunConfig for a data set, later ones over earlier ones."""
        found = {"backbone": self.preset.backbone, **self.preset.federation}
        found |= self.preset.datasets[dataset].federation
        for some in more:
            found |= some
        return found

    def searches(self) -> list[Stage]:
        """One for every method that has tries and runs on the data set."""
        search = self.preset.search
        if search is None:
            return []
        return [
            self._search(dataset, method, tries)
            for dataset in self.preset.datasets
            for method, tries in search.tries.items()
            if method in self.methods(dataset)
        ]

    def _search(self, dataset: str, method: str, tries: list[dict]) -> Stage:
        settings = self.settings(dataset, self.preset.search.federation)
        for some in tries:
            _checked(dataset, method, {**settings, **some}, "search settings")
        return self._federation(
            f"search_settings-{dataset}-{method}",
            "search_settings",
            dataset,
            method,
            {"seed": self.preset.seeds[0], "settings": settings, "tries": tries},
            (f"search/{dataset}/{method}/chosen.json",),
            f"search/{dataset}/{method}",
        )

    def runs(self, seed: int) -> list[Stage]:
        """The main runs of one seed."""
        found = []
        for dataset in self.preset.datasets:
            for method in self.methods(dataset):
                # What does not train has no seed: one run of it serves all.
                untrained = method in METHODS and not METHODS[method].rounds_needed
                if seed == self.preset.seeds[0] or not untrained:
                    run = f"runs/{dataset}/{method}-seed{seed}"
                    found.append(self._run(dataset, method, seed, run, self.settings(dataset)))
        return found

    def sweeps(self) -> list[Stage]:
        """Runs with one field changed, and the base runs that they are held against."""
        sweeps = self.preset.sweeps
        if sweeps is None:
            return []
        found = {}
        for dataset in sweeps.datasets or self.preset.datasets:
            if dataset not in self.preset.datasets:
                continue
            settings = self.settings(dataset, sweeps.federation)
            for seed in sweeps.seeds:
                for field, values in sweeps.fields.items():
                    for method in sweeps.methods.get(field, ["fedecider"]):
                        folder = f"sweeps/{dataset}"
                        base = f"{folder}/base-{method}-seed{seed}"
                        found[base] = (dataset, method, seed, base, settings, {})
                        for value in values:
                            label = str(value).replace("/", "_")
                            run = f"{folder}/{field}-{label}-{method}-seed{seed}"
                            change = {field: value}
                            found[run] = (dataset, method, seed, run, settings, change)
        return [self._run(*entry) for entry in found.values()]

    def _run(
        self, dataset: str, method: str, seed: int, run: str, settings: dict, change=None
    ) -> Stage:
        label = "sweep settings" if change else "federation settings"
        _checked(dataset, method, {**settings, **(change or {})}, label)
        parameters = {"seed": seed, "settings": settings}
        name = f"run_federation-{dataset}-{method}-seed{seed}"
        if run.startswith("sweeps/"):
            name = "-".join(["run_federation", *Path(run).parts])
            parameters |= {"run": run, "change": change}
        search = self.preset.search
        if search is not None and method in search.tries and method in self.methods(dataset):
            parameters["chosen"] = f"search/{dataset}/{method}/chosen.json"
        return self._federation(
            name,
            "run_federation",
            dataset,
            method,
            parameters,
            (f"{run}/result.json", f"{run}/metrics.csv", f"{run}/*"),
            run,
        )

    def _federation(
        self, name, notebook, dataset, method, parameters, outputs, clears: str
    ) -> Stage:
        """A stage that trains: it depends on the data, the model, and its method's own file."""
        own = self.root / "fedecider" / "methods" / f"{method.replace('-', '_')}.py"
        chosen = {"fedecider.methods": f"fedecider.methods.{own.stem}"} if own.is_file() else {}
        inputs, needs = (f"data/{dataset}/**/*",), (f"prepare_{dataset}",)
        if "chosen" in parameters:
            inputs += (parameters["chosen"],)
            needs += (f"search_settings-{dataset}-{method}",)
        return Stage(
            name=name,
            notebook=notebook,
            parameters={"dataset": dataset, "method": method, **parameters},
            unkeyed=self.where,
            inputs=inputs,
            sources=_model_folder(self.preset),
            outputs=outputs,
            clears=(clears,),
            chosen=chosen,
            # By hand the notebook prepares missing data; here the data are there and are its input.
            packages=("fedecider",),
            needs=needs,
            seconds=45 if method in ("zero-shot", "als") else 120,
        )

    def table(self, dataset: str, notebook: str, runs: list[Stage]) -> Stage:
        """A main table: every method, every domain."""
        name = f"{notebook.rpartition('_')[0]}_{dataset}"
        ends = ("catalogue.*", "trie.*", "sampled.*", "bootstrap.csv")
        files = [f"tables/{name}_{end}" for end in ends]
        return self._picture(name, notebook, [dataset], {}, files, runs)

    def figure(self, shown: Shown, datasets: list[str], runs: list[Stage]) -> Stage:
        """Any other figure or table."""
        apart = "_" if shown.notebook.startswith("table") else "-"
        name = shown.notebook
        if not shown.once:
            name = apart.join([name, *datasets, *(value for _, value in shown.more)])
        more = {**dict(shown.more), **self.preset.parameters.get(shown.notebook, {})}
        if shown.model:
            more["backbone"] = self.preset.backbone
        files = [shown.files.format(name=name)]
        return self._picture(name, shown.notebook, datasets, more, files, runs, shown)

    def _picture(
        self,
        name: str,
        notebook: str,
        datasets: list[str],
        more: dict[str, str],
        files: list[str],
        runs: list[Stage],
        shown: Shown | None = None,
    ) -> Stage:
        shown = shown or Shown(notebook)
        mine = (run.name for run in runs if run.parameters["dataset"] in datasets)
        inputs = []
        for dataset in datasets:
            # All finished runs are shown, also those that a user added by hand.
            inputs += [f"runs/{dataset}/*/*"]
            inputs += [f"sweeps/{dataset}/*/*"] if shown.sweeps else []
            inputs += [f"data/{dataset}/**/*"] if shown.model or shown.once else []
            inputs += [f"runs/{dataset}/*/adapters/*/*"] if shown.adapters else []
        return Stage(
            name=name,
            notebook=notebook,
            parameters=more if shown.once else {"dataset": datasets[0], **more},
            unkeyed=self.where,
            inputs=tuple(inputs),
            sources=_model_folder(self.preset) if shown.model else (),
            outputs=(*files, f"notebooks/{name}.ipynb"),
            needs=(*(f"prepare_{dataset}" for dataset in datasets), *mine),
            in_report=True,
            seconds=shown.seconds,
        )


def _model_folder(preset: Preset) -> tuple[Path, ...]:
    """The folder of a model that the user named, whose weights may change under its name."""
    return (Path(preset.backbone),) if os.path.isabs(preset.backbone) else ()


def _checked(dataset: str, method: str, settings: dict, what: str) -> None:
    """StageError for settings that RunConfig would refuse."""
    label = f"{what} of {dataset}"
    _refuse(settings, {"data", "folder", "dataset", "method", "seed"}, label)
    try:
        RunConfig(data="data", folder="run", dataset=dataset, method=method, **settings)
    except ValidationError as error:
        raise StageError(f"{label}: {first(error)}") from error


def _refuse(settings: dict, taken: set[str], label: str) -> None:
    for name in sorted(taken & settings.keys()):
        raise StageError(f"{label}: {name} is the driver's to choose")
