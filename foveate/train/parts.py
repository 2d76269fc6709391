"""What trains and what does not: fresh predictors, the frozen vision encoder, an adapter."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from foveate.core.plan import Plan
from foveate.engine.base import base_model
from foveate.errors import InputError, MissingPackage
from foveate.families import family_for
from foveate.predictors import IMAGE, QUESTION_SELECTOR, SELECTOR, TEXT, PredictorConfig
from foveate.train.settings import FULL, LEARNED, LORA, NONE, TrainingConfig

# Where models keep what turns pixels into features; within it, what already belongs to the projector.
_ENCODERS = ("vision_tower", "visual", "vision_model", "image_tower", "video_tower", "audio_tower")
_PROJECTORS = ("merger", "merger_list", "deepstack_merger_list", "adapter", "vision_adapter")
# Of each checkpoint's name of a predictor, the method that uses it.
METHODS = {IMAGE: "dynamic_image", TEXT: "dynamic_text", SELECTOR: "selector", QUESTION_SELECTOR: "selector"}


def require(*packages: str) -> None:
    """Say which extra to install.

    Raises:
        MissingPackage: if a package is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        extra = "lora" if missing == ["peft"] else "train"
        raise MissingPackage(f"training needs {' and '.join(missing)}: pip install 'foveate[{extra}]'")


def predictor_config(model: Any, config: TrainingConfig, **more: Any) -> PredictorConfig:
    """What belongs to predictors of this training for a model; `more` are further fields."""
    base = base_model(model, family_for(model.config))
    fields: dict[str, Any] = {
        "base_model": base.name or base.model_type,
        "model_type": base.model_type,
        "hidden_size": base.width,
        "layers": base.layers,
        "fingerprint": base.fingerprint,
        "keep": config.keep,
        "width": config.width,
        "heads": config.heads,
        "feedforward": config.feedforward,
        "blocks": config.blocks,
    }
    return PredictorConfig(**(fields | config.described() | more))


def fresh_predictors(model: Any, config: TrainingConfig) -> dict[str, nn.Module]:
    """Predictors as training begins with them, in float32: matrices from a normal distribution as wide as the model's own,
    biases zero.
    """
    deviation = float(getattr(model.config.get_text_config(), "initializer_range", 0.02) or 0.02)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        modules = predictor_config(model, config).modules()
        for module in modules.values():
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.normal_(part.weight, std=deviation)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
    return modules


def plan_of(config: TrainingConfig) -> Plan:
    """The stages that train."""
    return Plan() if config.masks == NONE else Plan(config.stages())


def encoders(model: nn.Module) -> list[nn.Module]:
    """The vision encoders of a model, [] if they are not where models have them."""
    base = model.get_submodule(family_for(model.config).base)
    return [module for name, module in base.named_children() if name in _ENCODERS]


def choose_parameters(model: Any, config: TrainingConfig) -> Any:
    """Freeze what does not train; returns the model, in an adapter for mode "lora".

    Raises:
        InputError: for mode "full", if the vision encoder is not found.
    """
    model.requires_grad_(False)
    if config.mode == LORA:
        return _with_adapter(model, config)
    if config.mode == FULL:
        frozen = encoders(model)
        if not frozen:
            raise InputError(f"{type(model).__name__}: its vision encoder is not where one is expected: use --mode predictors")
        model.requires_grad_(True)
        for encoder in frozen:
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(bool(set(name.split(".")) & set(_PROJECTORS)))
    return model


def _with_adapter(model: Any, config: TrainingConfig) -> Any:
    require("peft")
    from peft import LoraConfig, get_peft_model

    decoder = family_for(model.config).decoder
    targets = [
        f"{decoder}.{name}" for name, part in model.get_submodule(decoder).named_modules() if isinstance(part, nn.Linear)
    ]
    adapter = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules=targets
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return get_peft_model(model, adapter)


def is_learned(config: TrainingConfig) -> bool:
    """Whether predictors train, or a control of them."""
    return config.masks == LEARNED
