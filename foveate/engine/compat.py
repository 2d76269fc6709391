"""All branches on the version of transformers, each with the version that lets us delete it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.errors import UnsupportedModel
from foveate.families import Family
from foveate.version import NEWEST_TESTED_TRANSFORMERS

_MAJOR, _MINOR = (int(part) for part in transformers.__version__.split(".")[:2])
_TRANSFORMERS = (_MAJOR, _MINOR)
# From 5.23 on checkpointing wraps forward and hooks stay outside; before, hooks are replayed inside backward.
# Delete when transformers >= 5.23 is required.
HOOKS_SURVIVE_CHECKPOINTING = _TRANSFORMERS >= (5, 23)
# From 5.18 on a sliding layer that records its past returns its window only. Delete when that is required.
RECORDED_PAST_IS_CUT = _TRANSFORMERS >= (5, 18)
# The parameter was renamed when its meaning changed.
_CROP_TAKES_A_LENGTH = "max_length" in inspect.signature(DynamicLayer.crop).parameters

# The fp8 cache layer, None before transformers 5.21. Delete when that is required.
FP8_LAYER: Any = getattr(cache_utils, "Fp8QuantizedLayer", None)

# The cache layer of a decoder layer that stores nothing, None in versions that give such layers none. Delete with those.
DUMMY_LAYER: Any = getattr(cache_utils, "DummyLayer", None)

# Cache layers that hold a state (linear attention, short convolutions), None before transformers 5.4.
_STATE_LAYER: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", None)

# The name of a call's KV cache among its arguments and in its output. Callers may go on writing the old name until 5.40;
# hooks see what was written. Delete when transformers >= 5.24 is required.
CACHE = "cache" if _TRANSFORMERS >= (5, 24) else "past_key_values"
_CACHE_NAMES = ("cache", "past_key_values")


def is_untested() -> bool:
    """Whether transformers is newer than what the tests ran on."""
    return _TRANSFORMERS > NEWEST_TESTED_TRANSFORMERS


def refuse_broken(family: Family) -> None:
    """Raise UnsupportedModel where this transformers cannot run a family's plain model, or has it in other parts."""
    if family.since > _TRANSFORMERS:
        major, minor = family.since
        raise UnsupportedModel(
            f"{family.title} has other parts in transformers {transformers.__version__}, between which no plan fits: install "
            f"{major}.{minor} or newer"
        )
    reason = family.broken_in.get(_TRANSFORMERS)
    if reason is not None:
        raise UnsupportedModel(
            f"{family.title} fails in transformers {transformers.__version__} itself, without any plan: {reason}; "
            "install another version of transformers"
        )


def keeps_no_slots(layer: Any) -> bool:
    """Whether a cache layer stores nothing per token: it has a state, or its decoder layer reads the keys of another."""
    has_state = _STATE_LAYER is not None and isinstance(layer, _STATE_LAYER)
    return type(layer) is DUMMY_LAYER or (has_state and not isinstance(layer, cache_utils.CacheLayerMixin))


