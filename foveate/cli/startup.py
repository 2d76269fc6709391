"""What a slow command shows before it can show anything else: torch, transformers and a model take seconds to load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape

if TYPE_CHECKING:
    from foveate.cli.settings import ModelSettings


@contextmanager
def spinner(text: str) -> Iterator[Any]:
    """Show on a terminal's stderr that something goes on, from the first moment on; `update(text)` says what.

    Pipes and logs see nothing, and neither does stdout.
    """
    from rich.console import Console

    # rich draws into files as well where it is told to; a status is for eyes only.
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status(text) as status:
        yield status


def load_model(name: str | None, settings: ModelSettings | None = None) -> tuple[Any, Any]:
    """`loading.load_model` under a spinner that starts before torch is imported."""
    with spinner("importing torch and transformers") as status:
        from foveate.cli import loading

        status.update("loading the demo model" if name is None else f"loading {escape(name)}")
        return loading.load_model(name, settings=settings)
