"""The parameters of a notebook, and a check that papermill injected no others.

papermill only warns of a parameter that the notebook does not have, and runs with the defaults.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

_INJECTED = "# Parameters\n"  # first line of the cell that papermill puts behind the tagged one


def assigned(source: str) -> list[str]:
    """Names that the text of a parameters cell assigns to, in its order."""
    names = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.append(statement.target.id)
    return names


def refuse_unknown(namespace: Mapping[str, Any]) -> None:
    """ValueError for a parameter that papermill injected and the notebook does not have.

    Call it with `globals()` in the first code cell behind the parameters; IPython keeps there, as
    `In`, the text of the cells that were run. Without papermill there is nothing to check.
    """
    cells = ["", "", "", *namespace.get("In", ())]
    tagged, injected = cells[-3:-1]
    if injected.startswith(_INJECTED):
        check(assigned(injected), assigned(tagged))


def check(names: Iterable[str], known: Iterable[str]) -> None:
    """ValueError, with the nearest known name, or all, for a name that is not known."""
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(known)}"
            raise ValueError(f"this notebook has no parameter {name!r}: {hint}")
