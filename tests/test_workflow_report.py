"""The report: pictures, text, and when it is made anew."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_workflow_tasks import preset

from notebooks.workflow import code_digest, pipeline, report
from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import Task

ROOT = Path(__file__).resolve().parents[1]
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360000000020001e221bc330000000049454e44ae426082"
    )
).decode()


def test_the_report_holds_pictures_text_and_what_was_run(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    entry, parameters = "notebooks/heat.ipynb", {"dataset": "goodreads"}
    heat = Task("heat-goodreads", entry, parameters=parameters, in_report=True)
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
    records = {"heat-goodreads": {"seconds": 65.0, "outputs": {"figures/heat.png": 1}}}
    monkeypatch.chdir(tmp_path)
    report.task("tiny", preset(), [heat]).call(records.get)
    page = (tmp_path / "report.html").read_text()
    assert page.count(f"data:image/png;base64,{PIXEL}") == 1
    assert '<a href="#heat-goodreads">Figure 4: weights (Goodreads)</a>' in page
    assert '<a id="heat-goodreads">' in page
    assert "What it shows." in page and "<b>7</b>" in page and "1 min 5 s" in page
    assert "<h3" in page and "planted_users" in page and 'href="figures/heat.png"' in page
    for hidden in ("draw(secret)", "###", "python 3.11 |", "&lt;Figure&gt;", "<script"):
        assert hidden not in page


@pytest.mark.filterwarnings("error")
def test_cells_of_the_same_name_in_two_notebooks_do_not_meet(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    drawn = [Task(name, "notebooks/heat.ipynb", in_report=True) for name in ("heat-a", "heat-b")]
    for task in drawn:
        cells = [new_markdown_cell(f"# Picture {task.name}", id="title")]
        cells.append(new_code_cell("a", id="table", outputs=[new_output("stream", text="7")]))
        nbformat.write(new_notebook(cells=cells), tmp_path / f"notebooks/{task.name}.ipynb")
    monkeypatch.chdir(tmp_path)
    report.task("tiny", preset(), drawn).call(lambda name: {})
    page = (tmp_path / "report.html").read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids) and {"heat-a", "heat-b", "run"} <= set(ids)


def write_picture(results: Path, prose: str) -> Task:
    (results / "notebooks").mkdir(exist_ok=True)
    made = new_notebook(cells=[new_markdown_cell(prose)])
    nbformat.write(made, results / "notebooks/heat.ipynb")
    return Task("heat", "notebooks/heat.ipynb", in_report=True)


def test_the_report_is_current_until_a_picture_changes(tmp_path):
    heat = write_picture(tmp_path, "# One")
    last = report.task("tiny", preset(), [heat])
    assert run_report(tmp_path, last) == 1
    assert run_report(tmp_path, last) == 0
    write_picture(tmp_path, "# Two")
    assert run_report(tmp_path, last) == 1
    assert run_report(tmp_path, report.task("tiny", preset(seeds=[0, 1]), [heat])) == 1


def test_the_report_is_made_anew_when_what_it_calls_changed(tmp_path, monkeypatch):
    last = report.task("tiny", preset(), [])
    assert run_report(tmp_path, last) == 1
    assert run_report(tmp_path, last) == 0
    digests = code_digest.code_digest(ROOT, last.entry, packages=last.packages)
    # whatever of the project it imports counts
    for name in ("report", "pipeline", "preset", "progress"):
        assert f"notebooks/workflow/{name}.py" in digests
    assert {"fedecider/runs.py", "figures/style.py"} <= digests.keys()
    changed = {**digests, "notebooks/workflow/progress.py": "new"}
    monkeypatch.setattr(pipeline, "code_digest", lambda *_: changed)
    assert run_report(tmp_path, last) == 1


def run_report(results: Path, last: Task) -> int:
    return bring_up_to_date([last], results, ROOT, io.StringIO())[0]
