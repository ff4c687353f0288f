"""report.html: the executed figures and tables in one file, and what was run to get them."""

import html
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
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from fedecider import runs
from figures import style
from notebooks.workflow.pipeline import Task
from notebooks.workflow.preset import Preset
from notebooks.workflow.progress import clock

_PROTOCOLS = {"catalogue": "whole catalogue", "sampled": "1 + 99 candidates"}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>{body}</body></html>
"""


def task(name: str, preset: Preset, tasks: list[Task]) -> Task:
    """The last task of a preset: stale when a figure, a table or the preset changed."""
    drawn = [task for task in tasks if task.in_report]

    def write(record_of: Callable[[str], dict]) -> None:
        sections = [_section(task, record_of(task.name).get("outputs", {})) for task in drawn]
        titles = {task.name: title for task, (title, _) in zip(drawn, sections, strict=True)}
        titles["run"] = "What was run, and how"
        contents = "\n".join(f"- [{title}](#{anchor})" for anchor, title in titles.items())
        title = f"FeDecider: results of preset {name}"
        head = new_markdown_cell(f"# {title}\n\n{preset.about}\n\n{contents}")
        seconds = {task.name: record_of(task.name).get("seconds", 0.0) for task in tasks}
        how = new_markdown_cell(_how(preset, seconds))
        cells = [head, *(cell for _, section in sections for cell in section), how]
        exporter = HTMLExporter(
            template_name="basic",
            exclude_input=True,
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        body, _ = exporter.from_notebook_node(new_notebook(cells=cells))
        css = Path(__file__).with_suffix(".css").read_text()
        with runs.atomic(Path("report.html")) as beside:
            page = _PAGE.format(title=html.escape(title), style=css, body=body)
            beside.write_text(page, encoding="utf-8")

    return Task(
        name="report",
        entry="notebooks/workflow/report.py",
        call=write,
        parameters={"name": name, "preset": _described(preset)},
        inputs=tuple(f"notebooks/{task.name}.ipynb" for task in drawn),
        outputs=("report.html",),
        needs=tuple(task.name for task in drawn),
        packages=("fedecider", "figures", "notebooks"),
        seconds=3,
    )


def _section(task: Task, outputs: dict[str, int]) -> tuple[str, list]:
    """(title, cells): headings one level down, code cells with their outputs only."""
    notebook = nbformat.read(f"notebooks/{task.name}.ipynb", as_version=4)
    title, cells, begun = task.name, [], False
    for cell in notebook.cells:
        begun = begun or "parameters" in cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            text = cell.source
            heading = re.match(r"#\s+(.+)\n*", text)
            if heading and title == task.name:
                title, text = heading.group(1).strip(), text[heading.end() :]
            if text.strip():
                cells.append(new_markdown_cell(re.sub(r"(?m)^(#{1,5} )", r"#\1", text)))
        # What comes before the parameters prints versions; they stand at the end.
        elif begun and (shown := list(filter(_is_result, cell.outputs))):
            cells.append(new_code_cell(outputs=shown))
    labels = [style.dataset_label(task.parameters.get("dataset", ""))]
    labels.append(_PROTOCOLS.get(task.parameters.get("protocol", ""), ""))
    if any(labels):
        title = f"{title} ({', '.join(filter(None, labels))})"
    for cell in cells:
        cell.metadata["alt"] = title  # of its pictures, for those who cannot see them
    cells.insert(0, new_markdown_cell(f'<a id="{task.name}"></a>\n\n## {title}'))
    files = [name for name in outputs if not name.startswith("notebooks/")]
    links = ", ".join(f"[{Path(name).name}]({name})" for name in files)
    return title, [*cells, *([new_markdown_cell(f"Files: {links}")] if links else [])]


def _is_result(output) -> bool:
    """Neither a progress bar nor a warning."""
    if output.output_type == "stream":
        return output.name == "stdout"
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _how(preset: Preset, seconds: dict[str, float]) -> str:
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    facts = {"Python": platform.python_version(), **runs.versions()}
    facts |= {"machine": f"{platform.platform()}, {os.cpu_count()} processors", "GPU": gpu}
    rows = [f"| {name} | {clock(took)} |" for name, took in seconds.items() if took]
    return f"""<a id="run"></a>

## What was run, and how

{", ".join(f"{name} {fact}" for name, fact in facts.items())}. Report of {written}.

Settings that are not named have the defaults of `RunConfig` and `Settings`; each run folder's
`config.json` holds all of them.

```yaml
{yaml.safe_dump(_described(preset), sort_keys=False)}```

### Time

All tasks together: {clock(sum(seconds.values()))}.

| task | took |
| --- | --- |
""" + "\n".join(rows)


def _described(preset: Preset) -> dict:
    """The preset without where the data lie."""
    described = preset.model_dump(mode="json", exclude_defaults=True)
    for entry in described["datasets"].values():
        entry.pop("source", None)
    return described
