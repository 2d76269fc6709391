"""V2Drop against the model's own hidden states."""

from __future__ import annotations

import pytest
import torch

import foveate
from tests import tiny
from tests.oracles.selectors import v2drop_kept

FAMILIES = [name for name in tiny.FAMILIES if not tiny.remembers(name)]


@pytest.mark.pairs
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_that_moved_most_stay(family):
    model, maker = tiny.tiny_model(family, "sdpa"), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    layer = tiny.SECOND_LAYER[family]
    entering: dict[int, torch.Tensor] = {}
    layers = model.get_submodule(foveate.families.family_for(model.config).decoder).layers

    def enters(index):
        return lambda module, args, kwargs: entering.update({index: args[0] if args else kwargs["hidden_states"]})

    handles = [layers[at].register_forward_pre_hook(enters(at), with_kwargs=True) for at in (layer - 1, layer)]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), foveate.attach(model, f"v2drop(layer={layer}, keep=0.4)") as attachment:
        model(**inputs)
        for entry in attachment.trace:
            place = entry.medium.row, entry.medium.columns
            keep = int(len(entry.medium.columns) * 0.4 + 0.5)
            assert entry.kept_index.tolist() == v2drop_kept(entering[layer - 1][place], entering[layer][place], keep)
