"""Presets and the tasks that they make."""

from fnmatch import fnmatch
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook

import data_prep
from fedecider.methods import METHODS
from notebooks.workflow import __main__ as command
from notebooks.workflow.code_digest import code_digest
from notebooks.workflow.pipeline import Task, WorkflowError
from notebooks.workflow.preset import Dataset, Preset, complete, load
from notebooks.workflow.tasks import pictures, tasks

ROOT = Path(__file__).resolve().parents[1]


def preset(**changes) -> Preset:
    return load("tiny", ROOT).model_copy(update=changes)


def notebook(task: Task) -> str:
    return Path(task.entry).stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\nmethods: [a]\nseeds: [0]\nsedes: [0]\ndatasets: {}", "unknown name 'sedes'"),
        ("about: x", "'datasets' is missing"),
        ("[1, 2]", "expected a table of about, datasets"),
        ("a: [", "is not YAML"),
        (
            "about: x\nmethods: [a]\nseeds: [zero]\ndatasets: {amazon: {kind: plain}}",
            "seeds.0: Input should be a valid integer",
        ),
        (
            "about: x\nmethods: [local]\nseeds: [0]\ndatasets: {amazon: {kind: plain}}\n"
            "sweeps: {fields: {rank: [4]}, datasets: [amazn]}",
            "sweeps: no data set 'amazn': did you mean 'amazon'?",
        ),
    ],
)
def test_a_preset_that_is_unfit_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(WorkflowError) as caught:
        load(str(path), ROOT)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(
        WorkflowError, match="no preset 'demmo': it is one of demo, paper, planted,"
    ):
        load("demmo", ROOT)


def test_every_preset_makes_valid_tasks(tmp_path):
    (tmp_path / "dumps").mkdir()
    dumps = str(tmp_path / "dumps")
    for path in sorted((ROOT / "notebooks/presets").glob("*.yaml")):
        name = path.stem
        made = name in ("demo", "planted", "tiny")
        folders = {} if made else {"goodreads": dumps, "amazon": dumps}
        whole = complete(load(name, ROOT), name, ROOT, folders, model="tiny")
        todo = tasks(whole, ROOT / "results" / name, ROOT)
        names = [task.name for task in todo]
        assert len(set(names)) == len(names)
        for number, task in enumerate(todo):
            assert set(task.needs) <= set(names[:number])
            assert task.where["results"] == f"../results/{name}"


def test_what_has_no_seed_runs_once():
    todo = tasks(preset(seeds=[3, 4]), ROOT / "results/tiny", ROOT)
    names = [task.name for task in todo if task.name.startswith("02_run")]
    assert [name for name in names if "zero-shot" in name] == ["02_run-goodreads-zero-shot-seed3"]
    assert sum("goodreads-local" in name for name in names) == 2


def test_searched_settings_reach_the_runs_and_every_method_gets_as_many_tries():
    todo = {task.name: task for task in tasks(preset(), ROOT / "results/tiny", ROOT)}
    search = todo["03_search-goodreads-fedecider"]
    assert search.parameters["tries"] == [{"alpha_lr": 0.01}, {"alpha_lr": 0.1}]
    assert search.parameters["settings"]["train_users"] == 4
    run = todo["02_run-goodreads-fedecider-seed0"]
    assert run.parameters["chosen"] in run.inputs and search.name in run.needs
    assert "chosen" not in todo["02_run-goodreads-local-seed0"].parameters
    for path in (ROOT / "notebooks/presets").glob("*.yaml"):
        loaded = load(path.stem, ROOT)
        if loaded.search.tries:
            assert len({len(tries) for tries in loaded.search.tries.values()}) == 1, path
            trained = {m for m in loaded.methods if METHODS[m].trains}
            assert set(loaded.search.tries) == trained or path.stem == "tiny", path


