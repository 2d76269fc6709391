"""EXAONE 4.5 and Cohere Compass: layers that rotate nothing are those whose attention gets or uses no positions."""

from __future__ import annotations

import pytest
import torch

from foveate import families
from tests import tiny


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.runs(name)) for name in ("exaone4_5", "cohere_compass")])
def test_a_layer_rotates_where_positions_change_its_attention(name):
    model, family = tiny.tiny_model(name), families.get(name)
    layers = tiny.decoder_of(model).layers
    seen = {}

    def keep(index: int):
        def run(module, args, kwargs):
            seen[index] = kwargs.get("position_embeddings")

        return run

    handles = [layer.self_attn.register_forward_pre_hook(keep(n), with_kwargs=True) for n, layer in enumerate(layers)]
    with torch.no_grad():
        model(input_ids=torch.arange(5, 25)[None])
    for handle in handles:
        handle.remove()
    hidden = torch.randn(1, 20, 32)
    for index, layer in enumerate(layers):
        given, changes = seen[index], False
        if given is not None:
            turned = tuple(part.flip(1) for part in given)
            with torch.no_grad():
                first, second = (
                    layer.self_attn(hidden, attention_mask=None, position_embeddings=e)[0] for e in (given, turned)
                )
            changes = not torch.equal(first, second)
        assert changes == family.rotates(model.config, index), index
    assert {family.rotates(model.config, index) for index in range(len(layers))} == {True, False}
