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

_GROUP = "foveate.families"


def names() -> list[str]:
    """Names of all families."""
    return sorted({*registry.file_names(sys.modules[__name__]), *registry.entry_point_targets(_GROUP)})


def get(name: str) -> Family:
    """Return a family by name, or raise UnknownName."""
    family: Family = registry.find_class(sys.modules[__name__], _GROUP, name, Family, "family")()
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
    for name in names():
        family = get(name)
        supported += family.model_types
        if family.covers(config):
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


__all__ = ["Family", "TinyMedium", "family_for", "get", "names", "refused"]