def test_a_sweep_changes_one_field_of_its_base():
    todo = {task.name: task for task in tasks(preset(), ROOT / "results/tiny", ROOT)}
    sweeps = {name: task for name, task in todo.items() if "-sweeps-" in name}
    assert set(sweeps) == {
        "02_run-sweeps-goodreads-base-fedecider-seed0",
        "02_run-sweeps-goodreads-alpha_init-0.1-fedecider-seed0",
        "02_run-sweeps-goodreads-model-tiny@1-fedecider-seed0",
    }
    base = sweeps["02_run-sweeps-goodreads-base-fedecider-seed0"]
    for name, task in sweeps.items():
        assert task.parameters["settings"] == base.parameters["settings"]
        assert task.parameters["settings"]["rankers"] == ["likelihood"]
        assert task.parameters["run"] == f"sweeps/goodreads/{name.split('goodreads-')[1]}"
        assert len(task.parameters["change"]) == (task is not base)
        assert task.name in todo["table_4_ablations-goodreads"].needs


def test_unfit_tries_and_sweeps_are_named_before_anything_runs(tmp_path):
    search = preset().search.model_copy(update={"tries": {"fedecider": [{"alpha_rl": 1}]}})
    with pytest.raises(WorkflowError, match="search settings of goodreads: .*'alpha_rl'"):
        tasks(preset(search=search), tmp_path, ROOT)
    sweeps = preset().sweeps.model_copy(update={"fields": {"rank": [0]}})
    with pytest.raises(WorkflowError, match="sweep settings of goodreads: rank"):
        tasks(preset(sweeps=sweeps), tmp_path, ROOT)


def test_only_the_pictures_that_a_preset_names_are_drawn():
    few = preset(shown=["figure_4", "table_1"])
    shown = [task for task in tasks(few, ROOT / "r", ROOT) if task.in_report]
    named = {notebook(task) for task in shown if task.parameters.get("dataset") == "goodreads"}
    assert named == {"table_2_goodreads", "figure_4_alpha_heatmap"}
    # a data set's own list comes before the preset's
    theirs = {notebook(task) for task in shown if task.parameters.get("dataset") == "amazon"}
    own = {"figure_1_local_vs_fedavg", "figure_5_alpha_convergence"}
    assert theirs == {"table_3_amazon", *own}
    [once] = [task for task in shown if "dataset" not in task.parameters]
    assert notebook(once) == "table_1_datasets"


def test_what_the_paper_preset_needs_is_said_at_once(tmp_path, capsys):
    def error(*arguments: str) -> str:
        assert command.main(["--preset", "paper", *arguments]) == 1
        return capsys.readouterr().err

    there = str(tmp_path)
    assert error() == (
        "error: preset paper needs GOODREADS=<folder with the published goodreads dumps>\n"
    )
    assert "needs AMAZON=<folder" in error("--goodreads", there)
    assert "needs MODEL=<hub id or folder" in error("--goodreads", there, "--amazon", there)
    assert "MODEL" in error("--goodreads", there, "--datasets", "goodreads")
    assert "but there is no such folder" in error("--goodreads", f"{there}/nix")


