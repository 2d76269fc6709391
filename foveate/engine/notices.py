"""What is said once: that a call under a plan did nothing, and why."""

from __future__ import annotations

import warnings
from weakref import WeakKeyDictionary

from foveate.errors import FoveateWarning

_said: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


def say_once(owner: object, text: str) -> None:
    """Warn, unless this attachment has said the same before."""
    said = _said.setdefault(owner, set())
    if text not in said:
        said.add(text)
        warnings.warn(text, FoveateWarning, stacklevel=2)
