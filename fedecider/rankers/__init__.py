"""Rankers: from a language model to the rank of the held-out item (method, section 6).

One file each, found by its class: `name`, `label`, `protocol`, and `rank`. Ties count against the
model everywhere: rank = number of items that score at least as well.
"""

from importlib import import_module
from pkgutil import iter_modules

from fedecider.rankers.base import Ranker, Ranking

__all__ = ["RANKERS", "Ranker", "Ranking"]


def _rankers() -> dict[str, Ranker]:
    """One of every class with a name and a `rank` in a module of this folder, by name."""
    names = [module.name for module in iter_modules(__path__) if module.name != "evaluate"]
    modules = [import_module(f"{__name__}.{name}") for name in names]  # evaluate loops over these
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return {
        value.name: value()
        for value in sorted(classes, key=lambda value: value.__name__)
        if hasattr(value, "rank") and hasattr(value, "name")
    }


RANKERS = _rankers()
