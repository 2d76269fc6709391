"""Importing foveate changes nothing: no attention registered, no hooks, no patched class, no file read, no model loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
