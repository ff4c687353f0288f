"""Form of every notebook, and every notebook run end to end on the tiny model."""

import ast
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from papermill.exceptions import PapermillExecutionError

from fedecider.parameters import refuse_unknown
from notebooks.workflow import __main__ as command
from notebooks.workflow import report
from notebooks.workflow.execute import ThisPython, bring_up_to_date
from notebooks.workflow.pipeline import Pipeline, Task
from notebooks.workflow.preset import complete, load
from notebooks.workflow.tasks import pictures, tasks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST = 120  # lines of code in a notebook

EXPECTED = {
    "01_prepare",
    "02_run",
    "03_search",
    "benchmark",
    "figure_1_local_vs_fedavg",
    "figure_2_scale_noise",
    "figure_3_overview",
    "figure_4_alpha_heatmap",
    "figure_5_alpha_convergence",
    "figure_6_sensitivity",
    "figure_7_quality_vs_bytes",
    "table_1_datasets",
    "table_2_goodreads",
    "table_3_amazon",
    "table_4_ablations",
    "table_5_communication",
    "table_6_privacy",
    "table_7_backbones",
    "table_8_theory",
    "table_9_cost",
}


def notebook(task: Task) -> str | None:
    """Name of the task's notebook; None for the report."""
    return Path(task.entry).stem if task.entry.endswith(".ipynb") else None


def test_all_notebooks_are_here():
    assert {path.stem for path in NOTEBOOKS} >= EXPECTED


def test_every_figure_and_table_says_what_it_reads():
    drawn = {path.stem for path in NOTEBOOKS if path.stem.startswith(("figure_", "table_"))}
    assert {picture.notebook for picture in pictures(ROOT)} == drawn
    assert all(picture.reads for picture in pictures(ROOT))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None
        assert not cell.source.startswith(("%", "!"))
    assert sum(len(cell.source.splitlines()) for cell in code) <= LONGEST
    assert re.match(r"# \S", notebook.cells[0].source), "the first cell is the title"
    # no logic beyond calls and display
    tree = ast.parse("\n".join(cell.source for cell in code))
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))
    behind = code[code.index(tagged[0]) + 1]
    assert "refuse_unknown(globals())" in behind.source, "the first cell behind the parameters"
    # every default stands for one value that papermill can replace
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign)


def papermill_by_hand(path: Path, folder: Path, **parameters) -> list:
    """The cells that a plain `papermill` leaves; whatever it raises."""
    done = folder / path.name
    kernel = type("Kernel", (ThisPython,), {"process_log": folder / "log"})
    options = {"kernel_name": "python3", "kernel_manager_class": kernel, "progress_bar": False}
    papermill.execute_notebook(path, done, parameters, cwd=path.parent, **options)
    return nbformat.read(done, as_version=4).cells


@pytest.mark.parametrize("name", ["01_prepare", "table_1_datasets"])
def test_papermill_by_hand_refuses_a_parameter_that_the_notebook_does_not_have(name, tmp_path):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    own = {"results": str(tmp_path / "results")}
    with pytest.raises(PapermillExecutionError, match="no parameter 'resluts': did you mean 'res"):
        papermill_by_hand(path, tmp_path, **own, resluts="elsewhere")
    assert not (tmp_path / "results").exists()
    cells = nbformat.read(tmp_path / path.name, as_version=4).cells
    # An executed notebook can be run again: its injected cell is replaced.
    assert any("injected-parameters" in cell.metadata.tags for cell in cells)
    if name == "table_1_datasets":
        assert papermill_by_hand(tmp_path / path.name, tmp_path, **own)
        assert (tmp_path / "results").exists()


def test_without_papermill_there_is_nothing_to_refuse():
    refuse_unknown({})
    refuse_unknown({"In": ["", "a = 1", "refuse_unknown(globals())"]})
    refuse_unknown({"In": ["", "a = 1\nb: int = 2", "# Parameters\nb = 3\n", "refuse"]})
    with pytest.raises(ValueError, match="no parameter 'c': they are a, b$"):
        refuse_unknown({"In": ["", "a = 1\nb: int = 2", "# Parameters\nc = 3\n", "refuse"]})


