"""DART against its plain-loop twin, and what it is told against the model's own projections and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core.view import KeyNorms, TextPivots
from foveate.engine import choosing
from foveate.methods.dart import Dart
from tests import tiny
from tests.methods.selecting import KEEPS, SPOILED, kept_of, spoiled_view
from tests.oracles.selectors import dart_kept


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("image", "text"), [(4, 4), (2, 0), (1, 3), (9, 1)])
def test_it_keeps_what_the_twin_keeps(image, text, keep):
    method = Dart(image, text)
    view = spoiled_view(method, "random", seed=6)
    norms = view.observe(KeyNorms()).tolist()
    words = view.observe(TextPivots(text)) if text else torch.zeros(3, 0, 8)
    expected = [dart_kept(*own, keep, image, text) for own in zip(view.features, norms, words, strict=True)]
    assert kept_of(method, view, keep) == expected


@pytest.mark.parametrize("kind", SPOILED)
def test_every_count_is_exact_whatever_it_is_shown(kind):
    for keep in KEEPS:
        kept_of(Dart(), spoiled_view(Dart(), kind), keep)


# With so many that all text is told, a prompt's first token is seen to be missing.
@pytest.mark.parametrize("count", [3, 60])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_pivots_are_the_text_tokens_with_the_largest_keys(family, side, count, monkeypatch):
    model, maker = tiny.tiny_model(family, "sdpa"), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs = maker.inputs(rows, side=side)
    views: list[Any] = []
    original = choosing.ask
    monkeypatch.setattr(choosing, "ask", lambda stage, view, *rest: views.append(view) or original(stage, view, *rest))
    keys: list[torch.Tensor] = []
    decoder = model.model.language_model
    handle = decoder.layers[1].self_attn.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[2]
        handle.remove()
        with foveate.attach(model, f"dart(layer=2, keep=0.5, image=2, text={count})") as attachment:
            model(**inputs, use_cache=False)
            media = [entry.medium for entry in attachment.trace.media]
    norms = keys[0].abs().sum(-1)
    told = torch.cat([view.observe(KeyNorms()).flatten() for view in views]).sort().values
    own = torch.cat([norms[medium.row, medium.columns] for medium in media]).sort().values
    torch.testing.assert_close(told, own, atol=1e-5, rtol=1e-5)
    visual = {(medium.row, int(column)) for medium in media for column in medium.columns}
    expected = []
    for row in sorted({medium.row for medium in media}):
        real = inputs["attention_mask"][row].nonzero().flatten().tolist()
        ids = inputs["input_ids"][row].tolist()
        text = [c for c in real[1:] if (row, c) not in visual and ids[c] not in (tiny.IMAGE, tiny.VIDEO)]
        best = sorted(text, key=lambda c: (-float(norms[row, c]), c))[:count]
        expected.append(torch.nn.functional.pad(states[row, best], (0, 0, 0, count - len(best))))
    seen = [pivots for view in views for pivots in view.observe(TextPivots(count))]
    for pivots in seen:
        assert any(torch.allclose(pivots, one, atol=1e-5) for one in expected)
    for one in expected:
        assert any(torch.allclose(pivots, one, atol=1e-5) for pivots in seen)
