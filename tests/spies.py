"""What reaches the layers of a model, and what is left on it: for tests that look inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.trace import Trace
from foveate.engine import conversation, forward, labels
from tests.oracles.dense_reference import decoder_layers


@contextmanager
def layer_calls(model: nn.Module, layer: int) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments and hidden states of every call of a decoder layer. Open it behind `attach`: hooks run in order."""
    calls: list[dict[str, Any]] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({"hidden": args[0], **kwargs})

    handle = decoder_layers(model)[layer].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a plan could leave behind on a model and in the context."""
    modules = dict(model.named_modules())
    return {
        "hooks": {
            name: (
                list(module._forward_pre_hooks),
                list(module._forward_hooks),
                list(module._forward_hooks_always_called),
                list(module._backward_hooks),
            )
            for name, module in modules.items()
        },
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "configs": {name: id(module.config) for name, module in modules.items() if hasattr(module, "config")},
        "config": model.config.to_dict(),
        "context": (len(forward._running.get()), len(conversation._open.get()), labels._travelling.get() is None),
    }


def settled_state(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """`state_of` behind a first plain call: transformers installs capture hooks of its own at it, and they stay."""
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return state_of(model)


def alive_columns(trace: Trace, inputs: dict[str, Tensor]) -> list[Tensor]:
    """For each stage of a trace [B, S] bool: the columns of the prompt that are alive behind it."""
    stages = len(trace.media[0].kept) if trace.media else 0
    out = []
    for number in range(stages):
        columns = torch.ones(inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        out.append(columns)
    return out


def real(inputs: dict[str, Tensor]) -> Tensor:
    """[B, S] bool, False at padding."""
    mask = inputs.get("attention_mask")
    return torch.ones(inputs["input_ids"].shape, dtype=torch.bool) if mask is None else mask.bool()
