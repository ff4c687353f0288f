"""What is stale and why, and the import closure, on a toy repository; no notebook is executed."""

import io
import os
from pathlib import Path

import nbformat
import pytest
from doit.reporter import ZeroReporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebooks.workflow.code_digest import code_digest
from notebooks.workflow.pipeline import Pipeline, Task, WorkflowError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the three packages' names and one notebook, demo.ipynb."""
    files = {
        "fedecider/__init__.py": "from .config import Config\nfrom fedecider import runs\n",
        "fedecider/config.py": "class Config:\n    size = 1\n",
        "fedecider/runs.py": "import json\n\ndef metrics():\n    return 1\n",
        "fedecider/federation.py": "from fedecider.methods import METHODS\nfrom . import config\n",
        "fedecider/methods/__init__.py": (
            "import importlib, pkgutil\n"
            "METHODS = [importlib.import_module(m.name) for m in pkgutil.iter_modules(__path__)]\n"
        ),
        "fedecider/methods/local.py": "class Local:\n    name = 'local'\n",
        "fedecider/methods/fedavg.py": "from fedecider.methods.local import Local\n",
        "figures/__init__.py": "from figures import bars, heat\n\n__all__ = ['bars', 'heat']\n",
        "figures/bars.py": "from figures import style\n",
        "figures/heat.py": "def late():\n    from figures import style\n",
        "figures/style.py": "COLOUR = 1\n",
        "requirements.lock": "# pins\ntorch==1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "results").mkdir()
    write_notebook(tmp_path, "demo", "from fedecider import runs\nfrom figures import bars")
    return tmp_path


def write_notebook(root: Path, name: str, *cells: str, prose: str = "# Title") -> Path:
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell(prose), *map(new_code_cell, cells)]), path)
    return path


def closure(root: Path, *cells: str, **more) -> set[str]:
    write_notebook(root, "probe", *cells)
    return set(code_digest(root, "notebooks/probe.ipynb", **more)) - {
        "notebooks/probe.ipynb",
        "requirements.lock",
    }


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    stat = path.stat()  # a later time of change also where the clock is coarse
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_closure_follows_the_names_that_are_used_and_no_others(root):
    assert closure(root, "from figures import bars") == {
        "figures/__init__.py",
        "figures/bars.py",
        "figures/style.py",
    }
    assert closure(root, "import figures.heat") == {
        "figures/__init__.py",
        "figures/heat.py",
        "figures/style.py",  # imported inside a function
    }
    # a name that the package file hands on leads to where it is defined
    assert closure(root, "from fedecider import Config") == {
        "fedecider/__init__.py",
        "fedecider/config.py",
    }
    # the whole package, and a relative import
    assert "figures/heat.py" in closure(root, "import figures")
    assert "fedecider/config.py" in closure(root, "import fedecider.federation")


def test_closure_survives_magics_unknown_names_and_other_packages(root):
    assert closure(root, "%matplotlib inline\nimport numpy\nfrom figures import bars") >= {
        "figures/bars.py"
    }
    assert closure(root, "from figures import nowhere") >= {"figures/bars.py", "figures/heat.py"}
    assert closure(root, "from fedecider import *") >= {"fedecider/runs.py"}
    assert closure(root, "import numpy, os.path") == set()


def test_closure_of_one_method_leaves_out_the_others(root):
    """Methods are found by walking their folder: the task names the module of its own."""
    cell = "from fedecider import federation"
    assert "fedecider/methods/__init__.py" in closure(root, cell)
    assert not {"fedecider/methods/local.py", "fedecider/methods/fedavg.py"} & closure(root, cell)
    local = closure(root, cell, modules=["fedecider.methods.local"])
    assert local - closure(root, cell) == {"fedecider/methods/local.py"}
    # fedavg builds on local, so it keeps it
    fedavg = closure(root, cell, modules=["fedecider.methods.fedavg"])
    assert {"fedecider/methods/local.py", "fedecider/methods/fedavg.py"} <= fedavg


def test_closure_of_a_module_counts_the_module_and_what_it_imports(root):
    assert set(code_digest(root, "figures/bars.py")) == {
        "figures/__init__.py",
        "figures/bars.py",
        "figures/style.py",
        "requirements.lock",
    }


