"""Dependencies point one way: nothing in fedecider looks up, and no module reaches itself."""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

from fedecider.methods import METHODS
from fedecider.rankers import RANKERS

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fedecider", "figures", "data_prep", "notebooks")
# Packages that import every module of their folder, but for those named (evaluate loops over them).
WALKING = {"fedecider.methods": set(), "fedecider.rankers": {"fedecider.rankers.evaluate"}}


def modules(folder: str) -> dict[str, Path]:
    """Name of every module below a folder, and its file."""
    names = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(source: str, package: str = "") -> set[str]:
    """Full names that a source text of a package imports of the project, inside functions too."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if not is_for_types(child):
                visit(child)

    visit(ast.parse(source))
    return {name for name in names if name.split(".")[0] in OURS}


def graph() -> dict[str, set[str]]:
    """Module of fedecider -> modules of it that it imports."""
    files = modules("fedecider")
    edges: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = imports(path.read_text())
        edges[name] = {
            target if target in files else target.rpartition(".")[0] for target in targets
        }
        if name in WALKING:
            below = {other for other in files if other.startswith(f"{name}.")}
            edges[name] |= below - WALKING[name]
    return edges


def test_fedecider_knows_neither_figures_nor_notebooks_nor_the_preparation():
    for name, path in modules("fedecider").items():
        above = {target for target in imports(path.read_text()) if target.split(".")[0] in OURS[1:]}
        assert above == set(), name


def test_the_preparation_knows_nobody():
    for name, path in modules("data_prep").items():
        others = {
            t for t in imports(path.read_text(), "data_prep") if not t.startswith("data_prep")
        }
        assert others == set(), name


def test_what_is_imported_exists():
    """Also where only a function imports it, which no other test may call."""
    files = set(modules("fedecider"))
    missing = {name: targets - files for name, targets in graph().items() if targets - files}
    assert missing == {}


def test_no_module_reaches_itself():
    edges = graph()
    order = list(TopologicalSorter(edges).static_order())
    assert set(order) >= set(edges)
    # The engine and the mathematics come before what uses them, the loop last.
    for first, later in (
        ("fedecider.engine.attention", "fedecider.engine.backbone"),
        ("fedecider.direction", "fedecider.mixture"),
        ("fedecider.methods.base", "fedecider.methods.fedavg"),
        ("fedecider.client", "fedecider.federation"),
        ("fedecider.server", "fedecider.federation"),
    ):
        assert order.index(first) < order.index(later)


def test_packages_that_walk_count_as_importing_what_they_find():
    edges = graph()
    assert {method.__module__ for method in METHODS.values()} <= edges["fedecider.methods"]
    assert {type(ranker).__module__ for ranker in RANKERS.values()} <= edges["fedecider.rankers"]


def test_client_and_server_know_nothing_of_each_other_or_of_the_loop():
    edges = graph()

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for target in edges[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    outside = {f"fedecider.{name}" for name in ("federation", "checkpoint", "recorder", "runs")}
    assert reached("fedecider.client").isdisjoint(outside | {"fedecider.server"})
    assert reached("fedecider.server").isdisjoint(outside | {"fedecider.client"})
    assert "fedecider.wire" in reached("fedecider.client") & reached("fedecider.server")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch, fedecider.wire", {"fedecider.wire"}),
        ("def late():\n    from figures.style import save", {"figures.style.save"}),
        ("class A:\n    if True:\n        import data_prep", {"data_prep"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import figures", set()),
        ("from .wire import encode", {"fedecider.wire.encode"}),
        ("if TYPE_CHECKING:\n    import figures\nimport notebooks", {"notebooks"}),
    ],
)
def test_every_form_of_import_is_seen(source, names):
    assert imports(source, "fedecider") == names


def test_a_cycle_would_be_seen():
    edges = graph()
    edges["fedecider.direction"].add("fedecider.federation")
    with pytest.raises(CycleError):
        TopologicalSorter(edges).prepare()