def states_of(layer: Any) -> list[torch.Tensor]:
    """The states that a cache layer holds, whatever the number of tokens."""
    held = [getattr(layer, name, None) for name in ("conv_states", "recurrent_states")]
    # One tensor each before transformers 5.2x, one of several by number since.
    tensors = [state for states in held for state in (states.values() if isinstance(states, dict) else [states])]
    return [state for state in tensors if isinstance(state, torch.Tensor)]


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the keyword arguments of a call (a layer's, a model's or generate's), under either of its names."""
    for name in _CACHE_NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    return None


def cache_in(output: Any) -> Any:
    """The KV cache in what a model or generate() gave back; None without one."""
    return getattr(output, CACHE, None)


def replace_features(output: Any, change: Callable[[Any], Any]) -> None:
    """Put changed features of pictures, as they stand in the prompt, into what a model gave back.

    From transformers 5.24 on they stand in what the encoder gave, which later steps read again: that is left as it is. Delete
    the other branch when 5.24 is required.
    """
    for kind in ("image", "video"):
        encoded = getattr(output, f"{kind}_outputs", None)
        if encoded is not None and encoded.pooler_output is not None:
            changed = output[f"{kind}_outputs"] = copy(encoded)
            changed.pooler_output = change(encoded.pooler_output)
        elif _TRANSFORMERS < (5, 24) and getattr(output, f"{kind}_hidden_states", None) is not None:
            output[f"{kind}_hidden_states"] = change(output[f"{kind}_hidden_states"])


def attention_function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """The attention function that a module would call under an implementation name."""
    if implementation == "eager":  # not in the mapping: every modeling file has its own
        function: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return function
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[implementation]
    return found


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Make an attention function known under a name."""
    ALL_ATTENTION_FUNCTIONS[name] = function


def unregister_attention(name: str) -> None:
    """Forget the name."""
    if name in ALL_ATTENTION_FUNCTIONS:
        del ALL_ATTENTION_FUNCTIONS[name]


def forget_compiled(model: nn.Module) -> None:
    """Drop the decode step that generate() compiled for a static cache: torch.compile does not watch a module's hooks.

    Drop that cache too: before transformers 5.17 generate() keeps it on the model, with pruned layers in it. Delete that line
    when 5.17 is required.
    """
    if vars(model).pop("_compiled_call", None) is not None:
        torch.compiler.reset()
    vars(model).pop("_cache", None)


def records_past(layer: Any) -> bool:
    """Whether a sliding cache layer keeps more than its window, for assisted decoding.

    Layers have no such mode before transformers 5.17; delete when that is required.
    """
    return bool(getattr(layer, "record_past", False))


def flat_rotary(module: Any, embeddings: Any) -> Any:
    """(cos, sin) of an attention call as [B, S, D], or the complex numbers [B, S, D / 2]; () where the layer rotates nothing.

    Before transformers 5.20 the attention of Qwen's M-RoPE gets [3, B, S, D] and picks a section of each of the three;
    delete when that is required.
    """
    if not getattr(module, "use_rope", True):
        return ()
    if not isinstance(embeddings, tuple) or embeddings[0].ndim != 4:
        return embeddings
    sections = list(module.config.rope_parameters["mrope_section"]) * 2
    return tuple(
        torch.cat([part[index % 3] for index, part in enumerate(whole.split(sections, dim=-1))], dim=-1) for whole in embeddings
    )


def rotation(module: Any) -> Callable[..., Any] | None:
    """The function (q, k, cos, sin) with which a modeling file rotates queries and keys; None if it has another form."""
    function = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if function is None or list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return None
    found: Callable[..., Any] = function
    return found


def unit_order(tower: Any, grids: torch.Tensor, units: int) -> torch.Tensor:
    """Place [units] of each unit of a packed encoder's raster in its sequence: encoders with windows lay them out by window."""
    module = sys.modules[type(tower).__module__]
    if hasattr(tower, "get_window_index"):
        index = torch.as_tensor(tower.get_window_index(grids)[0])
    elif hasattr(tower, "window_size"):
        index, _ = module.get_vision_window_index(
            grids, spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
        )
    else:
        return torch.arange(units, device="cpu")
    return torch.argsort(index.cpu())


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The layers of a vision encoder: transformers moved them between versions."""
    for path in ("encoder.layers", "vision_model.encoder.layers", "encoder.layer", "transformer.layers", "blocks", "layers"):
        try:
            layers = tower.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return layers
    raise AttributeError(f"{type(tower).__name__} has no list of layers where vision encoders have one")


def encodes_beforehand(model: nn.Module) -> bool:
    """Whether generate() encodes pictures before its first pass and hands every pass what came out.

    Before transformers 5.18 it hands pixels to every pass without a cache; delete when that is required.
    """
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def columns_to_crop(argument: int, length: int) -> int:
    """How many columns `crop(argument)` removes from a layer of `length` columns.

    Negative: that many. Positive: the length to keep, before transformers 5.17; later it is refused. Delete when 5.17 is
    required.
    """
    if argument <= 0:
        return -argument
    if not _CROP_TAKES_A_LENGTH:
        raise ValueError("crop takes a negative number: how many columns to remove")
    return max(0, length - argument)
