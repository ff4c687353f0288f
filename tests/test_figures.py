"""The package as a whole: a figure is three files, and no file lists figures or methods."""

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from synthetic import KNOWN

import figures

ROOT = Path(__file__).resolve().parents[1]
PATTERN = "*_[0-9]*.py"
MODULES = sorted(path.stem for path in (ROOT / "figures").glob(PATTERN))
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


def functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def reached(own: dict[str, ast.FunctionDef], start: str) -> set[str]:
    """Names in a function and in those of its module that it uses; ``module.name`` for others'."""
    names, waiting = set(), [start]
    while waiting:
        function = own[waiting.pop()]
        parameters = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        for node in ast.walk(function):
            name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
            if name and name not in parameters:
                if name in own and name not in names:
                    waiting.append(name)
                names.add(name)
    return names


# What showing uses of the modules that compute: words, names and their order.
SHOWN = {"aggregate.about_seeds", "sweeps.KEYS", "sweeps.sort_key", "sweeps.value_label"}
COMPUTES = re.compile(r"(aggregate|sweeps|update_geometry|read|results|membership_inference)\.\w+$")


def computed_twice(source: str, shows: str, numbers: str = "numbers") -> set[str]:
    """What the function that shows numbers computes, by other modules or as ``numbers`` does."""
    own = functions(source)
    shown = reached(own, shows)
    others = {name for name in shown if COMPUTES.match(name)} - SHOWN
    return (
        others | {"select.scores"} & shown | (reached(own, numbers) | {numbers}) & shown & set(own)
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_numbers_and_shows_them(module):
    source = (ROOT / f"figures/{module}.py").read_text(encoding="utf-8")
    own = functions(source)
    pairs = {"plot" if module.startswith("figure") else "table": "numbers"}
    pairs |= {"noise_table": "noise_numbers"} if "noise_table" in own else {}
    for shows, numbers in pairs.items():
        first, *others = [*own[shows].args.args, *own[shows].args.kwonlyargs]
        assert (first.arg, ast.unparse(first.annotation)) == ("numbers", "pd.DataFrame")
        for argument in others:  # nothing to compute from
            assert "DataFrame" not in ast.unparse(argument.annotation), argument.arg
        assert not own[shows].args.vararg and not own[shows].args.kwarg
        assert computed_twice(source, shows, numbers) == set()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return Table(numbers)", set()),
        ("return _text(aggregate.about_seeds(numbers))", set()),
        ("return _drawn(numbers)", {"update_geometry.separation"}),
        ("return correlate(numbers)", {"correlate"}),
        ("return _own(numbers)", {"numbers", "correlate"}),
    ],
)
def test_what_is_computed_twice_would_be_seen(body, names):
    source = f"""
def numbers(frame): return correlate(frame)
def correlate(frame): return frame
def _drawn(frame): return update_geometry.separation(frame)
def _own(frame): return numbers(frame)
def plot(numbers): {body}
"""
    assert computed_twice(source, "plot") == names


def test_a_number_of_two_digits_is_a_figure_too():
    assert {"figure_1", "table_9"} <= set(MODULES)
    assert fnmatch("figure_10.py", PATTERN) and not fnmatch("update_geometry.py", PATTERN)


def test_the_package_lists_nothing_and_names_few_methods():
    assert not hasattr(figures, "__all__")
    for path in sorted((ROOT / "figures").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "fedecider.methods" not in text.replace("select.methods", ""), path
        tree = ast.parse(text)
        arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arguments)]
        defaults = {
            constant
            for node in arguments
            for default in (*node.defaults, *filter(None, node.kw_defaults))
            for constant in ast.walk(default)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in defaults:
                assert node.value not in KNOWN, (path, node.value)  # a parameter names a method
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
