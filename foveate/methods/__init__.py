"""One file per method; the file name is the method's name in specs, JSON, docs and on the command line.

A method is a frozen dataclass over tensors: it reads a TokenView and answers with a Selection. It never imports
transformers, never touches a model and never sees padding, batch rows or positions. To add one, copy `fastv.py`,
write its plain-loop twin in tests/oracles, and the shared contract test picks both up.
"""

from __future__ import annotations

import sys

from foveate.core import registry
from foveate.core.method import Method

_GROUP = "foveate.methods"


def names() -> list[str]:
    """Names of all methods, ours and those of other packages."""
    return sorted({*registry.file_names(sys.modules[__name__]), *registry.entry_point_targets(_GROUP)})


def get(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownName: with the nearest known name.
    """
    found = registry.find_class(sys.modules[__name__], _GROUP, name, Method, "method")
    if found.__module__.rpartition(".")[2] != name:
        raise TypeError(f"entry point '{name}': {found.__name__} must live in a module called {name}, the name in specs")
    return found
