"""The driver on toy notebooks: order, skipping, resuming, messages; and presets and the report."""

import ast
import base64
import fcntl
import functools
import io
import os
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import plan, report, reproduce, stages
from notebooks.progress import Estimate, Output, Screen, clock
from notebooks.stages import Stage, StageError

ROOT = Path(__file__).resolve().parents[1]
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360000000020001e221bc330000000049454e44ae426082"
    )
).decode()


def write_notebook(root: Path, name: str, parameters: str, *cells: str) -> None:
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell(f"# {name}"), tagged])
    notebook.cells += [new_code_cell(cell) for cell in cells]
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def toy(tmp_path: Path) -> tuple[Path, list[Stage]]:
    """Two notebooks, the second reading what the first writes."""
    write_notebook(
        tmp_path,
        "source",
        'results = ""\nnumber = 1',
        "from pathlib import Path\n"
        "Path(results, 'data').mkdir(exist_ok=True)\n"
        "Path(results, 'data/number.txt').write_text(str(number % 10))",
    )
    write_notebook(
        tmp_path,
        "picture",
        'results = ""',
        "import os, sys\nfrom pathlib import Path\n"
        "number = Path(results, 'data/number.txt').read_text()\n"
        "print('saw', number)\nprint('no lake here', file=sys.stderr)\n"
        "Path(results, 'figures').mkdir(exist_ok=True)\n"
        "Path(results, 'figures/one.txt').write_text(f'{number} {sys.executable} {os.getcwd()}')",
    )
    return tmp_path, toy_stages(number=1)


def toy_stages(number: int) -> list[Stage]:
    where = {"results": "../results"}
    return [
        Stage(
            "source",
            notebook="source",
            parameters={"number": number},
            unkeyed=where,
            outputs=("data/number.txt",),
        ),
        Stage(
            "picture",
            notebook="picture",
            unkeyed=where,
            inputs=("data/*",),
            outputs=("figures/one.txt",),
            needs=("source",),
        ),
    ]


def run(root: Path, todo: list[Stage]) -> tuple[int, list[str]]:
    """How many stages ran, and the lines that the user saw."""
    stream = io.StringIO()
    ran, _ = reproduce.bring_up_to_date(todo, root / "results", root, stream)
    return ran, stream.getvalue().splitlines()


def test_only_what_changed_runs_again(toy):
    root, todo = toy
    ran, lines = run(root, todo)
    assert ran == 2
    assert lines[0].startswith("[1/2] source: first run   [0 s so far, about ")
    assert "    no lake here" in lines
    # notebooks run in notebooks/, in the Python of the driver
    seen = (root / "results/figures/one.txt").read_text().split()
    assert seen == ["1", sys.executable, str(root / "notebooks")]
    assert (root / "results/notebooks/picture.ipynb").is_file()

    assert run(root, todo) == (0, ["[1/2] source: up to date", "[2/2] picture: up to date"])

    # another parameter with the same result: the reader of the result is not run again
    ran, lines = run(root, toy_stages(number=11))
    assert ran == 1
    assert lines[0].startswith("[1/2] source: parameter changed: number")
    assert lines[-1] == "[2/2] picture: up to date"

    ran, lines = run(root, toy_stages(number=2))
    assert ran == 2
    assert any("[2/2] picture: input changed: data/number.txt" in line for line in lines)


