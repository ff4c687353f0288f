"""The gallery: finished runs of a preset, packed into one table per kind, and pictures of them.

    python -m notebooks.workflow.publish sample

packs the finished runs of results/<preset> into figures/gallery/<preset>, beside those that are
there already, draws the figures and tables of all of them anew, and writes their summary, for
sample also into the README. What goes in is derived: no row of a data set (users are numbered, not
named) and no weights. Numbers go in as CSV only where the pack does not hold what they are computed
from: data or saved models. `--draw` only draws.
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
from notebooks.workflow.pipeline import WorkflowError, files
from notebooks.workflow.preset import load
from notebooks.workflow.tasks import tasks


def draw(name: str, results: Path, gallery: Path) -> int:
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
            of_pack = [p for p in task.inputs if p.endswith("/*/*") and "adapters" not in p]
            others = [pattern for pattern in task.inputs if pattern not in of_pack]
            models = any("adapters" in pattern for pattern in others)
            needed = task.inputs if models else others
            here = all(any(folder.glob(pattern)) for pattern in needed)
            shown = models or not of_pack or packed.intersection(of_pack)
            if task.in_report and models == (folder == results) and here and shown:
                todo.append(task if models else replace(task, inputs=(*others, "*.parquet")))
                kept[task.name] = (".png", ".md", ".csv") if others else (".png", ".md")
        drawn += bring_up_to_date(todo, folder, ROOT)[0]
        with contextlib.chdir(folder):
            written = [(p, kept[t.name]) for t in todo for p in files(t.outputs, t.not_outputs)]
        for path, endings in written:
            if path.endswith(endings):
                with runs.atomic(gallery / path) as beside:
                    shutil.copyfile(folder / path, beside)
    return drawn


def summarise(gallery: Path, readme: Path | None = None) -> str:
    """The results on one page, written to summary.md and, between its marks, into a README."""
    packed = gallery / "runs"
    compared = read.compare(read.ranks(packed))
    page = summary.page(read.metrics(packed), read.rounds(packed), compared)
    with runs.atomic(gallery / "summary.md") as beside:
        beside.write_text(page, encoding="utf-8")
    if readme is not None:
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
        drawn = draw(options.preset, results, gallery)
        summarise(gallery, ROOT / "README.md" if gallery.name == "sample" else None)
    except (WorkflowError, ValueError) as error:  # ValueError: runs that do not fit the pack
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{drawn} pictures drawn: {gallery}")
    return 0


if __name__ == "__main__":
    use_absolute_cache()
    sys.exit(main())
