"""Rows of equal length that keep different numbers of tokens: transformers makes no mask, so the holes are foveate's own."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine.compat import cache_in
from tests import tiny

LOGITS = 2e-4  # fp32 sums in another order, logits of size 10


def _rows(maker: tiny.Maker) -> list[tiny.Row]:
    """One image and much text, beside two images and little text: as many columns, no padding."""
    first, second, third = (maker.picture(0) for _ in range(3))
    return [
        tiny.Row([maker.text(5), first, maker.text(7 + len(first.ids))]),
        tiny.Row([maker.text(4), second, maker.text(3), third, maker.text(5)]),
    ]


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_rows_of_equal_length_that_keep_unequal_numbers_equal_each_row_alone(family, backend, with_mask):
    model = tiny.tiny_model(family, backend)
    maker = tiny.Maker(family)
    rows = _rows(maker)
    together = maker.inputs(rows, mask=with_mask)
    assert bool((together["input_ids"] != tiny.PAD).all()), "padding would bring a mask"
    with foveate.attach(model, "fastv(layer=2, keep=0.3)"):
        batch = tiny.generate(model, together, tokens=8)
        lengths = [layer.keys.shape[-2] for layer in cache_in(batch).layers]
        assert lengths[2] < lengths[1] or tiny.slides(family)
        for number, row in enumerate(rows):
            alone = tiny.generate(model, maker.inputs([row], mask=with_mask), tokens=8)
            assert torch.equal(batch.sequences[number, -8:], alone.sequences[0, -8:])
            pairs = zip(batch.logits, alone.logits, strict=True)
            assert max(float((a[number] - b[0]).abs().max()) for a, b in pairs) < LOGITS
