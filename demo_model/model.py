"""The demo model: the standard LLaVA classes of transformers with small sizes and random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from foveate.demo.packing import IMAGE_TOKEN
from foveate.demo.pictures import PATCH_PIXELS, PICTURE_PIXELS


@dataclass(frozen=True)
class DemoModelConfig:
    """Sizes of the two transformers. Heads are 64 wide because narrower heads are slower on a CPU."""

    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 2
    vision_mlp: int = 512
    text_width: int = 192
    text_layers: int = 8
    text_heads: int = 3
    text_mlp: int = 512
    picture_pixels: int = PICTURE_PIXELS

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.picture_pixels // PATCH_PIXELS


def build_model(tokenizer: Any, config: DemoModelConfig | None = None, *, seed: int = 0) -> Any:
    """Return a randomly initialised `LlavaForConditionalGeneration` in float32; the caller's random state is kept."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = config or DemoModelConfig()
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        intermediate_size=sizes.vision_mlp,
        projection_dim=sizes.vision_width,
        image_size=sizes.picture_pixels,
        patch_size=PATCH_PIXELS,
    )
    text = LlamaConfig(
        hidden_size=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        num_key_value_heads=sizes.text_heads,
        intermediate_size=sizes.text_mlp,
        vocab_size=len(tokenizer),
        max_position_embeddings=max(2048, 8 * sizes.grid**2),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    whole = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=sizes.grid**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(whole)
