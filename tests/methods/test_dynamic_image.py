"""The vision predictor and its method against plain loops, and the published sizes."""

from __future__ import annotations

import pytest
import torch

from foveate.core.view import TokenView
from foveate.methods.dynamic_image import DynamicImage
from foveate.predictors.modules import VisionPredictor
from tests.oracles.dynamic import dynamic_image_kept, vision_logits


def predictor(seed: int = 0) -> VisionPredictor:
    torch.manual_seed(seed)
    module = VisionPredictor(12, width=8, heads=2, feedforward=16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double().eval()


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_logits_and_choice_are_the_twins(seed):
    module, tokens = predictor(seed), torch.randn(3, 11, 12, dtype=torch.double)
    state = module.state_dict()
    with torch.no_grad():
        found = module(tokens)
        for group in range(3):
            expected = torch.stack(vision_logits(state, list(tokens[group]), 2, 2))
            torch.testing.assert_close(found[group], expected)
        view = TokenView(tokens, torch.zeros(3, 11, 3).long(), None, torch.ones(3, 11), (0, 1, 2), predictor=module)
        for keep in (1, 4, 11):
            kept = DynamicImage().select(view, keep).kept
            assert kept.tolist() == [dynamic_image_kept(state, list(group), 2, 2, keep) for group in tokens]


def test_fillers_of_shorter_groups_change_nothing():
    module, tokens = predictor(), torch.randn(1, 7, 12, dtype=torch.double)
    filled = torch.cat([tokens, torch.randn(1, 4, 12, dtype=torch.double) * 9], dim=1)
    real = torch.arange(11)[None] < 7
    with torch.no_grad():
        torch.testing.assert_close(module(filled, real)[:, :7], module(tokens))


@pytest.mark.parametrize(("hidden", "expected"), [(4096, 8_572_034), (5120, 9_098_370)])
def test_the_number_of_parameters_is_the_published_one(hidden, expected):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in VisionPredictor(hidden).parameters()) == expected


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VisionPredictor(4096).state_dict().items()}
    block = {
        "norm1.weight": (512,), "norm1.bias": (512,), "norm2.weight": (512,), "norm2.bias": (512,),
        "attn.qkv.weight": (1536, 512), "attn.proj.weight": (512, 512), "attn.proj.bias": (512,),
        "mlp.fc1.weight": (2048, 512), "mlp.fc1.bias": (2048,), "mlp.fc2.weight": (512, 2048), "mlp.fc2.bias": (512,),
    }  # fmt: skip
    assert shapes == {
        "down_mlp.0.weight": (4096,), "down_mlp.0.bias": (4096,), "down_mlp.1.weight": (512, 4096), "down_mlp.1.bias": (512,),
        "output_mlp.0.weight": (256, 512), "output_mlp.0.bias": (256,), "output_mlp.2.weight": (128, 256),
        "output_mlp.2.bias": (128,), "output_mlp.4.weight": (2, 128), "output_mlp.4.bias": (2,),
        **{f"transformer.{number}.{name}": shape for number in (0, 1) for name, shape in block.items()},
    }  # fmt: skip