def test_a_third_data_set_is_prepared_and_shown_under_its_own_name(tmp_path):
    more = {
        "goodreads_own": Dataset(kind="plain", source=str(tmp_path)),
        "shops": Dataset(kind="amazon", source=str(tmp_path)),
    }
    mixed = preset(datasets={**preset().datasets, **more})
    mixed = complete(mixed, "mine", ROOT)
    todo = tasks(mixed, ROOT / "results/mine", ROOT)
    names = [task.name for task in todo]
    assert len(set(names)) == len(names)
    notebooks = {task.name: notebook(task) for task in todo}
    assert notebooks["01_prepare-goodreads_own"] == notebooks["01_prepare-shops"] == "01_prepare"
    assert notebooks["table_2_goodreads_own"] == notebooks["table_2_goodreads"]
    assert notebooks["table_3_shops"] == "table_3_amazon"
    assert notebooks["figure_5_alpha_convergence-shops"] == "figure_5_alpha_convergence"
    once = [task for task in todo if "dataset" not in task.parameters]
    assert [notebook(task) for task in once] == ["table_1_datasets"]
    assert all(task.parameters["dataset"] in task.name for task in todo if task not in once)
    # no file is taken for that of a data set whose name begins alike
    for file in ("tables/table_2_goodreads_own_sampled.csv", "data/goodreads_own/x/meta.json"):
        makers = [
            task.name
            for task in todo
            if any(fnmatch(file, glob) for glob in task.outputs)
            and not any(fnmatch(file, glob) for glob in task.not_outputs)
        ]
        assert len(makers) == 1 and makers[0].endswith("goodreads_own")


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ("{Library: {kind: plain}}", "datasets.Library"),
        ("{my-shop: {kind: plain}}", "should match pattern"),
        ("{library: {kind: plain}}", "names no source, the folder of library's files"),
        ("{library: {kind: plain, source: /no/where}}", "/no/where, but there is no such folder"),
        ("{library: {kind: planted}}", "library cannot be of kind planted: that makes goodreads "),
    ],
)
def test_a_third_data_set_that_is_unfit_is_one_sentence(tmp_path, datasets, message, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"about: x\nmodel: tiny\nmethods: [local]\nseeds: [0]\ndatasets: {datasets}\n")
    results = tmp_path / "results"
    assert command.main(["--preset", str(path), "--results", str(results)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not results.exists()


def test_data_for_a_preset_that_makes_its_own_is_refused(tmp_path):
    with pytest.raises(WorkflowError, match="makes its own goodreads data and cannot use GOOD"):
        complete(preset(), "tiny", ROOT, {"goodreads": str(tmp_path)})


def test_settings_that_the_packages_refuse_are_named_before_anything_runs(tmp_path):
    for part, fault, message in (
        ("federation", {"lrr": 1}, "federation settings of goodreads: .*'lrr'"),
        ("federation", {"rank": 0}, "rank: Input should be greater than or equal to 1, not 0"),
        ("federation", {"seed": 1}, "seed is the workflow's to choose"),
        ("prepare", {"negativ": 1}, "prepare settings of goodreads: unknown name 'negativ'"),
        ("prepare", {"kind": "plain"}, "kind is the workflow's to choose"),
    ):
        with pytest.raises(WorkflowError, match=message):
            tasks(preset(**{part: fault}), tmp_path, ROOT)


def test_names_that_there_are_not_come_with_the_nearest_that_there_is(tmp_path):
    sweeps = preset().sweeps.model_copy(update={"methods": {"alpha_init": ["fedecidr"]}})
    defaults = preset().sweeps.model_copy(update={"default_methods": ["fedavgg"]})
    for changes, message in (
        (
            {"datasets": {"shops": Dataset(kind="amazn", source=str(tmp_path))}},
            "kind: no format 'amazn': did you mean 'amazon'?",
        ),
        ({"methods": ["fedavgg"]}, "no method 'fedavgg': did you mean 'fedavg'?"),
        ({"sweeps": sweeps}, "no method 'fedecidr': did you mean 'fedecider'?"),
        ({"sweeps": defaults}, "no method 'fedavgg': did you mean 'fedavg'?"),
        ({"shown": ["figure_99"]}, "shown: no figure or table 'figure_99': did you mean 'figure_"),
        (
            {"parameters": {"table_8_theory": {"exampels": 4}}},
            "table_8_theory has no parameter 'exampels': did you mean 'examples'?",
        ),
        ({"parameters": {"table_8": {}}}, "no figure or table 'table_8': did you mean 'table_8_"),
    ):
        with pytest.raises(WorkflowError) as caught:
            tasks(preset(**changes), tmp_path, ROOT)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_format_of_raw_files_may_stand_in_a_preset(tmp_path):
    for kind in {*data_prep.FORMATS} - {"planted"}:
        mixed = preset(datasets={"shops": Dataset(kind=kind, source=str(tmp_path))})
        prepare = tasks(complete(mixed, "mine", ROOT), tmp_path, ROOT)[0]
        assert prepare.parameters["kind"] == kind and prepare.sources == (tmp_path,)


def test_a_search_may_try_the_grid_that_the_method_names(tmp_path, monkeypatch):
    monkeypatch.setattr(
        METHODS["fedecider"],
        "grid",
        [{"alpha_lr": a, "lr": b} for a in (0.1, 0.2) for b in (1e-3, 1e-4)],
    )
    search = preset().search.model_copy(update={"tries": {"fedecider": "grid"}})
    todo = {task.name: task for task in tasks(preset(search=search), tmp_path, ROOT)}
    assert todo["03_search-goodreads-fedecider"].parameters["tries"] == [
        {"alpha_lr": 0.1, "lr": 1e-3},
        {"alpha_lr": 0.1, "lr": 1e-4},
        {"alpha_lr": 0.2, "lr": 1e-3},
        {"alpha_lr": 0.2, "lr": 1e-4},
    ]


def test_pictures_are_found_by_their_metadata_main_tables_first(tmp_path):
    def write(name: str, **metadata) -> None:
        made = new_notebook(cells=[], metadata={"fedecider": metadata} if metadata else {})
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(made, tmp_path / f"notebooks/{name}.ipynb")

    for name in ("table_9_cost", "figure_10_new", "figure_2_noise"):
        write(name, reads=["runs"])
    write("table_2_goodreads", reads=["runs"], serves="goodreads")
    names = ["table_2_goodreads", "figure_2_noise", "figure_10_new", "table_9_cost"]
    assert [picture.notebook for picture in pictures(tmp_path)] == names
    few = preset(
        shown=["figure_10"], parameters={}, datasets={"goodreads": Dataset(kind="planted")}
    )
    drawn = [task.name for task in tasks(few, tmp_path / "results", tmp_path) if task.in_report]
    assert drawn == ["table_2_goodreads", "figure_10_new-goodreads"]
    write("figure_3_wrong", reeds=["runs"])
    with pytest.raises(WorkflowError, match="figure_3_wrong.ipynb.*unknown name 'reeds'"):
        pictures(tmp_path)
    write("figure_3_wrong")
    with pytest.raises(WorkflowError, match="figure_3_wrong.ipynb.*'reads' is missing"):
        pictures(tmp_path)


def test_a_picture_s_metadata_say_what_it_waits_for_and_takes(tmp_path):
    by_name = {task.name: task for task in tasks(preset(), ROOT / "results/tiny", ROOT)}
    for picture in pictures(ROOT):
        for task in by_name.values():
            if notebook(task) != picture.notebook:
                continue
            assert ("model" in task.parameters) == picture.model
            assert any("-sweeps-" in need for need in task.needs) == (
                "sweeps" in picture.reads and task.parameters.get("dataset") != "amazon"
            )
            assert f"{task.outputs[-1].split('/')[0]}" in ("figures", "tables")
            variants = [variant.items() <= task.parameters.items() for variant in picture.variants]
            assert sum(variants) == 1


def test_a_run_does_not_depend_on_the_other_methods_files():
    todo = tasks(preset(), ROOT / "results/tiny", ROOT)
    codes = {
        task.parameters["method"]: code_digest(ROOT, task.entry, task.modules, task.packages)
        for task in todo
        if task.name.startswith("02_run-goodreads")
    }
    assert "fedecider/methods/fedavg.py" in codes["fedavg"]
    assert "fedecider/methods/fedavg.py" not in codes["fedecider"]
    assert "fedecider/federation.py" in codes["fedecider"]
    assert not any(name.startswith(("figures/", "data_prep/")) for name in codes["fedecider"])
    own = {"fedecider/methods/fedecider.py", "fedecider/analysis/saved_run.py"}
    assert not own & set(codes["fedavg"]) and own & set(codes["fedecider"])


def test_preparing_depends_on_the_reader_of_its_format(tmp_path):
    mixed = preset(datasets={"library": Dataset(kind="plain", source=str(tmp_path))})
    prepare = tasks(complete(mixed, "mine", ROOT), tmp_path, ROOT)[0]
    digests = code_digest(ROOT, prepare.entry, prepare.modules)
    assert {"data_prep/plain.py", "data_prep/domains.py", "data_prep/settings.py"} <= set(digests)
    [planted] = [task for task in tasks(preset(), tmp_path, ROOT) if task.name[11:] == "goodreads"]
    assert "data_prep/planted_titles.py" in code_digest(ROOT, planted.entry, planted.modules)