def test_digests_ignore_comments_docstrings_and_layout_but_no_code(root):
    before = code_digest(root, "notebooks/demo.ipynb")
    edit(root / "fedecider/runs.py", "    return 1", '    """Help."""\n    # why\n    return (1)')
    edit(root / "requirements.lock", "# pins", "# exact pins")
    assert code_digest(root, "notebooks/demo.ipynb") == before
    edit(root / "fedecider/runs.py", "(1)", "(2)")
    after = code_digest(root, "notebooks/demo.ipynb")
    assert {name for name in after if after[name] != before[name]} == {"fedecider/runs.py"}
    edit(root / "requirements.lock", "torch==1", "torch==2")
    assert (
        code_digest(root, "notebooks/demo.ipynb")["requirements.lock"]
        != before["requirements.lock"]
    )


def test_a_package_list_counts_only_by_what_it_defines(root):
    before = code_digest(root, "notebooks/demo.ipynb")
    edit(root / "figures/__init__.py", "bars, heat", "bars, heat, style")
    assert code_digest(root, "notebooks/demo.ipynb") == before
    edit(root / "figures/__init__.py", "__all__", "SIZE = 3\n__all__")
    assert code_digest(root, "notebooks/demo.ipynb") != before


def test_prose_counts_only_where_it_is_shown(root):
    def digests(prose: str) -> list[dict]:
        write_notebook(root, "probe", "x = 1", prose=prose)
        return [code_digest(root, "notebooks/probe.ipynb", prose=counts) for counts in (0, 1)]

    (quiet, shown), (still_quiet, other) = digests("# One"), digests("# Two")
    assert still_quiet == quiet and other != shown


def write_outputs(task: Task) -> None:
    """What a notebook would do, in the results folder."""
    for pattern in task.outputs:
        Path(pattern).parent.mkdir(parents=True, exist_ok=True)
        Path(pattern).write_text("made")


def stop(task: Task) -> None:
    raise KeyboardInterrupt


def start(root: Path, task: Task, execute=write_outputs) -> bool:
    """Run the pipeline; whether it went well."""
    pipeline = Pipeline([task], root, execute)
    with pipeline.open(root / "results"):
        return pipeline.run(ZeroReporter(io.StringIO(), {}))


def stopped(root: Path, task: Task) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(root, task, stop)


def reason(root: Path, task: Task) -> str | None:
    pipeline = Pipeline([task], root, write_outputs)
    with pipeline.open(root / "results"):
        return pipeline.stale_reason(task.name)


def test_a_task_says_what_changed(root, tmp_path_factory):
    dumps = tmp_path_factory.mktemp("dumps")
    (dumps / "a.json.gz").write_text("raw")
    results = root / "results"
    (results / "data").mkdir()
    (results / "data/items.csv").write_text("1")
    task = Task(
        "demo",
        "notebooks/demo.ipynb",
        parameters={"seed": 0, "settings": {"lr": 0.1}},
        where={"results": "../results/demo"},
        inputs=("data/**/*",),
        outputs=("figures/one.png",),
        sources=(dumps,),
    )
    assert reason(root, task) == "first run"
    assert start(root, task)
    assert reason(root, task) is None

    moved = Task(**{**vars(task), "where": {"results": "elsewhere"}})
    assert reason(root, moved) is None
    other = Task(**{**vars(task), "parameters": {"seed": 0, "settings": {"lr": 0.2}}})
    assert reason(root, other) == "parameter changed: settings.lr"

    edit(results / "data/items.csv", "1", "2")
    assert reason(root, task) == "input changed: data/items.csv"
    edit(results / "data/items.csv", "2", "1")
    assert reason(root, task) is None  # content counts, not the time
    edit(dumps / "a.json.gz", "raw", "new")
    assert reason(root, task) == f"input changed: {dumps.name}/a.json.gz"
    assert start(root, task)

    edit(root / "figures/style.py", "1", "2")
    edit(root / "figures/bars.py", "style", "style as s")
    edit(root / "fedecider/runs.py", "return 1", "return 3")
    assert reason(root, task) == ("code changed: fedecider/runs.py, figures/bars.py and 1 more")
    assert start(root, task)
    picture = results / "figures/one.png"
    content = picture.read_bytes()
    for other in (content + b"longer", bytes([content[0] ^ 1]) + content[1:]):
        picture.write_bytes(other)
        assert reason(root, task) == "output changed: figures/one.png"
    picture.unlink()
    assert reason(root, task) == "output missing: figures/one.png"


def test_input_files_that_come_and_go_are_named(root):
    results = root / "results"
    task = Task("demo", "notebooks/demo.ipynb", inputs=("data/*",))
    assert start(root, task)
    (results / "data").mkdir()
    (results / "data/items.csv").write_text("1")
    assert reason(root, task) == "input changed: data/items.csv"
    assert start(root, task) and reason(root, task) is None
    (results / "data/items.csv").unlink()
    assert reason(root, task) == "input changed: data/items.csv"


