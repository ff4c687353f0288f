"""report.html: the executed figures and tables in one file, and what was run to get them."""

import os
import platform
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import nbformat
import torch
import yaml
from nbconvert import HTMLExporter
from nbformat.corpus.words import generate_corpus_id
from nbformat.v4 import new_markdown_cell, new_notebook

from fedecider import runs
from figures import select, style
from notebooks.workflow.pipeline import Task
from notebooks.workflow.preset import Preset
from notebooks.workflow.progress import clock

_TEMPLATE = Path(__file__).with_name("report_template")


def task(name: str, preset: Preset, tasks: list[Task]) -> Task:
    """The last task of a preset: stale when a figure, a table or the preset changed."""
    drawn = [task for task in tasks if task.in_report]
    described = preset.model_dump(mode="json", exclude_defaults=True)
    for entry in described["datasets"].values():
        entry.pop("source", None)  # where the data lie is no content

    def write(record_of: Callable[[str], dict]) -> None:
        records = {task.name: record_of(task.name) for task in tasks}
        sections = {t.name: _section(t, records[t.name].get("outputs", {})) for t in drawn}
        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
        said = {  # by the template
            "title": f"FeDecider: results of preset {name}",
            "about": preset.about,
            "contents": {name: cells[0].metadata.alt for name, cells in sections.items()},
            "facts": {
                "Python": platform.python_version(),
                **runs.versions(),
                "machine": f"{platform.platform()}, {os.cpu_count()} processors",
                "GPU": gpu,
            },
            "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "preset": yaml.safe_dump(described, sort_keys=False),
            "seconds": {name: record.get("seconds", 0.0) for name, record in records.items()},
        }
        exporter = HTMLExporter(
            template_name=_TEMPLATE.name, extra_template_basedirs=[str(_TEMPLATE.parent)]
        )
        exporter.register_filter("clock", clock)
        notebook = new_notebook(cells=[cell for cells in sections.values() for cell in cells])
        page, _ = exporter.from_notebook_node(notebook, resources=said)
        with runs.atomic(Path("report.html")) as beside:
            beside.write_text(page, encoding="utf-8")

    return Task(
        name="report",
        entry="notebooks/workflow/report.py",
        call=write,
        parameters={"name": name, "preset": described},
        inputs=tuple(f"notebooks/{task.name}.ipynb" for task in drawn),
        sources=(_TEMPLATE,),
        outputs=("report.html",),
        needs=tuple(task.name for task in drawn),
        packages=("fedecider", "figures", "notebooks"),
        seconds=3,
    )


def _section(task: Task, outputs: dict[str, int]) -> list:
    """Cells: the title, which is their alt text too, headings one level down, links to files."""
    cells = nbformat.read(f"notebooks/{task.name}.ipynb", as_version=4).cells
    tagged = ["parameters" in cell.metadata.get("tags", []) for cell in cells]
    # Code before the parameters prints versions; they stand at the end of the report.
    start = [*tagged, True].index(True)
    cells = [c for i, c in enumerate(cells) if i >= start or c.cell_type == "markdown"]
    about = new_markdown_cell(f"# {task.name}")
    about, *others = cells if cells[:1] and cells[0].source.startswith("# ") else [about, *cells]
    title, _, about.source = about.source[2:].partition("\n")
    labels = [style.dataset_label(task.parameters.get("dataset", ""))]
    labels.append(select.PROTOCOL_LABELS.get(task.parameters.get("protocol", ""), ""))
    if any(labels):
        title = f"{title} ({', '.join(filter(None, labels))})"
    for cell in others:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(?m)^(#{1,5} )", r"#\1", cell.source)
    files = [name for name in outputs if not name.startswith("notebooks/")]
    links = ", ".join(f"[{Path(name).name}]({name})" for name in files)
    heading = new_markdown_cell(f'<a id="{task.name}"></a>\n\n## {title}')
    cells = [heading, about, *others, new_markdown_cell(f"Files: {links}" if links else "")]
    for cell in cells:
        cell.id = generate_corpus_id()  # notebooks share theirs
        cell.metadata["alt"] = title  # of its pictures, for those who cannot see them
    return cells
