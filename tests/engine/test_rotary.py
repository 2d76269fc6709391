"""Scores without the rotary embedding: whatever channels an architecture turns together, and layers that turn none."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

import foveate
from foveate.engine import compat
from foveate.engine.attention_rows import without_rope
from tests import tiny


@pytest.mark.parametrize(
    ("architecture", "pairs", "part"),  # how many of 8 channels are turned: all, except where the architecture leaves some
    [("llama", "halves", 8), ("cohere2", "neighbours, repeated", 8), ("glm4v", "neighbours", 8), ("glm4v", "neighbours", 4)],
)
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_states_are_turned_back_as_the_modeling_file_turned_them(architecture, pairs, scale, part):
    module = import_module(f"transformers.models.{architecture}.modeling_{architecture}")
    attention = type("Attention", (torch.nn.Module,), {"__module__": module.__name__})()
    rotate = compat.rotation(attention)
    assert rotate is not None
    states = torch.randn(2, 4, 5, 8)
    angles = torch.randn(2, 5, part // 2)
    angles = angles.repeat_interleave(2, -1) if pairs != "halves" else torch.cat([angles, angles], -1)
    embeddings = (angles.cos() * scale, angles.sin() * scale)
    turned, _ = module.apply_rotary_pos_emb(states, states, *embeddings)
    assert float((turned - states).abs().max()) > 0.1
    assert torch.allclose(without_rope(turned, embeddings, rotate), states, atol=1e-5)
    if pairs == "halves":
        assert torch.allclose(without_rope(turned, embeddings), states, atol=1e-5)


@pytest.mark.parametrize("family", ["aya_vision", "cohere2_vision"])
def test_layers_that_rotate_nothing_rate_the_same_without_the_rotary_embedding(family):
    model, maker = tiny.tiny_model(family), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    kept = []
    for rope in ("on", "off"):
        plan = f"fastv(layer={tiny.FIRST_LAYER[family]}, keep=0.3, rope={rope})"
        with torch.no_grad(), foveate.attach(model, plan) as attachment:
            model(**inputs)
            kept.append([entry.kept_index.tolist() for entry in attachment.trace])
    assert kept[0] == kept[1]
