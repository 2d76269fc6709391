"""Random predictors for tiny models, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.base import base_model
from foveate.families import family_for
from foveate.predictors.files import QUESTION_SELECTOR, SELECTOR, PredictorConfig, save_predictors
from tests.oracles.dense_reference import decoder_layers


def config_for(model: nn.Module, **changes: Any) -> PredictorConfig:
    base = base_model(model, family_for(model.config))
    return PredictorConfig(
        **{
            **dict(
                base_model=base.name or "tiny",
                model_type=base.model_type,
                hidden_size=base.width,
                layers=base.layers,
                fingerprint=base.fingerprint,
                width=16,
                heads=2,
                feedforward=32,
                selectors=(SELECTOR, QUESTION_SELECTOR),
            ),
            **changes,
        }
    )


def balance(module: nn.Module, states: Tensor) -> None:
    """Shift a predictor's last bias until it keeps half of the tokens [G, N, hidden]."""
    with torch.no_grad():
        margin = module(states.float())[..., 0] - module(states.float())[..., 1]
        middle = margin.flatten().sort().values[margin.numel() // 2 - 1 :][:2].mean()  # between two tokens, not on one
        [*module.parameters()][-1][1] += middle


def states_entering(model: nn.Module, layer: int, inputs: dict[str, Tensor]) -> Tensor:
    """[B, S, hidden] of a plain forward."""
    found: list[Tensor] = []
    one = decoder_layers(model)[layer]
    handle = one.register_forward_pre_hook(lambda _, args, kwargs: found.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return found[0]


def random_predictors(
    folder: Path, model: nn.Module, seed: int = 0, inputs: Any = None, **changes: Any
) -> tuple[str, dict[str, nn.Module]]:
    """Write random predictors, balanced on a prompt if one is given; returns the folder and the modules."""
    config = config_for(model, **changes)
    torch.manual_seed(seed)
    modules = config.modules()
    for module in modules.values():
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.5)
    if inputs is not None:
        states = states_entering(model, config.layer, inputs)
        for name, module in modules.items():
            if name not in config.selectors:  # which rank, and nothing else
                balance(module, states)
    save_predictors(folder, config, modules)
    return str(folder), modules
