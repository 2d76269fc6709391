"""Random predictors for tiny models, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.engine.attach import base_model
from foveate.families import family_for
from foveate.predictors.files import PredictorConfig, save_predictors


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
            ),
            **changes,
        }
    )


def random_predictors(folder: Path, model: nn.Module, seed: int = 0, **changes: Any) -> tuple[str, dict[str, nn.Module]]:
    """Write predictors whose decisions differ from token to token; returns the folder and the modules."""
    config = config_for(model, **changes)
    torch.manual_seed(seed)
    modules = config.modules()
    for module in modules.values():
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.5)
    save_predictors(folder, config, modules)
    return str(folder), modules
