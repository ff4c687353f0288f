"""The pipeline on toy notebooks: order, skipping, resuming, messages."""

import fcntl
import functools
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import Task, WorkflowError

ROOT = Path(__file__).resolve().parents[1]


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
def toy(tmp_path: Path) -> tuple[Path, list[Task]]:
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
    return tmp_path, toy_tasks(number=1)


def toy_tasks(number: int) -> list[Task]:
    where = {"results": "../results"}
    return [
        Task(
            "source",
            "notebooks/source.ipynb",
            parameters={"number": number},
            where=where,
            outputs=("data/number.txt",),
        ),
        Task(
            "picture",
            "notebooks/picture.ipynb",
            where=where,
            inputs=("data/*",),
            outputs=("figures/one.txt",),
            needs=("source",),
        ),
    ]


def run(root: Path, todo: list[Task]) -> tuple[int, list[str]]:
    """How many tasks ran, and the lines that the user saw."""
    stream = io.StringIO()
    ran, _ = bring_up_to_date(todo, root / "results", root, stream)
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
    ran, lines = run(root, toy_tasks(number=11))
    assert ran == 1
    assert lines[0].startswith("[1/2] source: parameter changed: number")
    assert lines[-1] == "[2/2] picture: up to date"

    ran, lines = run(root, toy_tasks(number=2))
    assert ran == 2
    assert any("[2/2] picture: input changed: data/number.txt" in line for line in lines)


def test_a_failure_names_the_error_and_the_notebook_and_is_tried_again(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0\nnumber = 1", "raise ValueError('no such\\nlake')")
    with pytest.raises(WorkflowError) as caught:
        run(root, todo)
    assert str(caught.value) == (
        "source failed: ValueError: no such ... lake\n"
        f"the notebook: {root}/results/notebooks/source.ipynb"
    )
    assert not (root / "results/figures").exists()
    with pytest.raises(WorkflowError, match="source failed"):  # nothing says that it was done
        run(root, todo)


def test_a_kernel_that_dies_is_a_sentence(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0\nnumber = 1", "import os\nos._exit(1)")
    with pytest.raises(WorkflowError, match="its process died"):
        run(root, todo)


def test_a_parameter_that_the_notebook_does_not_have_is_refused(toy):
    root, todo = toy
    write_notebook(root, "source", "results = 0", "number = 1")
    with pytest.raises(WorkflowError, match=r"source\.ipynb has no parameter 'number': known"):
        run(root, todo)


def test_two_drivers_do_not_share_a_folder(toy):
    root, todo = toy
    (root / "results").mkdir()
    with (root / "results/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorkflowError, match="another make reproduce is at work"):
            run(root, todo)


_DRIVE = """
import sys
from pathlib import Path
from notebooks.workflow import __main__ as command
from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import Task

root = Path(sys.argv[1])
task = Task("slow", "notebooks/slow.ipynb", where={"results": "../results"},
            parameters={"number": int(sys.argv[2])}, outputs=("run/done",), clears=("run",))
command._run = lambda _: bring_up_to_date([task], root / "results", root) and 0
sys.exit(command.main([]))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_from_where_it_was(tmp_path, sent):
    write_notebook(
        tmp_path,
        "slow",
        'results = ""\nnumber = 0',
        "import os, time\nfrom pathlib import Path\n"
        "run = Path(results, 'run')\n"
        "rounds = run / 'rounds'\n"
        "if not rounds.exists():\n"
        "    run.mkdir()\n"
        "    rounds.write_text(str(os.getpid()))\n"
        "    time.sleep(number)\n"
        "(run / 'done').write_text('second time')",
    )
    command = [sys.executable, "-c", _DRIVE, str(tmp_path)]
    # A shell's background job starts with Ctrl-C ignored, and so would all that it starts.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    first = subprocess.Popen(
        [*command, "120"], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    )
    rounds, deadline = tmp_path / "results/run/rounds", time.monotonic() + 60
    while not (rounds.exists() and rounds.read_text()):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    kernel = int(rounds.read_text())
    first.send_signal(sent)
    if sent == signal.SIGKILL:  # nobody is left to end the kernel
        first.wait(timeout=60)
        os.kill(kernel, signal.SIGKILL)
        first.stderr.close()
    else:
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 130
        assert errors.strip() == "stopped; the same command goes on from here"
        with pytest.raises(ProcessLookupError):  # the notebook's process has gone too
            os.kill(kernel, 0)

    number, reason = "120", "goes on from where it was stopped"
    if sent == signal.SIGTERM:  # what another parameter made is not mixed in
        number, reason = "0", "parameters, inputs or code changed since it was stopped"
    second = subprocess.run(
        [*command, number], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert second.returncode == 0, second.stderr
    assert f"slow: {reason}" in second.stdout
    assert (tmp_path / "results/run/done").read_text() == "second time"
    assert (int(rounds.read_text()) == kernel) == (sent != signal.SIGTERM)


def test_a_failed_function_is_named_with_its_error(tmp_path):
    (tmp_path / "report.py").write_text("")
    todo = [Task("report", "report.py", call=lambda record_of: record_of("nix")["seconds"])]
    with pytest.raises(WorkflowError, match="report failed: KeyError: 'seconds'"):
        run(tmp_path, todo)


def test_bars_of_a_notebook_are_shown_without_their_litter(toy):
    root, _ = toy
    write_notebook(
        root,
        "source",
        "results = 0",
        "from tqdm import tqdm\n"
        "for _ in tqdm(range(2), desc='outer'):\n"
        "    for _ in tqdm(range(3), desc='inner', leave=False):\n"
        "        pass",
    )
    ran, lines = run(root, [Task("source", "notebooks/source.ipynb")])
    assert ran == 1 and len(lines) == 3
    assert "outer: 100%" in lines[1] and not any("\x1b" in line for line in lines)
