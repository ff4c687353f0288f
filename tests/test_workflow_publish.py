"""The gallery: which pictures are drawn of a pack, what goes in, and the summary of its runs."""

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedecider.runs import COLUMNS
from figures import summary
from notebooks.workflow import publish
from notebooks.workflow.pipeline import Task, WorkflowError
from notebooks.workflow.preset import load
from notebooks.workflow.tasks import tasks

SAMPLE = publish.ROOT / "figures/gallery/sample"
METHODS = {  # label, family, color, order
    "popularity": ("Popularity", "no language model", "#000000", 1),
    "local": ("Local", "reference", "#009e73", 2),
    "fedavg": ("FedAvg", "federated", "#0072b2", 3),
    "flora": ("FLoRA", "federated", "#cc79a7", 4),
    "fedecider": ("FeDecider", "federated", "#d55e00", 5),
    "fedecider-no-both": ("– w/o both", "ablation", "#997700", 6),
}


def write_picture(root: Path, name: str, **metadata) -> None:
    """A notebook that writes a CSV, a PDF and a PNG under the name of its task."""
    parameters = 'results = ""\ndataset = ""'
    code = (
        "from pathlib import Path\n"
        "Path(results, 'figures').mkdir(exist_ok=True)\n"
        "for ending in ('csv', 'pdf', 'png'):\n"
        f"    Path(results, 'figures', f'{name}-{{dataset}}.{{ending}}').write_text('1')"
    )
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    made = new_notebook(cells=[tagged, new_code_cell(code)], metadata={"fedecider": metadata})
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(made, root / f"notebooks/{name}.ipynb")


def test_pictures_are_drawn_of_what_is_packed_and_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    results, gallery, presets = (tmp_path / name for name in ("results", "gallery", "presets"))
    presets = tmp_path / "notebooks/presets"
    for folder in (results, gallery, presets):
        folder.mkdir(parents=True)
    (presets / "small.yaml").write_text(
        "about: x\nmodel: tiny\nmethods: [local]\nseeds: [0]\n"
        "datasets: {goodreads: {kind: planted}, amazon: {kind: planted}}\n"
    )
    pd.DataFrame({"run": ["runs/goodreads/local-seed0"]}).to_parquet(gallery / "runs.parquet")
    write_picture(tmp_path, "figure_1_runs", reads=["runs"])
    write_picture(tmp_path, "figure_2_more", reads=["runs", "sweeps"])
    write_picture(tmp_path, "figure_3_sweeps", reads=["sweeps"])
    write_picture(tmp_path, "figure_4_data", reads=["runs", "data"])
    write_picture(tmp_path, "figure_5_models", reads=["runs", "adapters"])

    def drawn() -> list[str]:
        return sorted(path.name for path in (gallery / "figures").iterdir())

    # nothing of a data set that has no run, no sweeps, and neither data nor models here
    assert publish.draw("small", results, gallery) == 2
    assert drawn() == ["figure_1_runs-goodreads.png", "figure_2_more-goodreads.png"]
    assert publish.draw("small", results, gallery) == 0

    for path in ("data/goodreads/a/meta.json", "runs/goodreads/local-seed0/metrics.csv"):
        (results / path).parent.mkdir(parents=True)
        (results / path).write_text("1")
    adapter = results / "runs/goodreads/local-seed0/adapters/a/adapter_config.json"
    adapter.parent.mkdir(parents=True)
    adapter.write_text("{}")
    assert publish.draw("small", results, gallery) == 2
    # numbers that cannot be computed from the pack go in, too
    names = ("figure_4_data-goodreads", "figure_5_models-goodreads")
    assert drawn()[2:] == [f"{name}.{ending}" for name in names for ending in ("csv", "png")]

    # a pack with other content: what shows runs is drawn anew
    runs = ["runs/goodreads/local-seed0", "runs/goodreads/fedavg-seed0"]
    pd.DataFrame({"run": runs}).to_parquet(gallery / "runs.parquet")
    assert publish.draw("small", results, gallery) == 3
    assert "input changed: runs.parquet" in capsys.readouterr().out


def test_the_summary_stands_between_the_marks_of_a_readme(tmp_path):
    for path in SAMPLE.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    page = publish.summarise(tmp_path, readme)
    assert readme.read_text() == f"before\n{page}after\n" and "old" not in page
    readme.write_text("no marks")
    with pytest.raises(WorkflowError, match="needs the lines"):
        publish.summarise(tmp_path, readme)


def frame(rows: list[dict]) -> pd.DataFrame:
    """Rows of a results frame, with what the methods are called."""
    return pd.DataFrame(
        row | dict(zip(("label", "family", "color", "order"), METHODS[row["method"]], strict=True))
        for row in rows
    )


