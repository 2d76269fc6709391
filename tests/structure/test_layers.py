"""Imports point down only, the lower rooms know no transformers, the engine knows no method. The rules prove themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate import methods
from tests.structure.layers import ORDER, import_violations, naming_violations

ROOT = Path(__file__).parents[2]
FILES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted((ROOT / "foveate").rglob("*.py"))}


def test_the_rules_see_the_package():
    assert len(FILES) > 40
    assert {"foveate/core/plan.py", "foveate/api/cost.py", "foveate/engine/attachment.py"} <= set(FILES)


def test_imports_point_down_only():
    assert import_violations(FILES) == []


def test_the_engine_names_no_method():
    # A plan says scope=frame, whatever its method.
    assert naming_violations(FILES, [name for name in methods.names() if name != "scope"]) == []


PLANTED = {
    "core imports ops": ("foveate/core/x.py", "from foveate.ops.windows import window_top_indices"),
    "core imports methods": ("foveate/core/x.py", "from foveate import methods"),
    "methods imports families": ("foveate/methods/x.py", "import foveate.families.llava"),
    "families imports cost": ("foveate/families/x.py", "from foveate.cost.flops import matmul_flops"),
    "cost imports methods": ("foveate/cost/x.py", "def f():\n    from foveate.methods import fastv"),
    "engine imports spec": ("foveate/engine/x.py", "from foveate.spec import parse"),
    "engine imports recipes": ("foveate/engine/x.py", "import foveate.recipes"),
    "recipes imports spec": ("foveate/recipes/x.py", "from foveate.spec.words import read_budget"),
    "spec imports api": ("foveate/spec/x.py", "from foveate.api import attach"),
    "spec imports __init__": ("foveate/spec/x.py", "import foveate"),
    "engine imports __init__": ("foveate/engine/x.py", "from foveate import attach"),
    "viz imports bench": ("foveate/viz/x.py", "from foveate.bench import measure"),
    "demo imports train": ("foveate/demo/x.py", "from foveate.train import fit"),
    "bench imports cli": ("foveate/bench/x.py", "from foveate.cli.main import main"),
    "api imports nowhere": ("foveate/api.py", "from foveate.nowhere import x"),
    "room 'attic' has no place": ("foveate/attic/x.py", ""),
    "relative import": ("foveate/core/x.py", "from .plan import Plan"),
    "core imports numpy": ("foveate/core/x.py", "import numpy as np"),
    "ops imports transformers": ("foveate/ops/x.py", "import transformers"),
    "methods imports transformers": ("foveate/methods/x.py", "def f():\n    from transformers import AutoModel"),
    "methods imports PIL": ("foveate/methods/x.py", "from PIL import Image"),
    "files imports core": ("foveate/files/x.py", "from foveate.core.site import Site"),
    "files imports torch": ("foveate/files/x.py", "def f():\n    import torch"),
    "files imports PIL": ("foveate/files/x.py", "from PIL import Image"),
    "errors imports torch": ("foveate/errors.py", "import torch"),
    "cost imports transformers": ("foveate/cost/x.py", "from transformers import AutoConfig"),
    "inside functions only": ("foveate/families/x.py", "from transformers import LlavaConfig"),
}


@pytest.mark.parametrize(("words", "planted"), PLANTED.items(), ids=list(PLANTED))
def test_a_planted_import_is_found(words, planted):
    path, source = planted
    found = import_violations({path: source})
    assert len(found) == 1 and words in found[0]


ALLOWED = [
    ("foveate/core/x.py", "import math\nimport torch.nn.functional as F\nfrom foveate.core.plan import Plan"),
    ("foveate/core/x.py", "from foveate.errors import PlanError"),
    ("foveate/methods/x.py", "from foveate.ops.windows import window_top_indices"),
    ("foveate/families/x.py", "def tiny_config():\n    from transformers import LlavaConfig"),
    ("foveate/engine/x.py", "from transformers import Cache\nfrom foveate import families"),
    ("foveate/engine/x.py", "from foveate.version import __version__"),
    ("foveate/spec/x.py", "from foveate import methods, recipes"),
    ("foveate/bench/x.py", "import foveate\nimport numpy\nfrom foveate.api import attach"),
    ("foveate/cli/x.py", "from foveate.serve import app\nfrom foveate.viz import page"),
    ("foveate/__init__.py", "from foveate.api import attach"),
]


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_what_points_down_is_allowed(path, source):
    assert import_violations({path: source}) == []


@pytest.mark.parametrize(
    "source",
    [
        'x = "fastv"',
        'raise ValueError("use random(site=pre_llm)")',
        'x = f"for {name} write uniform"',
        "from foveate.methods.fastv import FastV",
        "from foveate import methods",
    ],
)
def test_a_planted_method_name_in_the_engine_is_found(source):
    assert naming_violations({"foveate/engine/x.py": source}, ["fastv", "random", "uniform"])
    assert not naming_violations({"foveate/spec/x.py": source}, ["fastv", "random", "uniform"])


def test_other_words_in_the_engine_are_its_own():
    source = '"""At random places."""\nx = "randomly uniformity fastv2"'
    assert naming_violations({"foveate/engine/x.py": source}, ["fastv", "random", "uniform"]) == []


def test_every_room_stands_in_the_order_once():
    rooms = [room for line in ORDER for room in line]
    assert len(rooms) == len(set(rooms))
