"""One file per method; the file name is the method's name in specs, JSON, docs and on the command line.

A method is a frozen dataclass over tensors: it reads a TokenView and answers with a Selection. It never imports
transformers, never touches a model and never sees padding, batch rows or positions. To add one, copy `fastv.py`,
write its plain-loop twin in tests/oracles, and the shared contract test picks both up.
"""

from __future__ import annotations

import sys

from foveate.core import registry
from foveate.core.method import Method


def _check(name: str, method: type[Method]) -> None:
    if method().name != name:
        raise TypeError(f"{method.__name__} must live in a module called {name}, the name in specs")


_KIND = registry.Kind(sys.modules[__name__], Method, "method", _check)


def names() -> list[str]:
    """Names of all methods, ours and those of other packages."""
    return registry.names(_KIND)


def outside() -> list[str]:
    """Names of the methods of other packages."""
    return sorted(registry.outside(_KIND))


def has(name: str) -> bool:
    """Whether a method of ours or of another package has the name; nothing is loaded."""
    return registry.has(_KIND, name)


def get(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownName: with the nearest known name.
        PluginError: for a method of another package that cannot be used.
    """
    return registry.find_class(_KIND, name)


def class_named(name: str) -> type[Method] | None:
    """The class of ours with this name, such as `FastV`, or None."""
    return registry.class_named(_KIND, name)


def class_names() -> list[str]:
    """Names of the classes of ours."""
    return registry.class_names(_KIND)
