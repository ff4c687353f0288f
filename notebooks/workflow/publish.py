"""The gallery: finished runs of a preset, packed into one table per kind, and pictures of them.

    python -m notebooks.workflow.publish sample

packs the finished runs of results/<preset> into figures/gallery/<preset>, beside those that are
there already, and draws their figures and tables anew. What goes in is derived: no row of a data
set (users are numbered, not named) and no weights. The README shows `sample`: all its pictures go
in, and their summary into the README. Of other presets only pictures go in that need data or saved
models; the pack holds what the others are computed from. `--draw` only draws.
"""

import argparse
import contextlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from fedecider import results as read
from fedecider import runs
from figures import summary
from notebooks.workflow.__main__ import ROOT, use_absolute_cache
from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import Task, WorkflowError, files
from notebooks.workflow.preset import load
from notebooks.workflow.tasks import tasks

IN_README = "sample"


def endings(task: Task, in_readme: bool) -> tuple[str, ...]:
    """Of the picture's files those that go in: CSV where the pack does not hold its origin.

    in_readme: whether the README shows this gallery; of another, what the pack suffices for is
    left out.
    """
    if _beside_runs(task):
        return (".png", ".md", ".csv")
    return (".png", ".md") if in_readme else ()


def draw(name: str, results: Path, gallery: Path, in_readme: bool = True) -> int:
    """Figures and tables of all runs in the gallery; how many were drawn anew.

    In results/published, where the pack lies beside the prepared data; a picture that needs saved
    models, in the results. One whose inputs are not here is left as it is.
    """
    published = results / "published"
    published.mkdir(parents=True, exist_ok=True)
    for path in gallery.glob("*.parquet"):
        shutil.copy2(path, published)
    if (results / "data").is_dir() and not (published / "data").exists():
        (published / "data").symlink_to("../data")
    preset = load(name, ROOT)
    preset = preset.model_copy(update={"model": preset.model or "smollm2-135m"})
    names = pd.read_parquet(gallery / "runs.parquet")["run"]
    packed = {f"{folder}/*/*" for folder in names.str.rpartition("/")[0]}
    drawn = 0
    for folder in (published, results):
        todo, kept = [], {}
        for task in tasks(preset, folder, ROOT):
            others = _beside_runs(task)
            of_pack = [pattern for pattern in task.inputs if pattern not in others]
            models = any("adapters" in pattern for pattern in others)
            needed = task.inputs if models else others
            here = all(any(folder.glob(pattern)) for pattern in needed)
            shown = models or not of_pack or packed.intersection(of_pack)
            suffixes = task.in_report and endings(task, in_readme)
            if suffixes and models == (folder == results) and here and shown:
                todo.append(task if models else replace(task, inputs=(*others, "*.parquet")))
                kept[task.name] = suffixes
        drawn += bring_up_to_date(todo, folder, ROOT)[0]
        with contextlib.chdir(folder):
            written = [(p, kept[t.name]) for t in todo for p in files(t.outputs, t.not_outputs)]
        for path, suffixes in written:
            if path.endswith(suffixes):
                with runs.atomic(gallery / path) as beside:
                    shutil.copyfile(folder / path, beside)
    return drawn


def _beside_runs(task: Task) -> list[str]:
    """Inputs that the pack does not hold: data and saved models."""
    return [p for p in task.inputs if not p.endswith("/*/*") or "adapters" in p]


def summarise(gallery: Path, readme: Path) -> str:
    """The results on one page, written between its marks into the README."""
    packed = gallery / "runs"
    compared = read.compare(read.ranks(packed))
    page = summary.page(read.metrics(packed), read.rounds(packed), compared)
    text, marks = readme.read_text(encoding="utf-8"), f"(?s){summary.BEGIN}.*{summary.END}"
    text, count = re.subn(marks, lambda _: page.strip(), text)
    if not count:
        raise WorkflowError(f"{readme} needs the lines {summary.BEGIN} and {summary.END}")
    with runs.atomic(readme) as beside:
        beside.write_text(text, encoding="utf-8")
    return page


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.workflow.publish")
    parser.add_argument("preset", help="a name in notebooks/presets")
    parser.add_argument("--results", help="folder of the results (default: results/<preset>)")
    parser.add_argument("--gallery", help="folder (default: figures/gallery/<preset>)")
    parser.add_argument("--draw", action="store_true", help="pack nothing, only draw")
    options = parser.parse_args(arguments)
    results = Path(options.results or ROOT / "results" / options.preset).absolute()
    gallery = Path(options.gallery or ROOT / "figures" / "gallery" / options.preset).absolute()
    try:
        if not options.draw:
            read.pack(results, gallery)
        drawn = draw(options.preset, results, gallery, in_readme=gallery.name == IN_README)
        if gallery.name == IN_README:
            summarise(gallery, ROOT / "README.md")
    except (WorkflowError, ValueError) as error:  # ValueError: runs that do not fit the pack
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{drawn} pictures drawn: {gallery}")
    return 0


if __name__ == "__main__":
    use_absolute_cache()
    sys.exit(main())
