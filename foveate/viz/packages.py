"""Packages that pictures and pages need and the rest of foveate does not; imported when something is drawn."""

from __future__ import annotations

from importlib.util import find_spec

from foveate.errors import MissingPackage


def require(*names: str) -> None:
    """Check that packages of the extra `view` are installed, before any work.

    Raises:
        MissingPackage: naming the command that installs them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingPackage(f"this view needs {' and '.join(missing)}: pip install foveate[view]")
