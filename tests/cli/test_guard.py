"""However a command ends: one line, and a status that says which kind of end it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from foveate.cli.guard import guarded, split_traceback
from foveate.errors import InputError, UnknownName

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("two\nlines [bold]"), 2, "error: two\\nlines [bold]"),
        (UnknownName("who"), 2, "error: who"),
        (typer.BadParameter("no"), 2, "error: "),
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), 2, "error: a.txt: No space left on device"),
        (MemoryError(), 2, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory"),
        (
            ZeroDivisionError("division by zero"),
            70,
            "this is a bug in foveate (ZeroDivisionError: division by zero); add --traceback",
        ),
        (RecursionError("deep"), 70, "this is a bug"),
        (InputError("\x1b[31m\ud800"), 2, "error: \\x1b[31m\\ud800"),
        (InputError("x" * 100_000), 2, " ... "),
    ],
)
@pytest.mark.parametrize("with_traceback", [False, True])
def test_every_error_is_one_line_and_a_status(capsys, error, status, says, with_traceback):
    def command():
        raise error

    assert guarded(command, with_traceback) == status
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()[-1]) < 2100
    assert says in err.splitlines()[-1]
    assert (len(err.splitlines()) == 1 and "Traceback" not in err) or with_traceback
    assert ("Traceback" in err) is with_traceback


def test_interrupts_are_quiet(capsys):
    for error in (KeyboardInterrupt, typer.Abort):
        assert guarded(lambda error=error: (_ for _ in ()).throw(error)) == 130
    assert capsys.readouterr() == ("", "")


def test_traceback_stands_anywhere_but_behind_the_end_of_options():
    assert split_traceback(["run", "--traceback", "a"]) == (["run", "a"], True)
    assert split_traceback(["run", "a"]) == (["run", "a"], False)
    assert split_traceback(["run", "--", "--traceback"]) == (["run", "--", "--traceback"], False)


def foveate(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "foveate", *arguments],
        env=environment,
        capture_output="stdout" not in options,
        timeout=120,
        **options,
    )


def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = foveate("plan", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"error: No space left on device\n")


def test_names_that_the_terminal_cannot_show_are_escaped():
    done = foveate("plan", "--model", b"\xff\x1b[31m")
    assert done.returncode == 2 and done.stderr.startswith(b"error: '\\udcff\\x1b[31m' is neither")


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f'"{sys.executable}" -m foveate methods --json | head -c 1', shell=True, cwd=ROOT, capture_output=True, timeout=120
    )
    assert (done.stdout[:1], done.stderr) == (b"{" if done.stdout[:1] == b"{" else b"[", b"")
