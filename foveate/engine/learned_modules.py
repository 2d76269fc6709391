"""The modules of learned methods: those that a caller gave, else those that the methods build for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from foveate.core.learned import LearnedMethod
from foveate.core.plan import Plan, Stage
from foveate.engine.base import base_model
from foveate.errors import AttachError
from foveate.families import Family


def checked(modules: Any) -> dict[str, nn.Module]:
    """The modules that a caller gave for learned methods; a plan need not use all of them."""
    if modules is None:
        return {}
    if not isinstance(modules, Mapping) or not all(isinstance(module, nn.Module) for module in modules.values()):
        raise AttachError("modules is a dict: the name of a learned method, and a torch module for it")
    return dict(modules)


def modules_of(plan: Plan, model: nn.Module, family: Family, given: Mapping[str, nn.Module]) -> dict[Stage, nn.Module]:
    """The module of each stage of a learned method; `given` ones by the method's name."""
    learned = [(stage, stage.method) for stage in plan.stages if isinstance(stage.method, LearnedMethod)]
    return {stage: given.get(method.name) or method.build(base_model(model, family)) for stage, method in learned}