def test_a_failure_names_the_error_and_the_notebook_and_is_tried_again(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0\nnumber = 1", "raise ValueError('no such\\nlake')")
    with pytest.raises(StageError) as caught:
        run(root, todo)
    assert str(caught.value) == (
        "source failed: ValueError: no such ... lake\n"
        f"the notebook: {root}/results/notebooks/source.ipynb"
    )
    assert not (root / "results/stages/source.json").exists()
    assert not (root / "results/figures").exists()


def test_a_kernel_that_dies_is_a_sentence(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0\nnumber = 1", "import os\nos._exit(1)")
    with pytest.raises(StageError, match="its process died"):
        run(root, todo)


def test_a_parameter_that_the_notebook_does_not_have_is_refused(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0", "number = 1")
    with pytest.raises(StageError, match=r"source\.ipynb has no parameter 'number'"):
        run(root, todo)


def test_two_drivers_do_not_share_a_folder(toy):
    root, todo = toy
    (root / "results").mkdir()
    with (root / "results/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="another make reproduce is at work"):
            run(root, todo)


_DRIVE = """
import sys
from pathlib import Path
from notebooks import reproduce
from notebooks.stages import Stage

root = Path(sys.argv[1])
stage = Stage("slow", notebook="slow", unkeyed={"results": "../results"},
              outputs=("run/done",), clears=("run",))
reproduce._run = lambda _: reproduce.bring_up_to_date([stage], root / "results", root) and 0
sys.exit(reproduce.main([]))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_from_where_it_was(tmp_path, sent):
    write_notebook(
        tmp_path,
        "slow",
        'results = ""',
        "import os, time\nfrom pathlib import Path\n"
        "run = Path(results, 'run')\n"
        "rounds = run / 'rounds'\n"
        "if not rounds.exists():\n"
        "    run.mkdir()\n"
        "    rounds.write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
        "(run / 'done').write_text('second time')",
    )
    command = [sys.executable, "-c", _DRIVE, str(tmp_path)]
    # A shell's background job starts with Ctrl-C ignored, and so would all that it starts.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    rounds, deadline = tmp_path / "results/run/rounds", time.monotonic() + 60
    while not (rounds.exists() and rounds.read_text()):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    kernel = int(rounds.read_text())
    first.send_signal(sent)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert errors.strip() == "stopped; the same command goes on from here"
    with pytest.raises(ProcessLookupError):  # the notebook's process has gone too
        os.kill(kernel, 0)

    if sent == signal.SIGTERM:  # what follows is the same
        return
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0, second.stderr
    assert "slow: goes on from where it was stopped" in second.stdout
    assert (tmp_path / "results/run/done").read_text() == "second time"
    assert rounds.exists()


def shown(*texts: str, passing: bool = False) -> list[str]:
    """Lines that a user without a terminal sees of a kernel's text."""
    stream = io.StringIO()
    output = Output(Screen(Estimate({"a": 60.0}), stream), passing)
    for text in texts:
        output.write(text)
    output.close()
    return [line.split("   [")[0].strip() for line in stream.getvalue().splitlines()]


def test_progress_bars_of_a_notebook_become_a_few_lines():
    bar = ["\r  0%|  | 0/9", "\r 50%|# | 5/9", "\r100%|##| 9/9\n"]
    expected = ["round 1", "round 2", "0%|  | 0/9", "100%|##| 9/9", "the end"]
    # after the first bar line there is silence for half a minute
    assert shown("round 1\nrou", "nd 2\n", *bar, "the end") == expected
    assert shown("".join(["round 1\nround 2\n", *bar[:1]]), *bar[1:], "the end\n") == expected
    assert shown("round 1\n", *bar, passing=True) == ["round 1"]


def test_nested_bars_and_their_cursor_moves_leave_no_lines_behind():
    inner = "\n\r{} users\x1b[A"
    pieces = ["\r 33%|# | 1/3", inner.format(1), inner.format(2), "\n\r       \r\x1b[A"]
    pieces += ["\r100%|##| 3/3", "\n", "\r  0%| next", "\r100%| next", "\n"]
    expected = ["33%|# | 1/3", "100%|##| 3/3", "100%| next"]
    assert shown(*pieces) == expected
    text = "".join(pieces)
    for size in (1, 2, 3, 7):  # however the stream is cut
        lines = shown(*(text[i : i + size] for i in range(0, len(text), size)))
        assert lines[-2:] == expected[-2:] and len(lines) == 3, size
    # two levels down
    deep = "\n\n\r{}\x1b[A\x1b[A"
    assert shown("\r0%", deep.format("deep"), deep.format("    "), "\r100%\n") == ["0%", "100%"]


def test_time_left_follows_what_was_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("notebooks.progress.time.monotonic", lambda: now[0])
    estimate = Estimate({"a": 100.0, "b": 100.0, "c": 100.0})
    assert estimate.left() == 300
    estimate.begin("a")
    now[0] = 40.0
    assert estimate.left() == 260
    now[0] = 400.0  # longer than expected: never nothing left of the stage itself
    assert estimate.left() == pytest.approx(210)
    assert estimate.end() == 400
    # 430 s for 130 s (the prior counts 30 s on both sides)
    assert estimate.left() == pytest.approx(200 * 430 / 130)
    estimate.skip("b")
    assert estimate.left() == pytest.approx(100 * 430 / 130)
    assert [clock(s) for s in (8.4, 130, 3900)] == ["8 s", "2 min 10 s", "1 h 5 min"]


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


def test_a_run_does_not_depend_on_the_other_methods_files():
    todo = plan.stages(preset(), ROOT / "results/tiny", ROOT)
    codes = {
        stage.parameters["method"]: stages.key(stage, ROOT / "results/tiny", ROOT)["code"]
        for stage in todo
        if stage.notebook == "run_federation" and stage.parameters["dataset"] == "goodreads"
    }
    assert "fedecider/methods/fedavg.py" in codes["fedavg"]
    assert "fedecider/methods/fedavg.py" not in codes["fedecider"]
    assert "fedecider/federation.py" in codes["fedecider"]
    assert not any(name.startswith(("figures/", "data_prep/")) for name in codes["fedecider"])


def test_the_report_holds_pictures_text_and_what_was_run(tmp_path):
    (tmp_path / "notebooks").mkdir()
    todo = [Stage("heat-goodreads", parameters={"dataset": "goodreads"}, in_report=True)]
    cells = [
        new_markdown_cell("# Figure 4: weights\n\nWhat it shows."),
        new_code_cell("import x", outputs=[new_output("stream", text="python 3.11 | x 1.0")]),
        new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        new_code_cell(
            "draw(secret)",
            outputs=[
                new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"}),
                new_output("stream", name="stderr", text="100%|###| 3/3"),
            ],
        ),
        new_markdown_cell("## Numbers"),
        new_code_cell("f", outputs=[new_output("execute_result", data={"text/html": "<b>7</b>"})]),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks/heat-goodreads.ipynb")
    stages.finish(todo[0], tmp_path, {}, seconds=65.0)
    last = report.stage("tiny", preset(), todo, tmp_path)
    last.call(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count(f"data:image/png;base64,{PIXEL}") == 1
    assert '<a href="#heat-goodreads">Figure 4: weights (Goodreads)</a>' in page
    assert '<a id="heat-goodreads">' in page
    assert "What it shows." in page and "<b>7</b>" in page and "1 min 5 s" in page
    assert "<h3" in page and "planted_users = 60" in page
    for hidden in ("draw(secret)", "###", "python 3.11 |", "&lt;Figure&gt;", "<script"):
        assert hidden not in page


def test_the_report_is_current_until_a_picture_changes(tmp_path):
    (tmp_path / "notebooks").mkdir()
    one = Stage("heat", in_report=True)
    path = tmp_path / "notebooks/heat.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# One")]), path)
    stages.finish(one, tmp_path, {}, seconds=1.0)
    last = report.stage("tiny", preset(), [one], tmp_path)
    assert run_report(tmp_path, last) == 1
    assert run_report(tmp_path, last) == 0
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Two")]), path)
    assert run_report(tmp_path, last) == 1
    other = report.stage("tiny", preset(seeds=[0, 1]), [one], tmp_path)
    assert run_report(tmp_path, other) == 1


def test_the_report_is_made_anew_when_what_it_calls_changed(tmp_path, monkeypatch):
    assert run_report(tmp_path, report.stage("tiny", preset(), [], tmp_path)) == 1
    assert run_report(tmp_path, report.stage("tiny", preset(), [], tmp_path)) == 0
    plain = report.source_digest
    monkeypatch.setattr(
        report, "source_digest", lambda path: "new" if path.name == "progress.py" else plain(path)
    )
    assert run_report(tmp_path, report.stage("tiny", preset(), [], tmp_path)) == 1
    # whatever of the project it imports counts; closure only makes the digests
    called = {Path(module.__file__).stem for module in report._CALLED}
    for node in ast.walk(ast.parse(Path(report.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
            "fedecider", "figures", "notebooks"
        ):  # fmt: skip
            last = node.module.split(".")[1:]
            assert set(last or [name.name for name in node.names]) <= called | {"closure"}


def run_report(results: Path, last: Stage) -> int:
    return reproduce.bring_up_to_date([last], results, ROOT, io.StringIO())[0]
