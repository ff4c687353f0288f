"""Presets and the stages that they make."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from notebooks import plan, reproduce
from notebooks.stages import StageError

ROOT = Path(__file__).resolve().parents[1]


def preset(**changes) -> plan.Preset:
    return plan.load("tiny", ROOT).model_copy(update=changes)


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
    ],
)
def test_a_preset_that_is_unfit_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(StageError) as caught:
        plan.load(str(path), ROOT)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(StageError, match="no preset 'demmo': it is one of demo, paper, planted, s"):
        plan.load("demmo", ROOT)


def test_every_preset_makes_valid_stages(tmp_path):
    (tmp_path / "dumps").mkdir()
    dumps = str(tmp_path / "dumps")
    for path in sorted((ROOT / "notebooks/presets").glob("*.yaml")):
        name = path.stem
        made = name in ("demo", "planted", "tiny")
        folders = {} if made else {"goodreads": dumps, "amazon": dumps}
        complete = plan.given(plan.load(name, ROOT), name, ROOT, **folders, model="tiny")
        todo = plan.stages(complete, ROOT / "results" / name, ROOT)
        names = [stage.name for stage in todo]
        assert len(set(names)) == len(names)
        for place, stage in enumerate(todo):
            assert set(stage.needs) <= set(names[:place])
            assert stage.unkeyed["results"] == f"../results/{name}"


def test_what_has_no_seed_runs_once():
    todo = plan.stages(preset(seeds=[3, 4]), ROOT / "results/tiny", ROOT)
    names = [stage.name for stage in todo if stage.notebook == "run_federation"]
    assert [name for name in names if "zero-shot" in name] == [
        "run_federation-goodreads-zero-shot-seed3"
    ]
    assert sum("goodreads-local" in name for name in names) == 2


def test_searched_settings_reach_the_runs_and_every_method_gets_as_many_tries():
    todo = {stage.name: stage for stage in plan.stages(preset(), ROOT / "results/tiny", ROOT)}
    search = todo["search_settings-goodreads-fedecider"]
    assert search.parameters["tries"] == [{"alpha_lr": 0.01}, {"alpha_lr": 0.1}]
    assert search.parameters["settings"]["train_users"] == 4
    run = todo["run_federation-goodreads-fedecider-seed0"]
    assert run.parameters["chosen"] in run.inputs and search.name in run.needs
    assert "chosen" not in todo["run_federation-goodreads-local-seed0"].parameters
    for path in (ROOT / "notebooks/presets").glob("*.yaml"):
        loaded = plan.load(path.stem, ROOT)
        if loaded.search is not None:
            assert len({len(tries) for tries in loaded.search.tries.values()}) == 1, path
            trained = {m for m in loaded.methods if plan.METHODS[m].rounds_needed}
            assert set(loaded.search.tries) == trained or path.stem == "tiny", path


def test_a_sweep_changes_one_field_of_its_base():
    todo = {stage.name: stage for stage in plan.stages(preset(), ROOT / "results/tiny", ROOT)}
    sweeps = {name: one for name, one in todo.items() if "-sweeps-" in name}
    assert set(sweeps) == {
        "run_federation-sweeps-goodreads-base-fedecider-seed0",
        "run_federation-sweeps-goodreads-alpha_init-0.1-fedecider-seed0",
        "run_federation-sweeps-goodreads-backbone-tiny@1-fedecider-seed0",
    }
    base = sweeps["run_federation-sweeps-goodreads-base-fedecider-seed0"]
    for name, one in sweeps.items():
        assert one.parameters["settings"] == base.parameters["settings"]
        assert one.parameters["settings"]["rankers"] == ["likelihood"]
        assert one.parameters["run"] == f"sweeps/goodreads/{name.split('goodreads-')[1]}"
        assert len(one.parameters["change"]) == (one is not base)
        assert one.name in todo["table_4_ablations_goodreads"].needs


def test_unfit_tries_and_sweeps_are_named_before_anything_runs(tmp_path):
    search = preset().search.model_copy(update={"tries": {"fedecider": [{"alpha_rl": 1}]}})
    with pytest.raises(StageError, match="search settings of goodreads: unknown name 'alpha_rl'"):
        plan.stages(preset(search=search), tmp_path, ROOT)
    sweeps = preset().sweeps.model_copy(update={"fields": {"rank": [0]}})
    with pytest.raises(StageError, match="sweep settings of goodreads: rank"):
        plan.stages(preset(sweeps=sweeps), tmp_path, ROOT)


def test_only_the_pictures_that_a_preset_names_are_drawn():
    few = preset(shown=["figure_4", "table_1"])
    shown = [s for s in plan.stages(few, ROOT / "r", ROOT) if s.in_report]
    mine = {s.notebook for s in shown if s.parameters.get("dataset") == "goodreads"}
    assert mine == {"table_2_goodreads", "figure_4_alpha_heatmap"}
    # a data set's own list comes before the preset's
    theirs = {s.notebook for s in shown if s.parameters.get("dataset") == "amazon"}
    own = {"figure_1_local_vs_fedavg", "figure_5_alpha_convergence"}
    assert theirs == {"table_3_amazon", *own}
    [once] = [s for s in shown if "dataset" not in s.parameters]
    assert once.notebook == "table_1_datasets"


def test_what_the_paper_preset_needs_is_said_at_once(tmp_path, capsys):
    def error(*arguments: str) -> str:
        assert reproduce.main(["--preset", "paper", *arguments]) == 1
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
        "goodreads_own": plan.Dataset(kind="plain", source=str(tmp_path)),
        "shops": plan.Dataset(kind="amazon", source=str(tmp_path)),
    }
    mixed = preset(datasets={**preset().datasets, **more})
    mixed = plan.given(mixed, "mine", ROOT)
    todo = plan.stages(mixed, ROOT / "results/mine", ROOT)
    names = [stage.name for stage in todo]
    assert len(set(names)) == len(names)
    notebooks = {stage.name: stage.notebook for stage in todo}
    assert notebooks["prepare_goodreads_own"] == notebooks["prepare_goodreads"]
    assert notebooks["prepare_shops"] == notebooks["prepare_amazon"] == "prepare_amazon"
    assert notebooks["table_2_goodreads_own"] == notebooks["table_2_goodreads"]
    assert notebooks["table_3_shops"] == "table_3_amazon"
    assert notebooks["figure_5_alpha_convergence-shops"] == "figure_5_alpha_convergence"
    once = [stage for stage in todo if "dataset" not in stage.parameters]
    assert [stage.notebook for stage in once] == ["table_1_datasets"]
    assert all(stage.parameters["dataset"] in stage.name for stage in todo if stage not in once)
    # no file is taken for that of a data set whose name begins alike
    for file in ("tables/table_2_goodreads_own_sampled.csv", "data/goodreads_own/x/meta.json"):
        makers = [one.name for one in todo if any(fnmatch(file, glob) for glob in one.outputs)]
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
    path.write_text(
        f"about: x\nbackbone: tiny\nmethods: [local]\nseeds: [0]\ndatasets: {datasets}\n"
    )
    results = tmp_path / "results"
    assert reproduce.main(["--preset", str(path), "--results", str(results)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not results.exists()


def test_data_for_a_preset_that_makes_its_own_is_refused(tmp_path):
    with pytest.raises(StageError, match="makes its own goodreads data and cannot use GOODREADS"):
        plan.given(preset(), "tiny", ROOT, goodreads=str(tmp_path))


def test_settings_that_the_packages_refuse_are_named_before_anything_runs(tmp_path):
    for part, fault, message in (
        ("federation", {"lrr": 1}, "federation settings of goodreads: unknown name 'lrr'"),
        ("federation", {"rank": 0}, "rank: Input should be greater than or equal to 1, not 0"),
        ("federation", {"seed": 1}, "seed is the driver's to choose"),
        ("prepare", {"negativ": 1}, "prepare settings of goodreads: unknown name 'negativ'"),
        ("prepare", {"kind": "plain"}, "kind is the driver's to choose"),
    ):
        with pytest.raises(StageError, match=message):
            plan.stages(preset(**{part: fault}), tmp_path, ROOT)
