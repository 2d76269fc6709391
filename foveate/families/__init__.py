"""One declarative file per model family: where its parts are, how its media become columns, what it looks like in numbers.

A family never hooks, patches or configures a model; the engine does the work with what the file says. To add one, copy the
nearest neighbour (`llava.py` for encoders that see [B, N, D], `qwen2_5_vl.py` for packed ones, `gemma3.py` for sliding layers),
write `tiny_config` and `tiny_medium`, and the family contract in the tests picks it up. A close relative subclasses and
overrides one thing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from foveate.core import registry
from foveate.errors import UnsupportedModel, did_you_mean
from foveate.families._base import Family, TinyMedium


def _check(name: str, cls: type[Family]) -> None:
    family = cls()
    for attribute, kind in (("title", str), ("base", str), ("decoder", str), ("attention", str), ("notes", str)):
        if not isinstance(getattr(family, attribute), kind):
            raise TypeError(f"{attribute} must be a {kind.__name__}")
    for attribute in ("model_types", "host_inputs", "token_inputs"):
        words = getattr(family, attribute)
        if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
            raise TypeError(f"{attribute} must be a tuple of strings")
    for attribute in ("placeholders", "unsupported"):
        if not isinstance(getattr(family, attribute), Mapping):
            raise TypeError(f"{attribute} must be a mapping")


_KIND = registry.Kind(sys.modules[__name__], Family, "family", _check)


def names() -> list[str]:
    """Names of all families."""
    return registry.names(_KIND)


def outside() -> list[str]:
    """Names of the families of other packages."""
    return sorted(registry.outside(_KIND))


def get(name: str) -> Family:
    """Return a family by name, or raise UnknownName or PluginError."""
    family: Family = registry.find_class(_KIND, name)()
    return family


def refused() -> Mapping[str, str]:
    """Model types that no family file can serve, each with the reason in words."""
    from foveate.families._refused import REFUSED

    return REFUSED


def family_for(config: Any) -> Family:
    """Return the family of a Hugging Face config.

    Raises:
        UnsupportedModel: if no family file names the config's model_type; says why none can, or what such a file needs.
    """
    model_type = getattr(config, "model_type", type(config).__name__)
    supported: list[str] = []
    for name in registry.file_names(_KIND.package):  # ours first: no plugin takes a model of theirs
        family = get(name)
        supported += family.model_types
        if family.covers(config):
            family.check(config)
            return family
    for name in outside():
        family = get(name)
        supported += family.model_types
        if _covers(name, family, config):
            family.check(config)
            return family
    reason = refused().get(model_type)
    if reason is not None:
        raise UnsupportedModel(f"model type '{model_type}' cannot be served: {reason}")
    raise UnsupportedModel(
        f"no family file describes model type '{model_type}'.{did_you_mean(model_type, supported)} "
        "A family file names the decoder, its layers, the vision encoder, the placeholder ids and the grid of each image "
        "(see CONTRIBUTING.md, 'Add a family')."
    )


def _covers(name: str, family: Family, config: Any) -> bool:
    """Whether another package's family covers a config; one that fails here does not hide those after it."""
    try:
        return bool(family.covers(config))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is, it is not ours
        registry.tell(_KIND, name, error)
        return False


__all__ = ["Family", "TinyMedium", "family_for", "get", "names", "outside", "refused"]
