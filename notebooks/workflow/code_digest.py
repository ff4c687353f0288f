"""Which code a notebook calls: the files that its imports lead to, each with a digest.

Nothing is executed. Digests are of the parsed code without comments, docstrings and layout, so that
editing a sentence sends no federation into another hour of training. The __init__ file of a package
counts by what it defines; a name that it hands on leads to the file that defines it.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path

import nbformat

PACKAGES = ("fedecider", "data_prep", "figures")

# ("module", None) is `import module`, ("module", "name") is `from module import name`.
Import = tuple[str, str | None]


def code_digest(
    root: Path,
    entry: str,
    modules: Iterable[str] = (),
    packages: tuple[str, ...] = PACKAGES,
    prose: bool = False,
) -> dict[str, str]:
    """Path relative to ``root`` -> digest, of every file that decides what ``entry`` computes.

    entry: a notebook or a module. It counts, what it reaches by imports within ``packages``, and
    requirements.lock. modules: counted too, though loaded by walking a folder and not by imports.
    prose: a notebook's Markdown counts too.
    """
    digests: dict[str, str] = {}
    queue: list[Import] = [(module, None) for module in modules]
    if entry.endswith(".ipynb"):
        cells = nbformat.read(root / entry, as_version=4).cells
        code = [_parsed(cell.source, "") for cell in cells if cell.cell_type == "code"]
        markdown = [cell.source for cell in cells if prose and cell.cell_type != "code"]
        digests[entry] = _sha("\0".join([*(sha for sha, _ in code), *markdown]))
        queue += [pair for _, imports in code for pair in imports]
    else:
        queue.append((entry.removesuffix(".py").replace("/", "."), None))
    seen: set[Import] = set()
    while queue:
        module, name = pair = queue.pop()
        parts = module.split(".")
        if pair in seen or parts[0] not in packages:
            continue
        seen.add(pair)
        for end in range(1, len(parts) + 1):  # Python runs the __init__ files above a module
            if path := _file(root, parts[:end]):
                is_package = path.stem == "__init__"
                package = ".".join(parts[: end if is_package else end - 1])
                sha, imports = _parsed(path.read_text(), package, is_package)
                digests[path.relative_to(root).as_posix()] = sha
        if path is None:
            continue
        if not is_package or name is None:
            queue += imports
        elif _file(root, [*parts, name]):
            queue.append((f"{module}.{name}", None))
        else:  # handed on; otherwise defined in the __init__ file itself, or not to be told
            queue += [pair for pair in imports if pair[1] == name] or imports
    if (lock := root / "requirements.lock").exists():
        pins = [line for line in lock.read_text().splitlines() if line and line[0] != "#"]
        digests[lock.name] = _sha("\n".join(pins))
    return dict(sorted(digests.items()))


def _file(root: Path, parts: list[str]) -> Path | None:
    stem = root.joinpath(*parts)
    paths = (stem / "__init__.py", stem.with_suffix(".py"))
    return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=2048)
def _parsed(source: str, package: str, is_package: bool = False) -> tuple[str, list[Import]]:
    """(digest of the code, its imports); bare strings never count, an __init__'s imports neither.

    Line magics are left out; the text itself counts where it is no Python.
    """
    lines = [line for line in source.splitlines() if line[:1] not in ("%", "!")]
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError:
        return _sha(source), []
    imports: list[Import] = []
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Import):
            imports += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            imports += [(module, alias.name) for alias in node.names]
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [entry for entry in body if not _is_left_out(entry, is_package)]
    return _sha(ast.dump(tree)), imports


def _is_left_out(node: ast.stmt, is_package: bool) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    names = {getattr(target, "id", None) for target in getattr(node, "targets", [])}
    return is_package and (isinstance(node, ast.Import | ast.ImportFrom) or "__all__" in names)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
