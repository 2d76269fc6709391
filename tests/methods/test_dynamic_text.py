"""The text predictor and its method against plain loops, and the published sizes."""

from __future__ import annotations

import pytest
import torch

from foveate.core.view import StepView
from foveate.methods.dynamic_text import DynamicText
from foveate.predictors.modules import TextPredictor
from foveate.spec import parse
from tests.oracles.dynamic import dynamic_text_kept, text_logits


def predictor(seed: int = 0) -> TextPredictor:
    torch.manual_seed(seed)
    module = TextPredictor(12, width=8)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.double().eval()


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_logits_and_choice_are_the_twins(seed, bias):
    module, tokens = predictor(seed), torch.randn(2, 13, 12, dtype=torch.double)
    state = module.state_dict()
    with torch.no_grad():
        for row in range(2):
            torch.testing.assert_close(module(tokens)[row], torch.stack([text_logits(state, token) for token in tokens[row]]))
        view = StepView(tokens, torch.arange(13).expand(2, -1), module)
        stored = DynamicText(bias=bias).gate(view, None)
    assert stored.tolist() == [dynamic_text_kept(state, list(row), bias) for row in tokens]


def test_a_bias_stores_more_or_less():
    module, tokens = predictor(), torch.randn(1, 200, 12, dtype=torch.double)
    view = StepView(tokens, torch.arange(200)[None], module)
    counts = [int(DynamicText(bias=bias).gate(view, None).sum()) for bias in (-1e9, -0.3, 0.0, 0.3, 1e9)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 200


@pytest.mark.parametrize(("hidden", "expected"), [(4096, 2_270_338), (5120, 2_796_674)])
def test_the_number_of_parameters_is_the_published_one(hidden, expected):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in TextPredictor(hidden).parameters()) == expected


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in TextPredictor(5120).state_dict().items()}
    sizes = {0: (5120,), 1: (512, 5120), 3: (256, 512), 5: (128, 256), 7: (2, 128)}
    assert shapes == {
        **{f"output_mlp.{number}.weight": shape for number, shape in sizes.items()},
        **{f"output_mlp.{number}.bias": shape[:1] for number, shape in sizes.items()},
    }


def test_the_papers_rule_is_the_default_and_a_window_stands_beside_it():
    """Eq. 6: what is not stored is seen by itself alone. The window changes who sees a token, never what the predictor says."""
    assert DynamicText().recent == 0
    module, tokens = predictor(), torch.randn(2, 13, 12, dtype=torch.double)
    view = StepView(tokens, torch.arange(13).expand(2, -1), module)
    assert torch.equal(DynamicText().gate(view, None), DynamicText(recent=8).gate(view, None))
    for text, recent in (("", 0), (", recent=8", 8)):
        *_, gate = parse(f"dynamic_llava(path='demo'{text})").stages
        assert isinstance(gate.method, DynamicText) and gate.method.recent == recent
