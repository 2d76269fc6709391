"""Qwen3-Omni's thinker: Qwen3-VL with experts beside audio, whose tokens are text to a plan; a video is one run of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveate.core.shape import DecoderShape, MediumShape
from foveate.families._base import Family, TinyMedium
from foveate.families.qwen2_5_omni_thinker import TINY_AUDIO, TINY_AUDIO_IDS, bracketed, patches_of_video
from foveate.families.qwen2_5_vl import TINY_IDS, TINY_MROPE_TEXT
from foveate.families.qwen2_vl import Qwen2VL
from foveate.families.qwen3_vl_moe import Qwen3VLMoe

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor


class Qwen3OmniMoeThinker(Qwen3VLMoe):
    """Qwen3OmniMoeThinkerForConditionalGeneration, the `thinker` of Qwen3OmniMoeForConditionalGeneration."""

    model_types = ("qwen3_omni_moe_thinker",)
    title = "Qwen3-Omni Thinker"
    since = (5, 23)
    notes = "images and video of any size beside audio that stays, DeepStack, interleaved M-RoPE, experts"
    pixels = (3_136, 12_845_056)

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        return self._medium(config, "video", patches_of_video(config, size, frames))

    def decoder_shape(self, config: Any) -> DecoderShape:
        return replace(super().decoder_shape(config), all_logits=True)

    def tiny_config(self) -> Any:
        from transformers import Qwen3OmniMoeThinkerConfig

        experts = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[3])
        audio = {**TINY_AUDIO, "n_window": 50, "n_window_infer": 100, "downsample_hidden_size": 8}
        return Qwen3OmniMoeThinkerConfig(
            text_config={**TINY_MROPE_TEXT, **experts, "head_dim": 8},
            vision_config=self._tiny_vision(),
            audio_config=audio,
            audio_token_id=94,
            **TINY_IDS,
            **TINY_AUDIO_IDS,
        )

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        return bracketed(config, Qwen2VL.tiny_medium(self, config, kind, number, random))

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        return Family.tiny_batch(self, config, ids, media)
