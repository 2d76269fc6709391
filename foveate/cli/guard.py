"""The last line of defence: however a command ends, one line says why, and the exit status says which kind it was."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from foveate.errors import FoveateError, FoveateWarning

REFUSED, UNFORESEEN, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141
TRACEBACK = "--traceback"
_LONGEST = 2_000  # characters of a message
# Typer carries its own copy of click from 0.25 on, and depends on click before: either way this is the class it raises.
_USAGE_ERRORS: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def guarded(command: Callable[[], object], with_traceback: bool = False) -> int:
    """Run a command and return the exit status.

    Args:
        command: returns its own exit status, or anything else for 0.
        with_traceback: print the traceback of an error above its line.

    Returns:
        2 for what foveate refuses, 70 for what it did not foresee, 130 for Ctrl-C, 141 if nobody reads what it prints.
    """
    _prepare_streams()
    try:
        with _warnings_in_one_line():
            code = command()
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
        if with_traceback:
            traceback.print_exc()
        status, line = _told(error)
        if line:  # a command that stands alone has printed its help
            _print(line)
        return status
    return code if isinstance(code, int) else 0


def split_traceback(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--traceback`, wherever it stands in front of `--`, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [one for one in arguments[:end] if one != TRACEBACK]
    return [*kept, *arguments[end:]], len(kept) < end


def _told(error: Exception) -> tuple[int, str]:
    """Exit status and line of an error."""
    if isinstance(error, FoveateError):
        return REFUSED, str(error)
    if isinstance(error, _USAGE_ERRORS):
        return REFUSED, str(error.format_message())
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return REFUSED, f"{where}{error.strerror or error}"
    if _is_out_of_memory(error):
        return REFUSED, "out of memory: use a smaller model or picture, fewer frames, or shorter answers"
    what = f"{type(error).__name__}: {error}"
    return UNFORESEEN, f"this is a bug in foveate ({what}); add {TRACEBACK} to see more, and please report what it prints"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error))
    )


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Our own warnings are for people here, not for programmers: no path and no line of code beside them."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, FoveateWarning):
            _print(str(message), ("warning: ", "bold yellow"))
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", FoveateWarning)  # whatever Python was told about warnings
        warnings.showwarning = show
        yield


def _print(line: str, kind: tuple[str, str] = ("error: ", "bold red")) -> None:
    text = " ".join(line.split())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    # Names may hold anything, also what a terminal would obey.
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    with suppress(OSError):
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble(kind, text))


def _prepare_streams() -> None:
    """Names of files may hold what the terminal's encoding does not; a closed stream takes everything."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still in the buffer of stdout has nowhere to go, and must not fail once more when Python ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
