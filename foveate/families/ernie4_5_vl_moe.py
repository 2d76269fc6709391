"""ERNIE 4.5 VL: experts of their own for visual tokens, M-RoPE, packed encoder, a resampler that joins frames in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError
from foveate.families._base import NO_PIXELS, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_MROPE_TEXT
from foveate.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor, nn

# Least and most pixels of a frame of a video: of the video processor's class.
_FRAME = (234_416, 937_664)
# Patches (t, h, w) of the media of tiny models.
_TINY_GRIDS = {"image": ((1, 8, 8), (1, 8, 12), (1, 4, 8)), "video": ((4, 4, 8), (2, 4, 4))}


class Ernie45VLMoe(Qwen2VL):
    """Ernie4_5_VLMoeForConditionalGeneration."""

    model_types = ("ernie4_5_vl_moe",)
    title = "ERNIE 4.5 VL"
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its resampler stands behind the encoder and joins the patches of two frames",
    }
    token_inputs = ("moe_mm_token_type_ids",)
    notes = "images and video of any size, M-RoPE, experts of their own for visual tokens"
    pixels = (3_136, 4_842_768)  # of the image processor's class

    def encoder(self, config: Any) -> None:
        return None

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        patch = config.vision_config.patch_size
        high, wide = resized(size, patch * config.vision_config.spatial_merge_size, _FRAME)
        return self._medium(config, "video", (frames + frames % 2, high // patch, wide // patch))

    def _medium(self, config: Any, kind: str, patches: tuple[int, int, int]) -> MediumShape:
        shape = super()._medium(config, kind, patches)
        together = config.vision_config.temporal_merge_size if kind == "video" else 1
        return replace(shape, grid=(patches[0] // together, *shape.grid[1:]))

    def decoder_shape(self, config: Any) -> DecoderShape:
        """The decoder in numbers: text tokens pass other, wider experts than visual ones. Brackets are taken for text."""
        text, shape = config.get_text_config(), super().decoder_shape(config)
        for_text, for_visual = text.moe_intermediate_size
        width, of_text = (text.moe_k * own + text.moe_num_shared_experts * for_text for own in (for_visual, for_text))
        dense = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate)
        sparse = replace(
            dense, intermediate=width, other_weights=text.hidden_size * text.moe_num_experts, text_intermediate=of_text
        )
        layers = tuple(sparse if kind == "sparse" else dense for kind in text.mlp_layer_types)
        return replace(shape, intermediate=width if sparse in layers else shape.intermediate, layer_shapes=layers)

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        encoder = EncoderShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_heads,
            patch_inputs=vision.in_channels * vision.patch_size**2,
        )
        merged, pair = vision.hidden_size * vision.spatial_merge_size**2, vision.temporal_merge_size
        # Each frame passes two products of its own: those of one frame make a token of an image, of two one of a video.
        alone = (LinearShape(merged, merged, kind="image"),) * 2 + (LinearShape(merged, merged, kind="video"),) * 2 * pair
        return ModelShape(
            family="ernie4_5_vl_moe",
            decoder=self.decoder_shape(config),
            encoder=encoder,
            projector=(
                *alone,
                LinearShape(merged * pair, merged),
                LinearShape(merged, merged),
                LinearShape(merged, text.hidden_size),
            ),
        )

    def tiny_config(self) -> Any:
        from transformers import Ernie4_5_VLMoeConfig

        # Every token passes all experts of its kind. With fewer, what padding holds decides how many rows an expert multiplies
        # at once, and thus the last bit of what real tokens get, in the plain model too.
        experts = dict(moe_k=4, moe_num_experts=4, moe_num_shared_experts=1, moe_intermediate_size=[16, 16])
        vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=4, patch_size=4)
        return Ernie4_5_VLMoeConfig(
            text_config={**TINY_MROPE_TEXT, **experts},
            vision_config=vision,
            image_token_id=90,
            video_token_id=91,
            image_start_token_id=92,
            image_end_token_id=93,
            video_start_token_id=94,
            video_end_token_id=95,
            tie_word_embeddings=False,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        grids, vision = _TINY_GRIDS[kind], config.vision_config
        t, h, w = grids[number % len(grids)]
        pixels = torch.randn(t * h * w, vision.in_channels * vision.patch_size**2, generator=random)
        run = [self.placeholder_ids(config)[kind]] * self._medium(config, kind, (t, h, w)).tokens
        start, end = (getattr(config, f"{kind}_{edge}_token_id") for edge in ("start", "end"))
        name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
        return TinyMedium(kind, torch.tensor([start, *run, end]), {name: pixels, f"{kind}_grid_thw": torch.tensor([[t, h, w]])})

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        inputs = super().tiny_batch(config, ids, media)
        types = inputs["mm_token_type_ids"].clone()  # with the brackets, for the choice of experts
        for kind, value in (("image", 1), ("video", 2)):
            for edge in ("start", "end"):
                types[ids == getattr(config, f"{kind}_{edge}_token_id")] = value
        return {**inputs, "moe_mm_token_type_ids": types}

    def mend(self, model: nn.Module) -> None:
        """Without a cache, generate() lengthens the prompt at every step, but not what is said of its tokens here."""
        from torch.nn.functional import pad

        def lengthen(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            ids, types = kwargs.get("input_ids"), kwargs.get("moe_mm_token_type_ids")
            if ids is None or types is None or types.shape[1] >= ids.shape[1]:
                return None
            return args, {**kwargs, "moe_mm_token_type_ids": pad(types, (0, ids.shape[1] - types.shape[1]))}

        model.register_forward_pre_hook(lengthen, with_kwargs=True)
