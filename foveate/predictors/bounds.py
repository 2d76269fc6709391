"""What the numbers that describe predictors can be: checked before anything of their size is made."""

from __future__ import annotations

import math
from typing import Any

from foveate.errors import InputError

# Smallest and largest; far beyond what was ever published.
_WHOLE = {
    "hidden_size": (1, 2**17),
    "layers": (1, 1_000),
    "layer": (1, 1_000),
    "width": (4, 2**14),
    "heads": (1, 1_024),
    "feedforward": (1, 2**17),
    "blocks": (0, 64),
}
_MOST_MARKS = 10_000
SELECTORS = ("selector", "question_selector")
_LONGEST_TURN = 64


def check_config(config: Any) -> None:
    """Refuse a `PredictorConfig` that describes no predictors.

    Raises:
        InputError: one line that names the field, what it is and what it can be.
    """
    for name in ("base_model", "model_type"):
        if not isinstance(getattr(config, name), str):
            raise InputError(f"{name} is a text, not {type(getattr(config, name)).__name__}")
    inside = config.image or config.text_keep is not None or config.instruct_keep is not None
    for name, (least, most) in (_WHOLE if inside else _WHOLE | {"layer": (0, 1_000)}).items():
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"{name} is a whole number from {least} to {most:,}, not {_shown(value)}")
    if config.layer >= max(config.layers, 2):
        raise InputError(
            f"layer={config.layer}: this model has {config.layers} decoder layers, predictors judge in front of one"
        )
    if config.width % config.heads or config.width % 4:
        raise InputError(f"width {config.width} must be a multiple of heads {config.heads} and of 4")
    for name in ("keep", "text_keep", "instruct_keep"):
        value = getattr(config, name)
        if not (value is None and name != "keep") and not (_is_number(value) and 0 < value <= 1):
            raise InputError(f"{name} is a share above 0 and up to 1, not {_shown(value)}")
    marks = config.fingerprint
    if not (isinstance(marks, tuple) and len(marks) <= _MOST_MARKS and all(_is_number(mark) for mark in marks)):
        raise InputError("fingerprint is a list of finite numbers, a few weights of the model that predictors belong to")
    if not isinstance(config.image, bool):
        raise InputError(f"image is true or false, not {_shown(config.image)}")
    names = config.selectors
    if not (isinstance(names, tuple) and all(name in SELECTORS for name in names) and len({*names}) == len(names)):
        raise InputError(f"selectors is a list of {' and '.join(SELECTORS)}, each once at most, or of nothing")
    turn = config.turn
    if not (
        isinstance(turn, tuple) and len(turn) <= _LONGEST_TURN and all(type(one) is int and 0 <= one < 2**31 for one in turn)
    ):
        raise InputError(f"turn is a list of at most {_LONGEST_TURN} token ids, those with which a user's turn begins")
    if not isinstance(config.provenance, dict):
        raise InputError(f"provenance is an object, not {type(config.provenance).__name__}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a number of many digits"
