"""Which code a notebook calls: the static closure of its imports, each file with a digest.

Nothing is executed. Digests are of the parsed code without comments, docstrings and layout, so that
editing a sentence sends no federation into another hour of training.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path

import nbformat

PACKAGES = ("fedecider", "data_prep", "figures")


def code_digest(
    root: Path,
    entry: str,
    modules: Iterable[str] = (),
    packages: tuple[str, ...] = PACKAGES,
    prose: bool = False,
) -> dict[str, str]:
    """Path relative to ``root`` -> digest, of every file that decides what ``entry`` computes.

    entry: a notebook or a module. It counts, what it reaches by imports within ``packages``, and
    requirements.lock. modules: reached too, though found by walking a folder and not by imports.
    prose: a notebook's Markdown counts too.
    """
    closure, digests = _Closure(root, packages), {}
    if entry.endswith(".ipynb"):
        cells = nbformat.read(root / entry, as_version=4).cells
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        markdown = [cell.source for cell in cells if prose and cell.cell_type != "code"]
        digests[entry] = _sha("\0".join([*map(_code_sha, code), *markdown]))
        for source in code:
            closure.follow(source, package="")
    else:
        closure.add(entry.removesuffix(".py").replace("/", "."), root / entry)
    for module in modules:
        closure.visit(module)
    for path in closure.whole | closure.passed:
        sha = _code_sha(path.read_text(), path in closure.whole)
        digests[path.relative_to(root).as_posix()] = sha
    if (lock := root / "requirements.lock").exists():
        pins = [line for line in lock.read_text().splitlines() if line and line[0] != "#"]
        digests[lock.name] = _sha("\n".join(pins))
    return dict(sorted(digests.items()))


class _Closure:
    """Imports followed from module to module."""

    def __init__(self, root: Path, packages: tuple[str, ...]):
        self.root, self.packages = root, packages
        self.whole: set[Path] = set()  # files that count entirely
        self.passed: set[Path] = set()  # __init__ files that only hand names on
        self.seen: set[tuple] = set()

    def add(self, module: str, path: Path) -> None:
        if path in self.whole:
            return
        self.whole.add(path)
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        self.follow(path.read_text(), package)

    def follow(self, source: str, package: str) -> None:
        for relative, name in _imports(source):
            self.visit(resolve_name(relative, package), name)

    def visit(self, module: str, name: str | None = None) -> None:
        """``import module``, or ``from module import name``."""
        parts = module.split(".")
        if parts[0] not in self.packages or (module, name) in self.seen:
            return
        self.seen.add((module, name))
        parents = (self.file(".".join(parts[:end])) for end in range(1, len(parts)))
        self.passed.update(filter(None, parents))
        path = self.file(module)
        if path is None:
            return
        if path.stem != "__init__" or name is None:
            return self.add(module, path)
        self.passed.add(path)
        handed_on = {alias: relative for relative, alias in _imports(path.read_text())}
        if self.file(f"{module}.{name}"):
            self.visit(f"{module}.{name}")
        elif name in handed_on:
            self.visit(resolve_name(handed_on[name], module), name)
        else:  # defined in the package file itself, or not to be told
            self.add(module, path)

    def file(self, module: str) -> Path | None:
        stem = self.root.joinpath(*module.split("."))
        paths = (stem / "__init__.py", stem.with_suffix(".py"))
        return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=2048)
def _imports(source: str) -> tuple[tuple[str, str | None], ...]:
    """(module, None) for ``import module``, (module, name) for each ``from module import name``."""
    pairs: list[tuple[str, str | None]] = []
    for node in ast.walk(_parsed(source) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pairs += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return tuple(pairs)


def _parsed(source: str) -> ast.Module | None:
    """The code without line magics; None for what is no Python: its text itself counts."""
    lines = [line for line in source.splitlines() if line[:1] not in ("%", "!")]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None


@lru_cache(maxsize=2048)
def _code_sha(source: str, whole: bool = True) -> str:
    """Digest of the code without docstrings (and other bare strings); without imports or whole."""
    if (tree := _parsed(source)) is None:
        return _sha(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [statement for statement in body if whole or not _hands_on(statement)]
            node.body = [statement for statement in node.body if not _is_bare_string(statement)]
    return _sha(ast.dump(tree))


def _hands_on(node: ast.stmt) -> bool:
    names = {getattr(target, "id", None) for target in getattr(node, "targets", [])}
    return isinstance(node, ast.Import | ast.ImportFrom) or "__all__" in names


def _is_bare_string(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
