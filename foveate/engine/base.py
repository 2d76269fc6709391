"""The model that trained weights belong to, recognized by its shape and a few of its own weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.core.learned import BaseModel
from foveate.families import Family


def base_model(model: nn.Module, family: Family) -> BaseModel:
    """What trained weights must know of a model, a few of its own weights included."""
    config: Any = model.config
    text = config.get_text_config()
    layers = model.get_submodule(f"{family.decoder}.layers")
    last = list(layers.children())[-1]
    sampled = [model.get_input_embeddings().weight, *(part for part in last.parameters() if part.ndim == 2)][:2]  # type: ignore[operator]
    readable = all(part.is_floating_point() and part.device.type != "meta" for part in sampled)
    return BaseModel(
        name=getattr(config, "_name_or_path", "") or "",
        model_type=config.model_type,
        width=text.hidden_size,
        layers=len(list(layers.children())),
        fingerprint=tuple(mark for part in sampled for mark in fingerprint(part)) if readable else (),
    )


def fingerprint(weight: Tensor) -> tuple[float, ...]:
    """Eight numbers of a weight, from its whole length."""
    picked = weight.detach().flatten()[:: max(1, weight.numel() // 8)][:8]
    return tuple(float(value) for value in picked)
