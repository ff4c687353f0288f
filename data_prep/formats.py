"""The raw formats, collected from the modules of this package.

A format is one module here with a constant KIND and the two functions of RawFormat; nothing else
names it. See README.md, "A format of your own".

No import statement leads from here to a reader. Whoever follows imports to tell which code prepares
a data set adds the module FORMATS[kind].__name__.
"""

import importlib
import pkgutil
from typing import cast

from .store import RawFormat


def discover() -> dict[str, RawFormat]:
    """Kind -> reader, sorted by kind: every module of this package that declares a KIND.

    Raises TypeError if such a module lacks find or load, ValueError if two declare one kind.
    """
    assert __package__
    folders = importlib.import_module(__package__).__path__
    readers: dict[str, RawFormat] = {}
    for info in pkgutil.iter_modules(folders, f"{__package__}."):
        module = importlib.import_module(info.name)
        kind = getattr(module, "KIND", None)
        if kind is None:
            continue
        for function in ("find", "load"):
            if not callable(getattr(module, function, None)):
                raise TypeError(
                    f"{info.name}: a reader of kind {kind!r} needs a function {function}"
                )
        if kind in readers:
            raise ValueError(f"{info.name}: another module declares the kind {kind!r} too")
        readers[kind] = cast(RawFormat, module)
    return dict(sorted(readers.items()))


FORMATS = discover()
