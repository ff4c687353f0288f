"""Rankers: from a language model to the rank of the held-out item (method, section 6).

One file each, found by its class: `name`, `protocol`, and `rank`. Ties count against the
model everywhere: rank = number of items that score at least as well.
"""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_args

from fedecider.rankers.base import Protocol, Ranker, Ranking

__all__ = ["RANKERS", "Ranker", "Ranking", "rankers_of"]


def rankers_of(modules: Iterable[ModuleType]) -> dict[str, Ranker]:
    """One of every class with a name and a `rank` in these modules, by name.

    Raises TypeError for two classes of one name, for a class that has the name or protocol of its
    base, and for an unknown protocol.
    """
    classes: dict[str, Any] = {}
    for module in modules:
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if not (hasattr(value, "rank") and hasattr(value, "name")):
                continue
            here = f"{value.__module__}.{value.__qualname__}"
            for attribute in ("name", "protocol"):
                if attribute not in vars(value):
                    raise TypeError(f"{here} has no {attribute} of its own")
            protocol = vars(value)["protocol"]
            if protocol not in get_args(Protocol):
                raise TypeError(
                    f"protocol of {here} must be one of {get_args(Protocol)}, got {protocol!r}"
                )
            if value.name in classes:
                other = classes[value.name]
                both = f"{other.__module__}.{other.__qualname__} and {here}"
                raise TypeError(f"two rankers are called {value.name!r}: {both}")
            classes[value.name] = value
    named = sorted(classes.items(), key=lambda entry: entry[1].__name__)
    return {name: value() for name, value in named}


def _rankers() -> dict[str, Ranker]:
    names = [module.name for module in iter_modules(__path__) if module.name != "evaluate"]
    return rankers_of(import_module(f"{__name__}.{name}") for name in names)  # evaluate reads these


RANKERS = _rankers()
