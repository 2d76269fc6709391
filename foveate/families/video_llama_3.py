"""VideoLLaMA 3: images of any size at full resolution, frames of a video apart and merged 2 x 2, plain positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedCombination
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium
from foveate.families._resize import resized

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch

# Least and most pixels of an image and of a whole video, and patches along a side of what becomes one token: of the
# processors' classes. What a video's frames may have together is bounded above only; each has the least number.
_BOUNDS = {"image": (3_136, 1_003_520), "video": (100_352, 602_112)}
_MERGED = {"image": 1, "video": 2}
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# Patches (t, h, w) of the media of tiny models.
_TINY_GRIDS = {"image": ((1, 4, 4), (1, 4, 6), (1, 2, 4)), "video": ((2, 4, 8), (3, 4, 4))}


class VideoLlama3(Family):
    """VideoLlama3ForConditionalGeneration."""

    model_types = ("video_llama_3",)
    title = "VideoLLaMA 3"
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    host_inputs = ("image_grid_thw", "video_grid_thw", "image_merge_sizes", "video_merge_sizes", "video_compression_mask")
    unsupported = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "it averages patches behind the encoder, which needs the whole picture",
    }
    notes = "images and uncompressed video of any size, plain positions"

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        shapes: dict[str, list[MediumShape]] = {}
        for kind in self.placeholders:
            grids, merged = inputs.get(f"{kind}_grid_thw"), inputs.get(f"{kind}_merge_sizes")
            if (grids is None or merged is None) and columns[kind]:
                missing = f"{kind}_grid_thw" if grids is None else f"{kind}_merge_sizes"
                raise InputError(
                    f"the prompt has {kind} placeholders but {missing} is missing: pass everything the processor returned"
                )
            rows = [] if grids is None or merged is None else zip(grids.tolist(), merged.tolist(), strict=True)
            shapes[kind] = [self._medium(kind, (int(t), int(h), int(w)), int(side)) for (t, h, w), side in rows]
        kept = inputs.get("video_compression_mask")
        if columns["video"] and kept is not None and not bool(kept.all()):
            raise UnsupportedCombination(
                f"the processor left out {int((~kept.bool()).sum())} of {kept.numel()} tokens of the videos, and what is left "
                "lies on no grid: call it with use_token_compression=False, then a plan can choose among all of them"
            )
        return shapes

    def _medium(self, kind: str, patches: tuple[int, int, int], merged: int) -> MediumShape:
        t, h, w = patches
        grid = (t, h // merged, w // merged)
        return MediumShape(kind, grid, encoder_tokens=t * h * w, encoder_sequences=(h * w,) * t)

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self._of_size(config, "image", size, 1, _BOUNDS["image"]) for size in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        least, most = _BOUNDS["video"]
        return self._of_size(config, "video", size, frames, (least, most // frames))

    def _of_size(self, config: Any, kind: str, size: tuple[int, int], frames: int, bounds: tuple[int, int]) -> MediumShape:
        patch, merged = config.vision_config.patch_size, _MERGED[kind]
        high, wide = resized(size, patch * merged, bounds)
        return self._medium(kind, (frames, high // patch, wide // patch), merged)

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), all_logits=True)

    def model_shape(self, config: Any) -> ModelShape:
        width = config.get_text_config().hidden_size
        return ModelShape(
            family="video_llama_3",
            decoder=self.decoder_shape(config),
            encoder=self.encoder_shape(config),
            projector=(LinearShape(config.vision_config.hidden_size, width), LinearShape(width, width)),
        )

    def tiny_config(self) -> Any:
        from transformers import VideoLlama3Config

        vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, patch_size=4)
        text = dict(**TINY_TEXT, model_type="qwen2", num_hidden_layers=5)
        return VideoLlama3Config(text_config=text, vision_config=vision, image_token_id=90, video_token_id=91)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        t, h, w = patches = _TINY_GRIDS[kind][number % len(_TINY_GRIDS[kind])]
        frame = [self.placeholder_ids(config)[kind]] * (h * w // _MERGED[kind] ** 2)
        # Frames of a video stand behind their times, with commas in between.
        ids = frame if kind == "image" else [token for second in range(t) for token in (20, 21 + second, *frame, 22)][:-1]
        inputs = {
            _PIXELS[kind]: torch.randn(t * h * w, 3 * config.vision_config.patch_size**2, generator=random),
            f"{kind}_grid_thw": torch.tensor([patches]),
            f"{kind}_merge_sizes": torch.tensor([_MERGED[kind]]),
        }
        if kind == "video":
            inputs["video_compression_mask"] = torch.ones(t * len(frame), dtype=torch.bool)
        return TinyMedium(kind, torch.tensor(ids), inputs)
