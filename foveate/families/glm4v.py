"""GLM-4.1V: any image size, packed encoder, 2 x 2 merger, M-RoPE; frames of a video stand apart and look like images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, MediumShape, ModelShape, RowsPer
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import Family, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_MROPE_TEXT, TINY_PACKED_VISION
from foveate.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Least and most pixels of an image (counted twice: it is a video of two equal frames), in the preprocessor configs of the
# published checkpoints.
_IMAGE = (12_544, 9_633_792)
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# Brackets around each image or frame and around a video, and patches (t, h, w) of the media, in prompts of tiny models.
_START, _END, _VIDEO_START, _VIDEO_END = 92, 93, 94, 95
_TINY_GRIDS = {"image": ((1, 8, 8), (1, 8, 12), (1, 4, 8)), "video": ((2, 4, 8), (3, 4, 4))}


class Glm4v(Qwen2VL):
    """Glm4vForConditionalGeneration.

    Class attributes:
        video_pixels: least and most pixels of a whole video after resizing, from the video preprocessor config.
    """

    model_types = ("glm4v",)
    title = "GLM-4.1V"
    placeholders = {"image": "image_token_id"}  # of the frames of a video too
    notes = "images or video of any size, not both in one call, M-RoPE, packed encoder"
    video_pixels: ClassVar[tuple[int, int]] = (12_544, 47_040_000)

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        given = [kind for kind, name in _PIXELS.items() if inputs.get(name) is not None]
        if not given:  # encoded before the call
            given = [kind for kind in _PIXELS if inputs.get(f"{kind}_grid_thw") is not None]
        if len(given) > 1:
            raise UnsupportedCombination(
                f"{self.title} marks images and frames of videos with the same placeholder, and transformers fills all of them "
                "with images or all of them with frames: pass images and videos in different calls"
            )
        kind = given[0] if given else "image"
        return {"image": self._media_of_kind(config, kind, inputs, columns["image"])}

    def _media_of_kind(self, config: Any, kind: str, inputs: Mapping[str, Any], columns: int) -> list[MediumShape]:
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is None and columns:
            raise InputError(
                f"the prompt has {kind} placeholders but {kind}_grid_thw is missing: pass everything the processor returned"
            )
        rows = [] if grids is None else grids.tolist()
        return [self._medium(config, kind, (int(t), int(h), int(w))) for t, h, w in rows]

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        together = config.vision_config.temporal_patch_size
        return [self._resized_medium(config, "image", size, together, _IMAGE) for size in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        together = config.vision_config.temporal_patch_size
        if frames < together:
            raise InputError(f"frames={frames}: {self.title} takes videos of at least {together} frames")
        return self._resized_medium(config, "video", size, frames, self.video_pixels)

    def _resized_medium(
        self, config: Any, kind: str, size: tuple[int, int], frames: int, pixels: tuple[int, int]
    ) -> MediumShape:
        vision = config.vision_config
        patch, together = vision.patch_size, vision.temporal_patch_size
        high, wide = resized(size, patch * vision.spatial_merge_size, pixels, frames, together, enlarges_thin=True)
        return self._medium(config, kind, (-(-frames // together), high // patch, wide // patch))

    def decoder_shape(self, config: Any) -> DecoderShape:
        """The decoder in numbers: with experts in all layers but the first few where the text config has some."""
        text, shape = config.get_text_config(), super().decoder_shape(config)
        if not getattr(text, "n_routed_experts", None):
            return shape
        used = (text.num_experts_per_tok + text.n_shared_experts) * text.moe_intermediate_size
        dense = LayerShape(shape.kv_heads, shape.head_dim, shape.intermediate)
        sparse = replace(dense, intermediate=used, other_weights=text.hidden_size * text.n_routed_experts)
        first = min(text.first_k_dense_replace, shape.layers)
        return replace(shape, intermediate=used, layer_shapes=(dense,) * first + (sparse,) * (shape.layers - first))

    def model_shape(self, config: Any) -> ModelShape:
        vision = config.vision_config
        encoder = EncoderShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.out_hidden_size,  # `intermediate_size` is that of the merger
            heads=vision.num_heads,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            gated_mlp=True,
        )
        inner, out = vision.intermediate_size, vision.out_hidden_size
        merged = vision.hidden_size * vision.spatial_merge_size**2
        widths = ((merged, out), (out, out), (out, inner), (out, inner), (inner, out))
        merger = tuple(LinearShape(*pair, RowsPer.LEFT) for pair in widths)
        return ModelShape(self.model_types[0], self.decoder_shape(config), encoder, merger)

    def tiny_config(self) -> Any:
        from transformers import Glm4vConfig

        return Glm4vConfig(text_config={**TINY_MROPE_TEXT}, **self._tiny_parts())

    def _tiny_parts(self) -> dict[str, Any]:
        own = dict(hidden_size=32, intermediate_size=48, out_hidden_size=32, image_size=24)
        return dict(
            vision_config={**TINY_PACKED_VISION, **own},
            image_token_id=90,
            video_token_id=91,
            image_start_token_id=_START,
            image_end_token_id=_END,
            video_start_token_id=_VIDEO_START,
            video_end_token_id=_VIDEO_END,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        vision, grids = config.vision_config, _TINY_GRIDS[kind]
        t, h, w = grids[number % len(grids)]
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        inputs = {
            _PIXELS[kind]: torch.randn(t * h * w, width, generator=random),
            f"{kind}_grid_thw": torch.tensor([[t, h, w]]),
        }
        frame = [_START, *[config.image_token_id] * (h * w // vision.spatial_merge_size**2), _END]
        if kind == "image":
            return TinyMedium(kind, torch.tensor(frame), inputs)
        stamped = [token for second in range(t) for token in (*frame, 20 + second)]
        return TinyMedium(kind, torch.tensor([_VIDEO_START, *stamped, _VIDEO_END]), inputs)

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        # A placeholder is that of a frame where more videos have begun than ended, as the processor says it.
        begun, ended = ((ids == bracket).cumsum(1) for bracket in (_VIDEO_START, _VIDEO_END))
        types = (ids == config.image_token_id).int() * (1 + (begun > ended).int())
        return {**Family.tiny_batch(self, config, ids, media), "mm_token_type_ids": types}
