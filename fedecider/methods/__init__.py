"""The methods of section 5, one file each; a method is found by its class, no list names it."""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import get_args

from fedecider.config import RunConfig
from fedecider.methods.base import (
    CollaborativeFilter,
    Downloads,
    Family,
    Method,
    Upload,
    Uploads,
)

__all__ = ["METHODS", "Downloads", "Method", "Upload", "Uploads", "make", "methods_of"]


def methods_of(modules: Iterable[ModuleType]) -> dict[str, type[Method]]:
    """Every class with a name in these modules, by name, in the order of tables.

    Raises TypeError for two classes of one name, for a class that has the name, label, colour or
    order of its base, for an unknown family, and for a class that ranks by itself or does not
    where its family says otherwise.
    """
    classes: dict[str, type[Method]] = {}
    for module in modules:
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, Method)):
                continue
            if value.__module__ != module.__name__ or not hasattr(value, "name"):
                continue
            _check(value)
            if value.name in classes:
                both = f"{_place(classes[value.name])} and {_place(value)}"
                raise TypeError(f"two methods are called {value.name!r}: {both}")
            classes[value.name] = value
    return dict(sorted(classes.items(), key=lambda entry: (entry[1].order, entry[0])))


def _check(method: type[Method]) -> None:
    for attribute in ("name", "label", "color", "order"):
        if attribute not in vars(method):
            raise TypeError(f"{_place(method)} has no {attribute} of its own")
    families = get_args(Family)
    family = getattr(method, "family", None)
    if family not in families:
        raise TypeError(f"family of {_place(method)} must be one of {families}, got {family!r}")
    if (family == "no language model") != issubclass(method, CollaborativeFilter):
        verb = "has no" if family == "no language model" else "has a"
        raise TypeError(f"{_place(method)} is of the family {family!r} and {verb} method `rank`")


def _place(method: type[Method]) -> str:
    return f"{method.__module__}.{method.__qualname__}"


def _methods() -> dict[str, type[Method]]:
    return methods_of(
        import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)
    )


METHODS = _methods()


def make(config: RunConfig) -> Method:
    """The method that a configuration names, with its own settings.

    Raises ValueError if there is none of that name, or if its settings are unfit.
    """
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {config.method!r}")
    return METHODS[config.method](config)
