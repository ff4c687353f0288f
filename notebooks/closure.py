"""Which code a notebook calls: the static closure of its imports, each file with a digest.

Nothing is executed; imports are read with ``ast``. A digest is taken from the parsed code without
comments, docstrings and layout, so that editing a sentence does not send a federation into its
second hour of training once more.
"""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

import nbformat

PACKAGES = ("fedecider", "data_prep", "figures")


def digest(text: str | bytes) -> str:
    """Short sha256 of a text."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:24]


def called(
    root: Path,
    notebook: Path,
    chosen: dict[str, str] | None = None,
    prose: bool = False,
    packages: tuple[str, ...] = PACKAGES,
) -> dict[str, str]:
    """Digest of every file that decides what ``notebook`` computes, by path relative to ``root``.

    The notebook itself, the modules of ``packages`` that it reaches by imports, and
    requirements.lock. A package's ``__init__`` that merely hands a name on counts without its
    imports, so a new module in the list does not touch the users of the others. ``chosen`` maps a
    package that is a table of alternatives to the one module in it that this run uses: the
    others, and the table, are left out. ``prose``: the notebook's Markdown counts too.
    """
    walk = _Walk(root, packages, chosen or {})
    found = {f"notebooks/{notebook.name}": _notebook_digest(notebook, prose)}
    for tree in _notebook_trees(notebook):
        walk.follow(tree, package="")
    found |= walk.digests()
    lock = root / "requirements.lock"
    if lock.exists():
        pins = [line for line in lock.read_text().splitlines() if line and line[0] != "#"]
        found["requirements.lock"] = digest("\n".join(pins))
    return dict(sorted(found.items()))


def source_digest(path: Path) -> str:
    """Digest of a module's parsed code, without comments, docstrings and layout."""
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)[1]


class _Walk:
    """Imports followed from module to module."""

    def __init__(self, root: Path, packages: tuple[str, ...], chosen: dict[str, str]):
        self.root, self.packages, self.chosen = root, packages, chosen
        self.whole: set[Path] = set()  # files that count entirely
        self.partly: set[Path] = set()  # __init__ files that count without their imports
        self._seen: set[tuple] = set()

    def digests(self) -> dict[str, str]:
        """Path relative to root -> digest, for every file reached."""
        found = {path: source_digest(path) for path in self.whole}
        for path in self.partly - self.whole:
            found[path] = digest(_dump(_without_imports(_tree(path))))
        return {path.relative_to(self.root).as_posix(): value for path, value in found.items()}

    def follow(self, tree: ast.AST, package: str) -> None:
        """Every import statement below ``tree``; ``package`` is what relative ones start from."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    self.visit(name.name, None)
            elif isinstance(node, ast.ImportFrom):
                self.visit(_absolute(node, package), tuple(name.name for name in node.names))

    def visit(self, module: str, names: tuple[str, ...] | None) -> None:
        """``import module`` (names None) or ``from module import names``."""
        if module.split(".")[0] not in self.packages or (module, names) in self._seen:
            return
        self._seen.add((module, names))
        parts = module.split(".")
        for end in range(1, len(parts)):
            self._part(".".join(parts[:end]))
        if module in self.chosen:
            self.visit(self.chosen[module], None)
            return
        path = self._file(module)
        if path is None:
            return
        if path.name != "__init__.py" or names is None:
            self._all(module, path)
            return
        exports = _exports(_tree(path), module)
        for name in names:
            if self._file(f"{module}.{name}"):
                self._part(module)
                self.visit(f"{module}.{name}", None)
            elif name in exports:
                self._part(module)
                self.visit(*exports[name])
            else:  # defined in the package file itself, or not to be told
                self._all(module, path)

    def _all(self, module: str, path: Path) -> None:
        self.whole.add(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.follow(_tree(path), package)

    def _part(self, package: str) -> None:
        path = self._file(package)
        if path is not None:
            self.partly.add(path)

    def _file(self, module: str) -> Path | None:
        place = self.root.joinpath(*module.split("."))
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
        return None


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _exports(tree: ast.Module, package: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Names that a package file hands on: name -> (module it comes from, its name there)."""
    return {
        name.asname or name.name: (_absolute(node, package), (name.name,))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }


def _without_imports(tree: ast.Module) -> ast.Module:
    def is_list(node):
        return isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        )

    rest = [
        node
        for node in tree.body
        if not isinstance(node, ast.Import | ast.ImportFrom) and not is_list(node)
    ]
    return ast.Module(body=rest, type_ignores=[])


def _tree(path: Path) -> ast.Module:
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)[0]


@lru_cache(maxsize=512)
def _parsed(path: Path, _changed: int, _size: int) -> tuple[ast.Module, str]:
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the notebook will say so; until then the text itself is the key
        return ast.Module(body=[], type_ignores=[]), digest(text)
    return tree, digest(_dump(tree))


def _dump(tree: ast.AST) -> str:
    """The code as text, docstrings (and other bare strings) left out."""
    kept = ast.parse(ast.unparse(tree))
    for node in ast.walk(kept):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                statement
                for statement in body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
    return ast.dump(kept)


def _notebook_trees(notebook: Path) -> list[ast.Module]:
    trees = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            try:
                trees.append(ast.parse(cell.source))
            except SyntaxError:  # a line magic; its imports, if any, are not followed
                lines = [line for line in cell.source.splitlines() if line[:1] not in ("%", "!")]
                try:
                    trees.append(ast.parse("\n".join(lines)))
                except SyntaxError:
                    continue
    return trees


def _notebook_digest(notebook: Path, prose: bool) -> str:
    pieces = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            try:
                pieces.append(_dump(ast.parse(cell.source)))
            except SyntaxError:
                pieces.append(cell.source)
        elif prose:
            pieces.append(cell.source)
    return digest("\0".join(pieces))
