"""Configurations of published models, without weights: what a cost estimate needs when no model is at hand.

Each preset is one file in presets/, the Hugging Face config of a checkpoint with the values its authors published, reduced to
what shapes depend on. It carries its own `model_type`, so `AutoConfig.for_model(**load_preset(name))` builds the config.
"""

from __future__ import annotations

import json
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
