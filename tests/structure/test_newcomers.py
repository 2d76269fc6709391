"""A method and a family that are nothing but a new file each are met by every suite, and a broken method fails there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Everything is collected once more, which a busy machine takes its time for.
pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

METHOD = '''
"""A throw-away method."""

from dataclasses import dataclass

from foveate.core.method import ScoreMethod


@dataclass(frozen=True)
class Newcomer(ScoreMethod):
    """Keeps the largest states, or the smallest."""

    smallest: bool = False

    paper = "nowhere"

    def score(self, view):
        size = view.features.float().norm(dim=-1)
        return -size if self.smallest else size
'''
BROKEN = (
    METHOD.replace("Newcomer", "Spoiler")
    .replace("size = view.features.float().norm(dim=-1)", "size = view.features.float().norm(dim=-1); size.sum().item()")
    .replace("smallest: bool = False", "smallest: bool = False\n    power: int = 1")
)
FAMILY = '''
"""A throw-away family."""

from foveate.families.llava import Llava


class Stranger(Llava):
    """LLaVA under another name."""

    title = "Stranger"

    def tiny_config(self):
        config = super().tiny_config()
        config.text_config.num_hidden_layers = 4
        return config
'''
# Everything in one process: starting Python with torch is most of what this takes.
PROGRAM = """
import contextlib, io, json, sys
import pytest
import foveate.families, foveate.methods
methods, families = sys.argv[1:]
foveate.methods.__path__.append(methods)
foveate.families.__path__.append(families)

RUN = (
    ("test_b_and_g_pruned_and_merged_equals_the_dense_reference", "stranger-", "newcomer(layer={k}, keep="),
    ("test_every_method_keeps_the_contract", "[newcomer()"),
    ("test_every_method_keeps_the_contract", "[spoiler()"),
    ("test_the_examples_of_a_method_use_every_option", "[newcomer"),
    ("test_the_examples_of_a_method_use_every_option", "[spoiler"),
)

class Notes:
    '''Notes what is collected, and lets a few of it run.'''

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, session, items):
        from tests import matrix
        self.items = {item.nodeid: [mark.name for mark in item.iter_markers()] for item in items}
        self.cells = session.config.stash[matrix._COLLECTED]["cells"]
        self.chosen = [next(name for name in self.items if all(part in name for part in parts)) for parts in RUN]
        self.outcomes = dict.fromkeys(self.chosen)
        items[:] = [item for item in items if item.nodeid in self.chosen]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            self.outcomes[report.nodeid] = report.outcome, str(report.longrepr or "")

notes = Notes()
suites = [f"tests/{suite}.py" for suite in (
    "engine/test_oracles", "engine/test_memory", "engine/test_random_plans", "engine/test_backends", "spec/test_roundtrip",
    "methods/test_contract", "api/test_selfcheck",
)]
with contextlib.redirect_stdout(io.StringIO()):
    pytest.main(["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", *suites], plugins=[notes])
from foveate.api.capabilities import family_capabilities, method_capabilities
print(json.dumps({
    "all": sorted(notes.items),
    "short": sorted(name for name, marks in notes.items.items() if not {"full", "nightly"} & {*marks}),
    "cells": notes.cells,
    "ran": [notes.outcomes[name] for name in notes.chosen],
    "methods": [[row.name, row.effect, row.sites] for row in method_capabilities(["newcomer"])],
    "families": [[row.name, row.sites] for row in family_capabilities(["stranger"])],
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the suites collect, and some of what they say, where a folder of each package holds newcomers."""
    methods, families = tmp_path_factory.mktemp("methods"), tmp_path_factory.mktemp("families")
    (methods / "newcomer.py").write_text(METHOD)
    (methods / "spoiler.py").write_text(BROKEN)
    (families / "stranger.py").write_text(FAMILY)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(methods), str(families)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cases_of(names: list[str], *parts: str) -> list[str]:
    return [name for name in names if all(part in name for part in parts)]


ORACLES = ("test_a_", "test_b_and_g_pruned", "test_b_rows", "test_c_", "test_d_", "test_f_")
SUITES = {
    "oracles": [("engine/test_oracles.py::" + oracle, "newcomer(") for oracle in ORACLES],
    "options": [("engine/test_oracles.py::test_b_and_g_pruned", "newcomer(layer={k}", "smallest=on")],
    "memory": [("engine/test_memory.py::test_invariant_6", "newcomer(")],
    "round trip": [("spec/test_roundtrip.py::test_any_options", "newcomer")],
    "contract": [("methods/test_contract.py::test_every_method_keeps", f"newcomer({said})") for said in ("", "smallest=on")],
}


@pytest.mark.parametrize("suite", SUITES)
def test_a_new_method_is_met_by_every_suite_in_the_short_run(seen, suite):
    for start, *parts in SUITES[suite]:
        assert cases_of(seen["short"], start, *parts), (start, parts)


def test_a_new_family_is_met_by_every_suite(seen):
    for start in (*("engine/test_oracles.py::" + oracle for oracle in ORACLES), "engine/test_random_plans.py::test_"):
        assert cases_of(seen["all"], start, "stranger"), start
    for start in ("engine/test_backends.py::test_pruned", "api/test_selfcheck.py::test_every_family"):
        assert cases_of(seen["all"], start, "stranger"), start
    assert cases_of(seen["short"], "engine/test_oracles.py::test_b_and_g_pruned", "stranger"), "one case in the short run"


def test_the_matrix_and_the_table_of_capabilities_have_rows_for_both(seen):
    assert {"newcomer"} < {cell[1] for cell in seen["cells"]}
    assert ["stranger", "newcomer"] in [cell[:2] for cell in seen["cells"]]
    assert seen["methods"] == [["newcomer", "drops", ["pre_llm", "llm"]]]
    assert seen["families"] == [["stranger", ["vision", "pre_llm", "llm", "decode"]]]


def test_a_good_method_passes_and_a_broken_one_fails_for_what_it_breaks(seen):
    oracle, contract, waits, used, unused = seen["ran"]
    assert [oracle[0], contract[0], used[0]] == ["passed"] * 3
    assert waits[0] == "failed" and "waits for the device" in waits[1]
    assert unused[0] == "failed" and "add examples() to Spoiler" in unused[1]
