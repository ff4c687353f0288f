"""The report: pictures, text, and when it is made anew."""

import ast
import base64
import io
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_plan import preset

from notebooks import report, reproduce, stages
from notebooks.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360000000020001e221bc330000000049454e44ae426082"
    )
).decode()


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
