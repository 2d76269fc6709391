from __future__ import annotations

from typing import Any

import torch

from demo_model.objective import answer_loss, use_fast_attention
from foveate.demo.forced import vision_features
from foveate.demo.packing import Packer
from foveate.demo.samples import make_sample

TOLERANCE = 2e-5  # float32, sums over another number of columns


def test_the_training_attention_equals_the_default_one(processor: Any, tiny_model: Any) -> None:
    samples = [make_sample("test", 2, index) for index in range(2)]
    batch = Packer(processor).pack(samples, [samples[0].long_questions, ()])
    default = tiny_model.config.text_config._attn_implementation
    losses = []
    with torch.no_grad():
        losses.append(answer_loss(tiny_model, batch, vision_features(tiny_model, batch.pixel_values)))
        use_fast_attention(tiny_model)
        losses.append(answer_loss(tiny_model, batch, vision_features(tiny_model, batch.pixel_values)))
    tiny_model.set_attn_implementation(default)
    torch.testing.assert_close(losses[0], losses[1], atol=TOLERANCE, rtol=0)
