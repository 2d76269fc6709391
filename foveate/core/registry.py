"""Finding classes by file name: the file `fastv.py` defines the method `fastv`. There is no list to edit.

Other packages add their own through entry points, whose names are then the names on the command line.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from foveate.errors import UnknownName, did_you_mean


def file_names(package: ModuleType) -> list[str]:
    """Names of the public modules of a package, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))


@cache
def entry_point_targets(group: str) -> dict[str, Any]:
    """Entry points of a group by name, not loaded. Reading them costs milliseconds, so each group is read once."""
    return {point.name: point for point in entry_points(group=group)}


def find_class(package: ModuleType, group: str, name: str, base: type, kind: str) -> type:
    """Return the one public subclass of `base` that the module `package.name` defines, or an entry point of that name.

    Raises:
        UnknownName: if neither a file nor an entry point has the name; the message suggests the nearest.
    """
    outside = entry_point_targets(group)
    if name in file_names(package):
        module = importlib.import_module(f"{package.__name__}.{name}")
        own = [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not key.startswith("_")
        ]
        if len(own) != 1:
            raise TypeError(f"{module.__name__} must define exactly one public {base.__name__}, found {len(own)}")
        return own[0]
    if name in outside:
        loaded = outside[name].load()
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise TypeError(f"entry point '{name}' of {group} must name a subclass of {base.__name__}, not {loaded!r}")
        return loaded
    raise UnknownName(f"unknown {kind} '{name}'." + did_you_mean(name, [*file_names(package), *outside]))
