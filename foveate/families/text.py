"""Plain language models: Llama and the many that are built like it. There are no pictures, so stages act on decoding alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import NO_ENCODER, DecoderShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

_NO_PICTURES = "a plain language model's prompt has no visual tokens; gates act on what its cache stores (site=decode)"
# Of an MLP without a gate.
_PLAIN_MLP = ("phi",)


class Text(Family):
    """LlamaForCausalLM and its like: the module under the head embeds, and is the decoder."""

    model_types = (
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3", "olmo2", "granite",
    )  # fmt: skip
    title = "Plain language models"
    auto_class = "AutoModelForCausalLM"
    base = decoder = "model"
    placeholders = {}
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "a plain language model has no vision encoder",
        SiteKind.PRE_LLM: _NO_PICTURES,
        SiteKind.LLM_LAYER: _NO_PICTURES,
    }
    notes = "text only: Llama, Mistral, Qwen2 and 3, Gemma 1 to 3, Phi, SmolLM, OLMo 2, Granite; gates and attention views"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        raise InputError("pixel values are given, but this is a plain language model: it takes no pictures")

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        if sizes:
            raise InputError("this is a plain language model, which takes no pictures: leave images out")
        return []

    def rotates(self, config: Any, layer: int) -> bool:
        """SmolLM3 leaves every fourth layer without positions; the list says 1 where a layer has them."""
        rotating = getattr(config, "no_rope_layers", None)
        return bool(rotating[layer]) if rotating else True

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), gated_mlp=config.model_type not in _PLAIN_MLP)

    def model_shape(self, config: Any) -> ModelShape:
        return ModelShape("text", self.decoder_shape(config), NO_ENCODER)

    def tiny_config(self, model_type: str = "llama") -> Any:
        """A tiny config of one of the model types."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[model_type](**TINY_TEXT, num_hidden_layers=5, **_TINY.get(model_type, {}))

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        raise InputError("a plain language model takes no pictures")

    def tiny_inputs(self, config: Any) -> dict[str, Any]:
        import torch

        return {"input_ids": torch.arange(3, 15)[None]}


_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention"]
_TINY: Mapping[str, Mapping[str, Any]] = {
    "gemma": dict(head_dim=8),
    "mistral": dict(sliding_window=None),
    "gemma2": dict(head_dim=8, sliding_window=8, layer_types=_SLIDING, query_pre_attn_scalar=8),
    "gemma3_text": dict(head_dim=8, sliding_window=8, layer_types=_SLIDING, query_pre_attn_scalar=8),
    "qwen3": dict(head_dim=8),
}
