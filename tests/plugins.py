"""Packages that bring methods, families and recipes, good and broken ones, laid into a folder as pip would install them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

METHOD = """
from dataclasses import dataclass
from foveate.methods.uniform import Uniform

@dataclass(frozen=True)
class Mine(Uniform):
    '''Like uniform.'''
"""
RECIPE = """
from dataclasses import dataclass
from foveate.recipes import Recipe
from foveate.spec import parse

@dataclass(frozen=True)
class Mine(Recipe):
    '''Two stages.'''

    def expand(self):
        return parse("uniform(layer=2, keep=0.5) | uniform(layer=3, keep=0.5)").stages
"""
FAMILY = """
from foveate.families.llava import Llava

class Mine(Llava):
    model_types = ("minemodel",)
    title = "Mine"
"""


def install(folder: Path, package: str, points: Mapping[str, str], files: Mapping[str, str] | None = None) -> None:
    """A distribution with these lines by entry-point group, and these modules, in a folder for sys.path."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(f"[{group}]\n{lines}\n" for group, lines in points.items()))
    for name, text in (files or {}).items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Run(NamedTuple):
    code: int
    out: str
    err: str


_RUNS = """
import contextlib, io, json, sys
from foveate.cli.main import main
done = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def runs(folder: Path, *commands: Sequence[str]) -> list[Run]:
    """`foveate ...` several times in one process where the packages of a folder are installed."""
    done = python(folder, _RUNS, json.dumps(commands))
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [Run(*run) for run in json.loads(done.stdout)]


def python(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python program there."""
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
