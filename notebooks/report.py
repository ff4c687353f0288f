"""report.html: the executed figures and tables in one file, and what was run to get them."""

import html
import os
import platform
import re
from datetime import datetime
from importlib import metadata
from pathlib import Path

import nbformat
import torch
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from fedecider import runs
from figures import style
from notebooks import plan, progress, stages
from notebooks.closure import source_digest
from notebooks.plan import Preset
from notebooks.progress import clock
from notebooks.stages import Stage

_CALLED = (runs, style, plan, progress, stages)  # whose change makes another report
_PACKAGES = ("fedecider", "torch", "transformers", "peft", "numpy", "pandas", "duckdb")
_PROTOCOLS = {"catalogue": "whole catalogue", "sampled": "1 + 99 candidates"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; padding: 1.5rem;
  max-width: 72rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd; }
/* Tables scroll by themselves: their caption stays as wide as the page, and where it is. */
caption { text-align: left; padding: 0.25rem 0.75rem; display: block; position: sticky; left: 0; }
img, svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; display: block; overflow-x: auto; border: 0; }
th, td { padding: 0.25rem 0.75rem; text-align: right; border: 0; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; font-size: 0.8125rem; color: #444; }
code { font-size: 0.875em; } a { color: #0b5cad; } a.anchor-link { display: none; }
"""


def stage(name: str, preset: Preset, todo: list[Stage], results: Path) -> Stage:
    """The last stage of a preset: made anew when a figure, a table or the preset changed."""
    pictures = [one for one in todo if one.in_report]
    described = preset.model_dump(mode="json")
    for entry in described["datasets"].values():
        entry.pop("source")
    code = {Path(module.__file__).name: source_digest(Path(module.__file__)) for module in _CALLED}

    def build(results: Path) -> None:
        write(results, compose(results, name, preset, todo))

    return Stage(
        name="report",
        call=build,
        written_in=Path(__file__),
        parameters={"name": name, "preset": described, "code": code},
        inputs=tuple(f"notebooks/{one.name}.ipynb" for one in pictures),
        outputs=("report.html",),
        needs=tuple(one.name for one in pictures),
        seconds=3,
    )


def compose(results: Path, name: str, preset: Preset, todo: list[Stage]) -> nbformat.NotebookNode:
    """One notebook: contents, then text and outputs of every figure and table, then the run."""
    sections, contents = [], []
    for one in todo:
        if one.in_report:
            title, cells = _section(results, one)
            contents.append(f"- [{title}](#{one.name})")
            sections += cells
    contents.append("- [What was run, and how](#run)")
    head = f"# FeDecider: results of preset {name}\n\n{preset.about}\n\n" + "\n".join(contents)
    cells = [new_markdown_cell(head), *sections, new_markdown_cell(_how(results, preset, todo))]
    return new_notebook(cells=cells)


def write(results: Path, notebook: nbformat.NotebookNode) -> None:
    """The notebook as results/report.html, code hidden, pictures inside the file."""
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )
    with runs.atomic(results / "report.html") as beside:
        beside.write_text(page, encoding="utf-8")


def _section(results: Path, one: Stage) -> tuple[str, list]:
    """(title, cells): headings one level down, code cells with their outputs only."""
    executed = nbformat.read(results / "notebooks" / f"{one.name}.ipynb", as_version=4)
    title, cells, begun = one.name, [], False
    for cell in executed.cells:
        if "parameters" in cell.metadata.get("tags", []):
            begun = True
        if cell.cell_type == "markdown":
            text = cell.source
            heading = re.match(r"#\s+(.+)\n*", text)
            if heading and title == one.name:
                title, text = heading.group(1).strip(), text[heading.end() :]
            if text.strip():
                cells.append(new_markdown_cell(re.sub(r"(?m)^(#{1,5} )", r"#\1", text)))
        elif begun:  # what comes before the parameters prints versions; they stand at the end
            cell.outputs = [output for output in cell.outputs if _shown(output)]
            if cell.outputs:
                cells.append(new_code_cell(outputs=cell.outputs))
    labels = [style.dataset_label(one.parameters.get("dataset", ""))]
    labels.append(_PROTOCOLS.get(one.parameters.get("protocol", ""), ""))
    if any(labels):
        title = f"{title} ({', '.join(filter(None, labels))})"
    for cell in cells:
        cell.metadata["alt"] = title  # of its pictures, for those who cannot see them
    written = stages.read(stages.stamp_path(one, results)).get("outputs", {})
    files = [name for name in written if not name.startswith("notebooks/")]
    links = ", ".join(f"[{Path(name).name}]({name})" for name in files)
    head = f'<a id="{one.name}"></a>\n\n## {title}'
    return title, [
        new_markdown_cell(head),
        *cells,
        *([new_markdown_cell(f"Files: {links}")] if links else []),
    ]


def _shown(output) -> bool:
    """Results, not progress bars or warnings."""
    if output.output_type == "stream":
        return output.name == "stdout"
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _how(results: Path, preset: Preset, todo: list[Stage]) -> str:
    datasets = ", ".join(
        f"{style.dataset_label(name)} ({entry.kind})" for name, entry in preset.datasets.items()
    )
    rows = [
        ("Data", datasets),
        ("Backbone", preset.backbone),
        ("Methods", ", ".join(preset.methods)),
        ("Seeds", ", ".join(map(str, preset.seeds))),
        *_settings("Preparation", preset.prepare),
        *_settings("Federation", preset.federation),
    ]
    for name, entry in preset.datasets.items():
        rows += _settings(f"Preparation, {style.dataset_label(name)}", entry.prepare)
        rows += _settings(f"Federation, {style.dataset_label(name)}", entry.federation)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    rows += [
        ("Versions", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        ("Machine", f"{platform.platform()}, {os.cpu_count()} processors, GPU: {gpu}"),
        ("Python", platform.python_version()),
        ("Report of", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
    ]
    times = [
        (one.name, stages.read(stages.stamp_path(one, results)).get("seconds")) for one in todo
    ]
    total = sum(seconds for _, seconds in times if seconds)
    return "\n\n".join(
        [
            '<a id="run"></a>\n\n## What was run, and how',
            _table(("", ""), rows, ":---"),
            "Settings that are not named have the defaults of `RunConfig` and `Settings`; each run "
            "folder's `config.json` holds all of them.",
            f"### Time\n\nAll stages together: {clock(total)}.",
            _table(("stage", "took"), [(name, clock(s)) for name, s in times if s]),
        ]
    )


def _settings(label: str, settings: dict) -> list[tuple[str, str]]:
    return [(label, ", ".join(f"{k} = {v}" for k, v in settings.items()))] if settings else []


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(absent)"


def _table(head: tuple[str, ...], rows: list[tuple], aligned: str = "---") -> str:
    def line(cells) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + f" {aligned} |" * len(head), *map(line, rows)])
