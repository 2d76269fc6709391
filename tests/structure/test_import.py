"""Importing foveate changes nothing: no attention registered, no hooks, no patched class, no file read, no model loaded."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
import foveate.api

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, warnings
import torch
from torch.nn.modules import module as nn_module
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

def state():
    hooks = [name for name in vars(nn_module) if name.startswith("_global_") and name.endswith("hooks")]
    assert len(hooks) >= 4, hooks
    classes = (torch.nn.Module, PreTrainedModel, GenerationMixin, Cache, DynamicCache, AttentionInterface)
    return {
        "attention": sorted(AttentionInterface().keys()),
        "masks": sorted(AttentionMaskInterface().keys()),
        "hooks": {name: len(getattr(nn_module, name)) for name in hooks},
        "classes": {cls.__name__: {key: id(value) for key, value in vars(cls).items()} for cls in classes},
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed()),
        "warnings": len(warnings.filters),
    }

opened = []
def watch(event, arguments):
    if event == "open" and watching:
        opened.append(str(arguments[0]))
watching = False
sys.addaudithook(watch)
before, modules = state(), set(sys.modules)
watching = True
import foveate
watching = False
assert state() == before, (state(), before)
new = set(sys.modules) - modules
models = [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name]
assert not models, models
assert not [name for name in new if name.startswith(("foveate.api", "foveate.engine"))], new
assert not [name for name in new if name.startswith(("PIL", "numpy", "typer", "rich", "matplotlib"))], new
data = sorted({path for path in opened if not path.endswith((".py", ".pyc", ".so"))})
assert not data, data
assert not [name for name in new if name.startswith(("foveate.methods.", "foveate.families."))
            and not name.endswith("_base")], "methods and families are imported when they are asked for"
"""


def test_importing_foveate_changes_nothing():
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


PUBLIC = """
import sys
import foveate, foveate.api
assert "torch" not in sys.modules and "transformers" not in sys.modules
for package in (foveate, foveate.api):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert callable(getattr(package, name)) or name in ("__version__", "methods", "recipes"), name
    try:
        package.Nothing
    except AttributeError:
        pass
    try:
        package.nothing
    except AttributeError as error:
        assert "has no attribute 'nothing'" in str(error)
    else:
        raise AssertionError
from foveate import FastV, Staged, attach
from foveate.methods.fastv import FastV as fastv
assert FastV is fastv is foveate.FastV and {"FastV", "Staged"} <= set(dir(foveate))
from foveate.api.attachment import attach as same
assert attach is same is foveate.attach is foveate.api.attach
assert foveate.attention is foveate.api.attention and callable(foveate.api.compare)
"""


@pytest.mark.full
def test_public_names_load_when_they_are_asked_for():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", PUBLIC], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("package", [foveate, foveate.api])
def test_type_checkers_see_the_same_names_as_programs(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (guard,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name for node in guard.body for alias in node.names}
    (table,) = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    assert typed == {key.value for key in table.keys} <= set(package.__all__)
    assert not any(importlib.util.find_spec(f"{package.__name__}.{name}") for name in typed - {"methods", "recipes"})