def test_results_may_be_moved(root):
    task = Task("demo", "notebooks/demo.ipynb", inputs=("data/*",), outputs=("figures/one.png",))
    (root / "results/data").mkdir()
    (root / "results/data/items.csv").write_text("1")
    assert start(root, task)
    (root / "results").rename(root / "moved")
    pipeline = Pipeline([task], root, write_outputs)
    with pipeline.open(root / "moved"):
        assert pipeline.stale_reason("demo") is None


def test_what_belongs_to_another_key_is_cleared_and_an_interrupted_run_is_kept(root):
    run = root / "results/runs/local-seed0"

    def task(lr: float) -> Task:
        return Task(
            "run",
            "notebooks/demo.ipynb",
            parameters={"lr": lr},
            outputs=("runs/local-seed0/result.json",),
            clears=("runs/local-seed0",),
        )

    # what lies there was made by hand, perhaps from other data or code
    run.mkdir(parents=True)
    (run / "checkpoint.json").write_text("round 2")
    stopped(root, task(0.1))
    assert not run.exists()
    run.mkdir(parents=True)
    (run / "checkpoint.json").write_text("round 3")
    # stopped here; the same key goes on from the checkpoint
    assert reason(root, task(0.1)) == "goes on from where it was stopped"
    stopped(root, task(0.1))
    assert (run / "checkpoint.json").exists()
    # another key must not
    assert "changed since it was stopped" in reason(root, task(0.2))
    stopped(root, task(0.2))
    assert not run.exists()
    assert start(root, task(0.2))
    assert reason(root, task(0.2)) is None
    # finished, output lost: the rest of the folder is still of this key
    (run / "checkpoint.json").write_text("round 3")
    (run / "result.json").unlink()
    assert reason(root, task(0.2)) == "output missing: runs/local-seed0/result.json"
    stopped(root, task(0.2))
    assert (run / "checkpoint.json").exists()
    # stopped under 0.2 after it had once finished under 0.1: no record may speak for 0.1
    assert start(root, task(0.1))
    stopped(root, task(0.2))
    assert reason(root, task(0.1)) is not None


def test_checkpoints_are_no_input_but_tables_are(root):
    run = root / "results/runs/goodreads/local-seed0"
    run.mkdir(parents=True)
    for name in ("metrics.csv", "checkpoint.safetensors", ".part"):
        (run / name).write_text("1")
    task = Task("table", "notebooks/demo.ipynb", inputs=("runs/goodreads/**/*",))
    assert start(root, task)
    for name in ("checkpoint.safetensors", ".part"):
        (run / name).write_text("23")
        assert reason(root, task) is None
    (run / "metrics.csv").write_text("23")
    assert reason(root, task) == "input changed: runs/goodreads/local-seed0/metrics.csv"


def test_a_task_that_writes_nothing_is_an_error(root):
    task = Task("demo", "notebooks/demo.ipynb", outputs=("figures/*.png",))
    pipeline = Pipeline([task], root, lambda task: None)
    failures = []
    reporter = ZeroReporter(io.StringIO(), {})
    reporter.add_failure = lambda _, fail: failures.append(fail.message)
    with pipeline.open(root / "results"):
        assert not pipeline.run(reporter)
    pattern = root / "results/figures/*.png"
    assert failures == [f"demo ended without writing {pattern}"]
    assert reason(root, task) is not None


def test_a_missing_notebook_and_broken_records(root):
    with pytest.raises(WorkflowError, match=r"nowhere\.ipynb is missing"):
        reason(root, Task("x", "notebooks/nowhere.ipynb"))
    task = Task("demo", "notebooks/demo.ipynb")
    assert start(root, task)
    (root / "results/.doit.db").write_text("{" * 4096)
    with pytest.raises(WorkflowError, match="you can just remove the database"):
        reason(root, task)
    (root / "results/.doit.db").unlink()
    assert reason(root, task) == "first run"


def test_the_last_measured_time_is_expected(root, monkeypatch):
    task = Task("demo", "notebooks/demo.ipynb", parameters={"a": 1}, seconds=99.0)

    def expected() -> float:
        pipeline = Pipeline([task], root, write_outputs)
        with pipeline.open(root / "results"):
            return pipeline.expected_seconds("demo")

    assert expected() == 99.0
    now = iter((10.0, 12.0))
    monkeypatch.setattr("notebooks.workflow.pipeline.time.monotonic", lambda: next(now, 12.0))
    assert start(root, task)
    assert expected() == 2.0
    task = Task(**{**vars(task), "parameters": {"a": 2}})
    stopped(root, task)  # still known while it runs again
    assert expected() == 2.0
