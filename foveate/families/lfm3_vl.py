"""LFM3-VL: a hybrid of short convolutions, sliding and full attention; pictures of any size, and convolutions over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, ModelShape
from foveate.core.site import SiteKind
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium
from foveate.families.lfm2_vl import short_convolution
from foveate.families.qwen2_5_vl import TINY_IDS
from foveate.families.qwen3_vl import Qwen3VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


class Lfm3VL(Qwen3VL):
    """Lfm3VlForConditionalGeneration. Pictures as in Qwen3-VL, but plain positions."""

    model_types = ("lfm3_vl",)
    title = "LFM3-VL"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "layers of its encoder convolve patches with their neighbours, which needs the whole picture",
    }
    notes = "hybrid: short convolutions see survivors only, sliding and full layers; images and video of any size"
    # Of the processors' classes; the configuration of a checkpoint may say others.
    pixels = (3_136, 1_003_520)
    video_pixels = (131_072, 786_432)

    def check(self, config: Any) -> None:
        """Nothing is added between layers here, so nothing can be too much."""

    def stacked_features(self, config: Any) -> None:  # type: ignore[override]
        return None

    def encoder(self, config: Any) -> None:
        return None

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shape = config.get_text_config(), Family.decoder_shape(self, config)
        # Each head's output has a gate.
        gates = text.hidden_size * shape.heads if text.use_attention_gate else 0
        attends = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate, other_weights=gates)
        convolves = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate, state=short_convolution(text))
        stateful = self.stateful_layers(config)
        layers = tuple(convolves if layer in stateful else attends for layer in range(shape.layers))
        return replace(shape, layer_shapes=layers)

    def model_shape(self, config: Any) -> ModelShape:
        vision, inner = config.vision_config, config.projector_hidden_size
        encoder = EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_attention_heads,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            gated_mlp=True,
            kv_heads=vision.num_key_value_heads,
            convolved_layers=tuple(layer for layer, kind in enumerate(vision.layer_types) if kind == "conv"),
            convolution=vision.hidden_size * vision.conv_kernel_size**2,
        )
        merged = vision.hidden_size * vision.spatial_merge_size**2
        projector = (LinearShape(merged, inner), LinearShape(inner, config.get_text_config().hidden_size))
        return ModelShape(self.model_types[0], self.decoder_shape(config), encoder, projector)

    def tiny_config(self) -> Any:
        from transformers import Lfm3VlConfig

        kinds = ["conv", "full_attention", "sliding_attention", "conv", "full_attention", "conv"]
        text = dict(**TINY_TEXT, model_type="lfm3", num_hidden_layers=6, layer_types=kinds, head_dim=8, sliding_window=24)
        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, patch_size=4)
        return Lfm3VlConfig(
            text_config=text, vision_config=dict(**vision, num_hidden_layers=3), projector_hidden_size=64, **TINY_IDS
        )

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        return Family.tiny_batch(self, config, ids, media)  # positions are those of the columns: nothing tells of kinds
