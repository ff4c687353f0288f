"""The methods of section 5, one file each; a method is found by its class, no list names it."""

from importlib import import_module
from pkgutil import iter_modules

from fedecider.config import RunConfig
from fedecider.methods.base import Downloads, Method, Upload, Uploads

__all__ = ["METHODS", "Downloads", "Method", "Upload", "Uploads", "make"]


def _methods() -> dict[str, type[Method]]:
    """Every class with a name in a module of this folder, in the order of tables."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and "name" in vars(value)
    }
    return dict(sorted(classes.items(), key=lambda entry: (entry[1].order, entry[0])))


METHODS = _methods()


def make(config: RunConfig) -> Method:
    """The method that a configuration names, with its own settings.

    Raises ValueError if there is none of that name, or if its settings are unfit.
    """
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {config.method!r}")
    return METHODS[config.method](config)
