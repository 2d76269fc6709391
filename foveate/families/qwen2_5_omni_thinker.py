"""Qwen2.5-Omni's thinker: Qwen2.5-VL's pictures and videos beside audio, whose tokens are text to a plan and stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, MediumShape, ModelShape
from foveate.errors import InputError
from foveate.families._base import Family, TinyMedium
from foveate.families._resize import resized
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT, TINY_PACKED_VISION, Qwen25VL

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Least and most visual tokens' worth of pixels in a frame of a video: defaults of the processors.
_LEAST, _MOST = 128, 768
TINY_AUDIO: Mapping[str, int] = dict(
    num_mel_bins=8,
    encoder_layers=1,
    encoder_attention_heads=2,
    encoder_ffn_dim=16,
    d_model=16,
    max_source_positions=50,
    n_window=4,
    output_dim=32,
)
TINY_AUDIO_IDS: Mapping[str, int] = dict(audio_start_token_id=95, audio_end_token_id=96, user_token_id=97)


class Qwen25OmniThinker(Qwen25VL):
    """Qwen2_5OmniThinkerForConditionalGeneration, the `thinker` of Qwen2_5OmniForConditionalGeneration."""

    model_types = ("qwen2_5_omni_thinker",)
    title = "Qwen2.5-Omni Thinker"
    since = (5, 23)
    notes = "images and video of any size beside audio that stays, M-RoPE, windowed packed encoder"

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        return self._medium(config, "video", patches_of_video(config, size, frames))

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), all_logits=True)

    def model_shape(self, config: Any) -> ModelShape:
        return replace(super().model_shape(config), family=self.model_types[0])

    def tiny_config(self) -> Any:
        from transformers import Qwen2_5OmniThinkerConfig

        own = dict(hidden_size=32, intermediate_size=64, out_hidden_size=32, fullatt_block_indexes=[1, 3], window_size=16)
        ids = {name.replace("_token_id", "_token_index"): TINY_IDS[name] for name in ("image_token_id", "video_token_id")}
        brackets = {name: TINY_IDS[name] for name in ("vision_start_token_id", "vision_end_token_id")}
        return Qwen2_5OmniThinkerConfig(
            text_config={**TINY_MROPE_TEXT},
            vision_config={**TINY_PACKED_VISION, **own},
            audio_config={**TINY_AUDIO},
            audio_token_index=94,
            **ids,
            **brackets,
            **TINY_AUDIO_IDS,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        return bracketed(config, super().tiny_medium(config, kind, number, random))

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        return Family.tiny_batch(self, config, ids, media)  # positions follow from the brackets, not from token types


def patches_of_video(config: Any, size: tuple[int, int], frames: int) -> tuple[int, int, int]:
    """(t, h, w) in patches of a video, whose frames are resized one by one."""
    vision = config.vision_config
    if frames < 1:
        raise InputError(f"frames={frames}: a video has at least 1")
    patch, unit = vision.patch_size, vision.patch_size * vision.spatial_merge_size
    high, wide = resized(size, unit, (_LEAST * unit**2, _MOST * unit**2))
    return -(-frames // vision.temporal_patch_size), high // patch, wide // patch


def bracketed(config: Any, medium: TinyMedium) -> TinyMedium:
    """A medium between its brackets, by which transformers finds it; a video knows how long its frames last."""
    import torch

    start, end = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
    seconds = {"video_second_per_grid": torch.tensor([1.0])} if medium.kind == "video" else {}
    return TinyMedium(medium.kind, torch.cat([start, medium.ids, end]), {**medium.inputs, **seconds})
