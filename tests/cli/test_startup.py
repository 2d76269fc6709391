"""Commands that compute nothing start at once: they wait for neither torch nor transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli import startup
from foveate.cost.presets import preset_names
from tests.marks import one_and_more

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
# On a quiet machine it is 0.3 to 0.5; importing torch alone takes more than this.
MOST_CPU_SECONDS = 1.5
SLOW = ("torch", "transformers", "numpy", "matplotlib", "av", "safetensors", "tokenizers")
PROGRAM = f"""
import sys, time
from foveate.cli.main import main
from tests.marks import one_and_more
code = 0
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(code, time.process_time(), *[name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)
"""
HELPS = [
    ["--help"],
    [],
    *([name, "--help"] for name in ("run", "plan", "methods", "models", "doctor", "demo", "eval", "train", "convert", "view")),
    *(["view", name, "--help"] for name in ("attention", "kept", "merge", "text")),
    ["eval", "demo", "--help"],
    ["eval", "generation", "--help"],
    ["train", "dynamic-llava", "--help"],
    ["convert", "dynamic-llava", "--help"],
]
ERRORS = [["fly"], ["run", "--plam", "none"], ["plan", "--batch", "x"], ["run"], ["view", "nothing"]]
QUICK = [
    ["methods"],
    ["methods", "--json"],
    ["models"],
    ["models", "--markdown"],
    ["plan"],
    ["plan", "random(layer=2, keep=0.5)", "--model", "qwen2.5-vl-7b", "--images", "1280x720", "--grid"],
    ["plan", "partition(site=vision, layer=2, keep=0.5) | random_gate(layer=2, keep=0.5)", "--vs", "llava-1.5-13b"],
    ["plan", "illava(preset=qwen2-vl-7b)", "--model", "qwen2-vl-7b", "--json"],
    ["plan", "fatsv(layer=2, keep=0.5)"],
]


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def _run(arguments: list[str]) -> tuple[int, float, list[str], str]:
    done = _python(PROGRAM, *arguments)
    *said, last = done.stderr.splitlines()
    code, seconds, *imported = last.split()
    return int(code), float(seconds), imported, done.stdout + "\n".join(said)


@pytest.mark.parametrize("arguments", one_and_more(HELPS, 3), ids=" ".join)
def test_a_help_text_imports_nothing_slow(arguments):
    code, seconds, imported, told = _run(arguments)
    assert code in (0, 2) and "Usage" in told
    assert imported == [] and seconds < MOST_CPU_SECONDS


@pytest.mark.full
@pytest.mark.parametrize("arguments", one_and_more(ERRORS, 2), ids=" ".join)
def test_a_mistyped_command_is_refused_at_once(arguments):
    code, seconds, imported, _ = _run(arguments)
    assert code == 2
    assert imported == [] and seconds < MOST_CPU_SECONDS


@pytest.mark.parametrize("arguments", one_and_more(QUICK, 3), ids=" ".join)
def test_tables_and_costs_need_neither_torch_nor_transformers(arguments):
    code, seconds, imported, _ = _run(arguments)
    assert code == (2 if "fatsv" in " ".join(arguments) else 0)
    assert imported == [] and seconds < MOST_CPU_SECONDS


def test_no_preset_makes_a_cost_wait():
    program = f"""
import sys, foveate
for name in {preset_names()!r}:
    assert foveate.estimate(name, "uniform(site=pre_llm, keep=0.5)", images=[(640, 480)]).visual_tokens_per_layer
print([name for name in {SLOW!r} if name in sys.modules])
"""
    done = _python(program)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_pipe_sees_no_spinner(capfd):
    with startup.spinner("loading") as status:
        status.update("still loading")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_the_spinner_before_torch_is_imported_and_on_stderr_only():
    program = """
import pty, os, subprocess, sys
leader, follower = pty.openpty()
child = "import sys; from foveate.cli import startup\\nwith startup.spinner('loading it'):\\n assert 'torch' not in sys.modules"
xterm = os.environ | {"TERM": "xterm"}
done = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, stderr=follower, env=xterm)
assert done.returncode == 0 and done.stdout == b"", done
assert b"loading it" in os.read(leader, 10_000)
"""
    done = _python(program)
    assert done.returncode == 0, done.stderr
