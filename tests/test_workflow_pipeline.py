"""Keys, stamps and the import closure, on a toy repository; nothing is executed."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebooks import stages
from notebooks.closure import called
from notebooks.stages import Stage, StageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the three packages' names and one notebook, demo.ipynb."""
    files = {
        "fedecider/__init__.py": "from .config import Config\nfrom fedecider import runs\n",
        "fedecider/config.py": "class Config:\n    size = 1\n",
        "fedecider/runs.py": "import json\n\ndef metrics():\n    return 1\n",
        "fedecider/federation.py": "from fedecider.methods import METHODS\nfrom . import config\n",
        "fedecider/methods/__init__.py": (
            "from .local import Local\nfrom fedecider.methods.fedavg import FedAvg\n"
            "METHODS = {m.name: m for m in (Local, FedAvg)}\n"
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
    return set(called(root, write_notebook(root, "probe", *cells), **more)) - {
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
    cell = "from fedecider import federation"
    everything = closure(root, cell)
    assert {"fedecider/methods/local.py", "fedecider/methods/fedavg.py"} <= everything
    local = closure(root, cell, chosen={"fedecider.methods": "fedecider.methods.local"})
    assert everything - local == {"fedecider/methods/fedavg.py"}
    edit(root / "fedecider/methods/__init__.py", "from fedecider.methods.fedavg import FedAvg", "")
    # fedavg builds on local, so it keeps it
    fedavg = closure(root, cell, chosen={"fedecider.methods": "fedecider.methods.fedavg"})
    assert {"fedecider/methods/local.py", "fedecider/methods/fedavg.py"} <= fedavg


def test_digests_ignore_comments_docstrings_and_layout_but_no_code(root):
    notebook = root / "notebooks/demo.ipynb"
    before = called(root, notebook)
    edit(root / "fedecider/runs.py", "    return 1", '    """Help."""\n    # why\n    return (1)')
    edit(root / "requirements.lock", "# pins", "# exact pins")
    assert called(root, notebook) == before
    edit(root / "fedecider/runs.py", "(1)", "(2)")
    after = called(root, notebook)
    assert {name for name in after if after[name] != before[name]} == {"fedecider/runs.py"}
    edit(root / "requirements.lock", "torch==1", "torch==2")
    assert called(root, notebook)["requirements.lock"] != before["requirements.lock"]


def test_a_package_list_counts_only_by_what_it_defines(root):
    notebook = root / "notebooks/demo.ipynb"
    before = called(root, notebook)
    edit(root / "figures/__init__.py", "bars, heat", "bars, heat, style")
    assert called(root, notebook) == before
    edit(root / "figures/__init__.py", "__all__", "SIZE = 3\n__all__")
    assert called(root, notebook) != before


def test_prose_counts_only_where_it_is_shown(root):
    code, prose = "x = 1", {"prose": True}
    first = write_notebook(root, "probe", code, prose="# One")
    quiet, shown = called(root, first), called(root, first, **prose)
    second = write_notebook(root, "probe", code, prose="# Two")
    assert called(root, second) == quiet
    assert called(root, second, **prose) != shown


def finished(root: Path, stage: Stage) -> dict:
    """Pretend that the stage ran: its outputs lie there, and it is stamped."""
    results = root / "results"
    current = stages.key(stage, results, root)
    stages.begin(stage, results, current)
    for pattern in stage.outputs:
        (results / pattern).parent.mkdir(parents=True, exist_ok=True)
        (results / pattern).write_text("made")
    stages.finish(stage, results, current, seconds=2.0)
    return current


def reason(root: Path, stage: Stage) -> str | None:
    results = root / "results"
    return stages.why(stage, results, stages.key(stage, results, root))


def test_a_stage_says_what_changed(root, tmp_path_factory):
    dumps = tmp_path_factory.mktemp("dumps")
    (dumps / "a.json.gz").write_text("raw")
    results = root / "results"
    (results / "data").mkdir()
    (results / "data/items.csv").write_text("1")
    stage = Stage(
        "demo",
        notebook="demo",
        parameters={"seed": 0, "settings": {"lr": 0.1}},
        unkeyed={"results": "../results/demo"},
        inputs=("data/**/*",),
        outputs=("figures/one.png",),
        sources=(dumps,),
    )
    assert reason(root, stage) == "first run"
    finished(root, stage)
    assert reason(root, stage) is None

    moved = Stage(**{**vars(stage), "unkeyed": {"results": "elsewhere"}})
    assert reason(root, moved) is None
    other = Stage(**{**vars(stage), "parameters": {"seed": 0, "settings": {"lr": 0.2}}})
    assert reason(root, other) == "parameter changed: settings.lr"

    edit(results / "data/items.csv", "1", "2")
    assert reason(root, stage) == "input changed: data/items.csv"
    edit(results / "data/items.csv", "2", "1")
    assert reason(root, stage) is None  # content counts, not the time
    edit(dumps / "a.json.gz", "raw", "new")
    assert reason(root, stage) == f"input changed: {dumps.name}/a.json.gz"
    finished(root, stage)

    edit(root / "figures/style.py", "1", "2")
    edit(root / "figures/bars.py", "style", "style as s")
    edit(root / "fedecider/runs.py", "return 1", "return 3")
    assert reason(root, stage) == ("code changed: fedecider/runs.py, figures/bars.py and 1 more")
    finished(root, stage)
    (results / "figures/one.png").write_text("longer than it was")
    assert reason(root, stage) == "output changed: figures/one.png"
    (results / "figures/one.png").unlink()
    assert reason(root, stage) == "output missing: figures/one.png"


def test_what_belongs_to_another_key_is_cleared_and_an_interrupted_run_is_kept(root):
    results, run = root / "results", root / "results/runs/local-seed0"

    def stage(lr: float) -> Stage:
        return Stage(
            "run",
            notebook="demo",
            parameters={"lr": lr},
            outputs=("runs/local-seed0/result.json",),
            clears=("runs/local-seed0",),
        )

    def start(lr: float) -> dict:
        current = stages.key(stage(lr), results, root)
        stages.begin(stage(lr), results, current)
        return current

    start(0.1)
    run.mkdir(parents=True)
    (run / "checkpoint.json").write_text("round 3")
    # stopped here; the same key goes on from the checkpoint
    assert reason(root, stage(0.1)) == "goes on from where it was stopped"
    start(0.1)
    assert (run / "checkpoint.json").exists()
    # another key must not
    assert "changed since it was stopped" in reason(root, stage(0.2))
    start(0.2)
    assert not run.exists()
    finished(root, stage(0.2))
    assert reason(root, stage(0.2)) is None
    # finished, output lost: the rest of the folder is still of this key
    (run / "checkpoint.json").write_text("round 3")
    (run / "result.json").unlink()
    assert reason(root, stage(0.2)) == "output missing: runs/local-seed0/result.json"
    start(0.2)
    assert (run / "checkpoint.json").exists()
    # stopped under 0.2 after it had once finished under 0.1: no stamp may speak for 0.1
    finished(root, stage(0.1))
    start(0.2)
    assert reason(root, stage(0.1)) is not None


def test_checkpoints_are_no_input_but_tables_are(root):
    results = root / "results"
    run = results / "runs/goodreads/local-seed0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("1")
    (run / "checkpoint.safetensors").write_text("1")
    (run / ".part").write_text("1")
    stage = Stage("table", notebook="demo", inputs=("runs/goodreads/**/*",))
    assert list(stages.key(stage, results, root)["inputs"]) == [
        "runs/goodreads/local-seed0/metrics.csv"
    ]


def test_a_stage_that_writes_nothing_is_an_error(root):
    results = root / "results"
    stage = Stage("demo", notebook="demo", outputs=("figures/*.png",))
    current = stages.key(stage, results, root)
    stages.begin(stage, results, current)
    with pytest.raises(StageError, match=r"demo ended without writing .*figures/\*\.png"):
        stages.finish(stage, results, current, seconds=1.0)
    assert reason(root, stage) is not None


def test_a_missing_notebook_and_a_broken_stamp(root):
    with pytest.raises(StageError, match=r"nowhere\.ipynb is missing"):
        stages.key(Stage("x", notebook="nowhere"), root / "results", root)
    stage = Stage("demo", notebook="demo")
    finished(root, stage)
    stages.stamp_path(stage, root / "results").write_text("{")
    assert reason(root, stage) == "first run"


def test_the_last_measured_time_is_expected(root):
    results = root / "results"
    stage = Stage("demo", notebook="demo", seconds=99.0)
    assert stages.expected_seconds(stage, results) == 99.0
    current = finished(root, stage)
    assert stages.expected_seconds(stage, results) == 2.0
    stages.begin(stage, results, current)  # still known while it runs again
    assert stages.expected_seconds(stage, results) == 2.0
    assert json.loads((results / "stages/demo.started.json").read_text())["seconds"] == 2.0
