"""The model behind trained weights, recognized by its shape and a few of its own weights."""

from __future__ import annotations

from typing import Any

from torch import nn

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
    picked = [part.detach().flatten()[:: max(1, part.numel() // 8)][:8] for part in sampled] if readable else []
    return BaseModel(
        name=getattr(config, "_name_or_path", "") or "",
        model_type=config.model_type,
        width=text.hidden_size,
        layers=len(list(layers.children())),
        fingerprint=tuple(float(value) for part in picked for value in part),
    )