def drive(results: Path, root: Path = ROOT) -> SimpleNamespace:
    """What `make reproduce PRESET=tiny` does, with the lines that the user sees."""
    preset = complete(load("tiny", root), "tiny", root)
    todo = tasks(preset, results, root)
    todo.append(report.task("tiny", preset, todo))
    stream = io.StringIO()
    ran, _ = bring_up_to_date(todo, results, root, stream)
    return SimpleNamespace(ran=ran, todo=todo, lines=stream.getvalue().splitlines())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """The tiny preset run once, for all tests below."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDECIDER_CACHE", str(folder / "cache"))
        # Matrices this small gain nothing from threads, and lose much on a busy machine.
        patch.setenv("OMP_NUM_THREADS", "1")
        first = drive(folder / "results")
        yield SimpleNamespace(results=folder / "results", **vars(first))


def test_every_notebook_runs(tiny):
    assert tiny.ran == len(tiny.todo)
    run = {notebook(task) for task in tiny.todo} - {None}
    assert run == {path.stem for path in NOTEBOOKS} - {"benchmark"}  # see test_benchmark.py
    pipeline = Pipeline(tiny.todo, ROOT, print)
    with pipeline.open(tiny.results):
        for task in tiny.todo:
            record = pipeline.records.get_values(task.name)
            assert record["outputs"] and record["seconds"] > 0
    for task in tiny.todo:
        if notebook(task):
            executed = tiny.results / "notebooks" / f"{task.name}.ipynb"
            cells = nbformat.read(executed, as_version=4).cells
            assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


def test_the_files_that_a_user_looks_for_are_there(tiny):
    def names(folder: str, pattern: str) -> list[str]:
        return sorted(path.name for path in (tiny.results / folder).glob(pattern))

    for dataset in ("goodreads", "amazon"):
        assert len(names(f"data/{dataset}", "*/meta.json")) == 3
        for number in range(1, 8) if dataset == "goodreads" else (1, 5):
            assert names("figures", f"figure_{number}_*{dataset}*.png")
            assert names("figures", f"figure_{number}_*{dataset}*.pdf")
    for number in (1, 4, 5, 6, 7, 8, 9):
        for ending in ("csv", "md", "tex"):
            assert names("tables", f"table_{number}_*.{ending}"), (number, ending)
    for table in ("table_2_goodreads", "table_3_amazon"):
        for ending in ("csv", "md", "tex"):
            wanted = 4 if ending == "csv" else 3  # a ranker each, and the bootstrap's numbers
            assert len(names("tables", f"{table}*.{ending}")) == wanted
    assert names("runs/goodreads", "*") == [
        "als-seed0",
        "fedavg-seed0",
        "fedecider-seed0",
        "local-seed0",
        "lora-sim-seed0",
        "popularity-seed0",
        "zero-shot-seed0",
    ]
    assert names("search/goodreads/fedecider", "chosen.json")
    chosen = json.loads((tiny.results / "search/goodreads/fedecider/chosen.json").read_text())
    ran = json.loads((tiny.results / "runs/goodreads/fedecider-seed0/config.json").read_text())
    assert ran["direction"]["alpha_lr"] == chosen["settings"]["alpha_lr"]
    swept = json.loads(
        (tiny.results / "sweeps/goodreads/alpha_init-0.1-fedecider-seed0/config.json").read_text()
    )
    assert swept["direction"]["alpha_init"] == 0.1
    assert swept["direction"]["alpha_lr"] == ran["direction"]["alpha_lr"]


def test_every_number_of_a_table_is_traceable_to_a_run(tiny):
    for path in (tiny.results / "tables").glob("table_*.csv"):
        if "attacks" in path.name or "bootstrap" in path.name:
            continue
        rows = pd.read_csv(path)
        [column] = [name for name in rows.columns if name in ("runs", "run", "folder")]
        for named in rows[column].dropna():
            for one in str(named).split(";"):
                places = [tiny.results / part / one for part in ("", "runs", "sweeps", "data")]
                assert any(place.is_dir() for place in places), (path.name, one)


def test_tables_show_every_method_that_ran_and_gaps_for_the_others(tiny):
    [path] = (tiny.results / "tables").glob("table_2_goodreads*sampled*.md")
    for method in ("zero-shot", "popularity", "local", "fedavg", "fedecider"):
        assert re.search(method, path.read_text(), re.IGNORECASE), method


def test_table_files_hold_all_six_metrics_and_the_report_shows_four(tiny):
    for path in (tiny.results / "tables").glob("table_[23]_*_*.csv"):
        if "bootstrap" not in path.name:
            rows = pd.read_csv(path)
            assert set(rows["metric"]) == {f"hit@{k}" for k in (1, 5, 10)} | {
                "ndcg@5",
                "ndcg@10",
                "mrr@10",
            }
            assert rows.loc[rows["method"] == "fedecider", "mean"].notna().all()
    page = (tiny.results / "report.html").read_text()
    assert ">NDCG@10<" in page and ">MRR@10<" not in page and ">Hit@1<" not in page


def test_metrics_are_shares_for_every_domain_method_and_protocol(tiny):
    from fedecider import results

    metrics = results.metrics(tiny.results / "runs")
    assert metrics["value"].between(0, 1).all()
    mine = metrics[metrics["dataset"] == "goodreads"]
    assert set(mine["protocol"]) == {"catalogue", "sampled"}
    assert {"zero-shot", "local", "fedavg", "fedecider", "popularity"} <= set(mine["method"])
    assert mine["domain"].nunique() == 3
    assert isinstance(metrics, pd.DataFrame)


def test_the_report_has_every_figure_and_table(tiny):
    page = (tiny.results / "report.html").read_text()
    shown = [task for task in tiny.todo if task.in_report]
    figures = [task for task in shown if task.name.startswith("figure")]
    assert page.count("data:image/png;base64,") >= len(figures)
    for task in shown:
        assert f'href="#{task.name}"' in page and f'id="{task.name}"' in page
    for file in re.findall(r'href="((?:figures|tables)/[^"]+)"', page):
        assert (tiny.results / file).is_file()
    assert page.count("<table") >= 4
    assert "What was run, and how" in page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_report_renders_in_a_browser(tiny, tmp_path):
    """Every picture shows, and nothing stands outside the page, in a wide and a narrow window."""
    probe = """<script>window.onload = () => {
      const pictures = [...document.images];
      const none = "No description has been provided for this image";
      document.title = JSON.stringify({
        pictures: pictures.length,
        broken: pictures.filter(one => !one.complete || one.naturalWidth === 0).length,
        unnamed: pictures.filter(one => !one.alt || one.alt === none).length,
        beyond: document.documentElement.scrollWidth - window.innerWidth,
      })}</script></body>"""
    page = (tiny.results / "report.html").read_text()
    (tmp_path / "report.html").write_text(page.replace("</body>", probe))
    for width in (1280, 500):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
        command += [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
        command += [f"file://{tmp_path / 'report.html'}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1])
        found = json.loads(title)
        figures = [s for s in tiny.todo if s.in_report and s.name.startswith("figure")]
        assert found["pictures"] >= len(figures)
        assert found["broken"] == found["unnamed"] == 0
        assert found["beyond"] <= 0


def test_a_second_run_does_nothing(tiny):
    again = drive(tiny.results)
    assert again.ran == 0
    assert all(line.endswith("up to date") for line in again.lines)


def own_tables(folder: Path, domains: tuple[str, ...] = ("adults", "children")) -> Path:
    """Plain tables as data_prep/README.md describes them, made up."""
    folder.mkdir()
    for seed, domain in enumerate(domains):
        generator = np.random.default_rng(seed)
        titles = [f"The {word} of {number}" for number in range(6) for word in ("cat", "sea")]
        loans = ["user, item, position"]
        for user in range(10):
            chosen = generator.permutation(len(titles))[:6]
            loans += [f"u{user}, b{item}, {place}" for place, item in enumerate(chosen)]
        (folder / f"{domain}.interactions.csv").write_text("\n".join(loans) + "\n")
        items = ["item,title", *(f"b{number},{title}" for number, title in enumerate(titles))]
        (folder / f"{domain}.items.csv").write_text("\n".join(items) + "\n")
    return folder


def test_a_third_data_set_goes_all_the_way_under_its_own_name(tmp_path, monkeypatch):
    """The preset in data_prep/README.md, with made-up tables and the tiny model."""
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    readme = (ROOT / "data_prep/README.md").read_text()
    content = yaml.safe_load(re.search(r"```yaml\n(.+?)```", readme, re.DOTALL)[1])
    assert set(content["datasets"]) == {"library"}
    small = load("tiny", ROOT)
    domains = ("NA", "sci fi")  # as a missing value is written, and of two words
    content["datasets"]["library"]["source"] = str(own_tables(tmp_path / "tables", domains))
    content |= {"model": "tiny", "methods": ["fedecider"], "federation": small.federation}
    content["prepare"] = {"item_core": 1, "negatives": 5}
    content["shown"] = ["figure_1", "figure_4"]  # a test need not draw all
    (tmp_path / "library.yaml").write_text(yaml.safe_dump(content))
    results = tmp_path / "results"
    arguments = ["--preset", str(tmp_path / "library.yaml"), "--results", str(results)]
    assert command.main(arguments) == 0

    for domain in domains:
        assert (results / "data/library" / domain / "meta.json").is_file()
    assert (results / "runs/library/fedecider-seed0/result.json").is_file()
    shown = (results / "notebooks/02_run-library-fedecider-seed0.ipynb").read_text()
    assert shown.count("<th>NA</th>") + shown.count("<td>NA</td>") >= 3
    for ending in ("csv", "md", "tex"):
        [path] = (results / "tables").glob(f"table_2_library*sampled*.{ending}")
        text = path.read_text()
        assert re.search("library", text, re.IGNORECASE) and "oodreads" not in text
    figures = {path.stem for path in (results / "figures").glob("*.png")}
    assert figures == {
        "figure_1_local_vs_fedavg-library-catalogue",
        "figure_1_local_vs_fedavg-library-sampled",
        "figure_4_alpha_heatmap-library",
    }
    headings = [
        line
        for path in (results / "notebooks").glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert headings and not any("oodreads" in line or "mazon" in line for line in headings)
    page = (results / "report.html").read_text()
    titles = re.findall(r"<h[1-3].*?</h[1-3]>", page, re.DOTALL)
    assert sum("(Library" in title for title in titles) == 4  # a table and three figures
    assert not any("oodreads" in title or "mazon" in title for title in titles)


def test_a_name_with_a_comma_is_refused_with_the_rule_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))
    source = own_tables(tmp_path / "tables", ("arts, crafts", "children"))
    content = {"about": "x", "model": "tiny", "methods": ["local"], "seeds": [0]}
    content["datasets"] = {"library": {"kind": "plain", "source": str(source)}}
    (tmp_path / "library.yaml").write_text(yaml.safe_dump(content))
    results = tmp_path / "results"
    arguments = ["--preset", str(tmp_path / "library.yaml"), "--results", str(results)]
    assert command.main(arguments) == 1
    told = "".join(capsys.readouterr())
    assert "domain 'arts, crafts': expected letters, digits" in told
    assert not (results / "runs").exists() and not list(results.glob("data/library/*"))


def test_an_edited_module_runs_only_the_tasks_that_call_it(tiny, tmp_path):
    """In a copy of the repository: the results are the originals', the edited code is not."""
    copy = tmp_path / "copy"
    for folder in ("fedecider", "data_prep", "figures", "notebooks"):
        shutil.copytree(
            ROOT / folder,
            copy / folder,
            ignore=shutil.ignore_patterns("__pycache__", ".*", "gallery"),
        )
    shutil.copy(ROOT / "requirements.lock", copy)
    results = tmp_path / "results"
    shutil.copytree(tiny.results, results)

    def stale(module: str, code: str) -> set[str]:
        path = copy / module
        before = path.read_text()
        path.write_text(before + code)
        pipeline = Pipeline(tiny.todo, copy, print)
        with pipeline.open(results):
            reasons = {
                notebook(task): reason
                for task in tiny.todo
                if notebook(task) and (reason := pipeline.stale_reason(task.name))
            }
        path.write_text(before)
        assert set(reasons.values()) <= {f"code changed: {module}"}
        return set(reasons)

    assert stale("figures/figure_5.py", "\n# a comment\n") == set()
    assert stale("figures/figure_5.py", "\nNEW = 1\n") == {"figure_5_alpha_convergence"}
    assert stale("data_prep/settings.py", "\nNEW = 1\n") == {"01_prepare"}
    assert stale("fedecider/federation.py", "\nNEW = 1\n") == {"02_run", "03_search"}
    # what only reads results sends no federation into training once more
    assert not stale("fedecider/results.py", "\nNEW = 1\n") & {"02_run", "03_search"}
    assert stale("data_prep/goodreads.py", "\nNEW = 1\n") == {"01_prepare"}
    assert stale("fedecider/rankers/grounding.py", "\nNEW = 1\n") >= {"02_run"}

    with (copy / "figures/figure_5.py").open("a") as module:
        module.write("\nNEW = 1\n")
    again = drive(results, copy)
    # where the results lie is no parameter; nothing else differs
    ran = [line for line in again.lines if line.startswith("[") and "up to date" not in line]
    assert again.ran == len(ran) == 3
    assert all("figure_5" in line or "report" in line for line in ran)
