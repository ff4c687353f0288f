"""The engine knows nothing of the rest of the project."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fedecider", "figures", "data_prep", "notebooks")


def own_imports(source: str) -> set[str]:
    """Modules of the project that a source text imports, anywhere in it, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def test_the_engine_imports_nothing_of_the_project_outside_itself():
    files = sorted((ROOT / "fedecider" / "engine").rglob("*.py"))
    imported = {file.name: own_imports(file.read_text()) for file in files}
    assert imported["kv_cache.py"]  # else nothing was looked at
    outside = {
        (file, name)
        for file, names in imported.items()
        for name in names
        if not name.startswith("fedecider.engine")
    }
    assert outside == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch, fedecider.wire", {"fedecider.wire"}),
        ("from fedecider import runs", {"fedecider.runs"}),
        ("def late():\n    from figures.style import save", {"figures.style.save"}),
        ("from fedecider.engine.packing import pack", {"fedecider.engine.packing.pack"}),
    ],
)
def test_every_form_of_import_is_seen(source, names):
    assert own_imports(source) == names
