"""Configurations of published models, without weights: what a cost estimate needs when no model is at hand.

Each preset is one file in presets/, the Hugging Face config of a checkpoint with the values its authors published, reduced to
what shapes depend on. It carries its own `model_type`, so `AutoConfig.for_model(**load_preset(name))` builds the config; all
numbers that families ask for stand in it, so `preset_config(name)` serves as well, without transformers, which imports slowly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.errors import UnknownName, did_you_mean

_FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of all presets, sorted: the file names without their ending."""
    return sorted(path.name.removesuffix(".json") for path in _FOLDER.glob("*.json"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the config of a preset as a fresh dict.

    Raises:
        UnknownName: for a name that is not in `preset_names()`.
    """
    names = preset_names()
    if name not in names:
        raise UnknownName(f"unknown preset {name!r}.{did_you_mean(name, names)}")
    config: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config


class PresetConfig:
    """A preset with its numbers as attributes, as families read a Hugging Face config, without importing transformers.

    A family asks for numbers that transformers would fill in as well; presets name them, and an attribute that one lacks is
    an AttributeError.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, PresetConfig(value) if isinstance(value, dict) and "model_type" in value else value)

    def get_text_config(self) -> PresetConfig:
        """The config of the language model."""
        text: PresetConfig = vars(self).get("text_config", self)
        return text


def preset_config(name: str) -> PresetConfig:
    """Return a preset as a config that `families` and `cost` read.

    Raises:
        UnknownName: for a name that is not in `preset_names()`.
    """
    return PresetConfig(load_preset(name))
