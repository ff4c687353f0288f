"""The package as a whole: a figure is three files, and no file lists figures or methods."""

import ast
import json
import re
from pathlib import Path

import pytest
from synthetic import KNOWN

import figures

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.stem for path in (ROOT / "figures").glob("*_[0-9].py"))
CODE = sorted(
    path
    for folder in ("figures", "fedecider", "data_prep", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("module", MODULES)
def test_a_figure_is_a_module_a_notebook_and_a_test(module):
    own = re.compile(rf"\b(figures\.{module}|import {module}|{module}\.|, {module}\b)")
    users = [path.stem for path in NOTEBOOKS if own.search(code_of(path))]
    served = {"table_2": ["table_2_goodreads", "table_3_amazon"]}
    assert users == served.get(module, [path for path in users if path.startswith(module)])
    assert users
    # no other module imports it, by whatever name
    for path in CODE:
        if path.stem != module:
            assert not own.search(path.read_text(encoding="utf-8")), path
    assert any(
        own.search(path.read_text(encoding="utf-8")) for path in ROOT.glob("tests/test_*.py")
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_numbers_and_shows_them(module):
    tree = ast.parse((ROOT / f"figures/{module}.py").read_text(encoding="utf-8"))
    public = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    shown = public["plot" if module.startswith("figure") else "table"]
    assert "numbers" in public and shown.args.args[0].arg == "numbers"
    # computed once: what shows the numbers does not call what computes them
    called = {node.func.id for node in ast.walk(shown) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name)}  # fmt: skip
    assert "numbers" not in called


def test_the_package_lists_nothing_and_names_few_methods():
    assert not hasattr(figures, "__all__")
    for path in sorted((ROOT / "figures").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "fedecider.methods" not in text.replace("select.methods", ""), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                named = [e.value for e in node.elts if isinstance(e, ast.Constant)]
                assert len(set(named) & set(KNOWN)) <= 2, (path, named)  # what a figure compares
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                assert not set(keys) & set(KNOWN), (path, keys)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem.startswith(("figure", "table"))],
                         ids=lambda path: path.stem)  # fmt: skip
def test_a_notebook_says_what_it_reads(path):
    about = json.loads(path.read_text(encoding="utf-8"))["metadata"]["fedecider"]
    code = code_of(path)
    assert set(about["reads"]) <= {"runs", "sweeps", "data", "adapters"} and about["reads"]
    assert about["model"] == ('model = "' in code)
    assert ("dataset = " in code) == (about["per"] == "dataset")
    for kind in ("runs", "sweeps"):
        assert (kind in about["reads"]) == (f"/{kind}" in code or f'"{kind}"' in code)
    for variant in about.get("variants", []):
        assert all(f"{name} = " in code for name in variant)
    # every file is named as the task is
    stem = path.stem if about.get("serves") is None else path.stem.removesuffix(about["serves"])
    folder = "figures" if path.stem.startswith("figure") else "tables"
    assert f"/{folder}" in code and f'"{stem}' in code