def metrics(values: dict[str, float]) -> pd.DataFrame:
    """NDCG@10 of methods on one data set, sampled protocol."""
    fixed = {"dataset": "toy", "seed": 0, "domain": "a", "protocol": "sampled"}
    fixed |= {"ranker": "likelihood", "metric": "ndcg@10", "users": 5, "run": "r"}
    return frame([{**fixed, "method": name, "value": value} for name, value in values.items()])


def test_the_summary_s_numbers_are_those_of_the_frames():
    scores = metrics({"popularity": 0.2, "local": 0.3, "fedecider": 0.4})
    fixed = {"dataset": "toy", "seed": 0, "client": "a", "run": "r", "bytes_up": 0, "bytes_down": 0}
    losses = {("local", 1): 3.0, ("local", 2): 2.5, ("fedecider", 1): 2.25, ("fedecider", 2): 2.75}
    rounds = frame(
        [
            {**fixed, "method": method, "round": number, "valid_loss": loss}
            for (method, number), loss in losses.items()
        ]
    )
    numbers = summary.numbers(scores, rounds, "toy").set_index("method")
    assert list(numbers.index) == ["popularity", "local", "fedecider"]
    assert numbers.loc["fedecider", "sampled likelihood"] == pytest.approx(40)
    assert numbers.loc["fedecider", "loss"] == 2.25 and numbers.loc["local", "loss"] == 2.5
    assert pd.isna(numbers.loc["popularity", "loss"]) and pd.isna(numbers.loc["local", "loss_sd"])


def test_the_summary_names_the_best_other_federated_method_and_marks_the_best_values():
    scores = metrics(
        {"local": 0.35, "fedavg": 0.2, "flora": 0.25, "fedecider": 0.4, "fedecider-no-both": 0.39}
    )
    fixed = {"dataset": "toy", "seed": 0, "client": "a", "run": "r", "bytes_up": 0, "bytes_down": 0}
    row = {**fixed, "round": 1, "method": "fedecider", "valid_loss": 2.0}
    rounds = frame([row]).iloc[:0]
    compared = pd.DataFrame(
        [
            ("toy", "sampled", "likelihood", "fedecider", other, "ndcg@10", 5, 0.1, -0.2, 0.3, 0.04)
            for other in ("local", "fedavg", "flora", "fedecider-no-both")
        ],
        columns=["dataset", "protocol", "ranker", "method", "against", "metric", "users"]
        + ["difference", "low", "high", "p"],
    )
    page = summary.page(scores, rounds, compared)
    assert "| **40.0** |" in page
    assert "best federated: FLoRA | 5 | +10.0 | \N{MINUS SIGN}20.0 to +30.0 | 0.04 |" in page
    assert "best federated: FedAvg" not in page and "| Local | 5 |" in page
    assert "No finished run." in summary.page(scores.iloc[:0], rounds, compared.iloc[:0])


def test_the_readme_holds_the_gallery_s_own_summary(tmp_path):
    """Numbers in the README are those of the published runs, not somebody's."""
    for path in SAMPLE.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    readme = publish.ROOT / "README.md"
    copy = Path(shutil.copy(readme, tmp_path))
    publish.summarise(tmp_path, copy)
    assert copy.read_text() == readme.read_text()


@pytest.mark.parametrize("name", ["sample", "planted"])
def test_the_gallery_holds_the_pack_and_what_publish_writes_beside_it(name):
    gallery = publish.ROOT / "figures/gallery" / name
    files = {path.relative_to(gallery) for path in gallery.rglob("*") if path.is_file()}
    assert Path("README.md") in files
    pack = {path for path in files if path.suffix == ".parquet"}
    assert pack == {Path(f"{kind}.parquet") for kind in (*COLUMNS, "search", "runs")}
    preset = load(name, publish.ROOT).model_copy(update={"model": "smollm2-135m"})
    written: set[Path] = set()
    for task in tasks(preset, gallery, publish.ROOT):
        endings = publish.endings(task, name == publish.IN_README) if task.in_report else ()
        pictures = {p for p in files if any(p.match(pattern) for pattern in task.outputs)}
        written |= {path for path in pictures if path.suffix in endings}
    assert files - pack - {Path("README.md")} == written
    links = re.findall(rf"gallery/{name}/([\w./-]+)\)", (publish.ROOT / "README.md").read_text())
    links += re.findall(r"\]\(((?:tables|figures)/[\w./-]+)\)", (gallery / "README.md").read_text())
    assert links and all((gallery / link).exists() for link in links)


def test_of_a_gallery_that_the_readme_does_not_show_the_pack_suffices():
    inputs = {"runs": "runs/toy/*/*", "data": "data/toy/**/*", "saved": "runs/toy/*/adapters/*/*"}
    task = {name: Task(name=name, entry="x.ipynb", inputs=(p,)) for name, p in inputs.items()}
    assert publish.endings(task["runs"], True) == (".png", ".md")
    assert publish.endings(task["runs"], False) == ()
    for name in ("data", "saved"):
        for in_readme in (True, False):
            assert publish.endings(task[name], in_readme) == (".png", ".md", ".csv")
