"""In training the prompt rates and the answer does not: labels say where it begins."""

from __future__ import annotations

import pytest
import torch

import foveate
from tests import tiny


def _kept(model, inputs, **more) -> list[list[int]]:
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.3)") as attachment:
        model(**inputs, use_cache=False, **more)
        return [entry.kept_index.tolist() for entry in attachment.trace]


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_training_call_keeps_what_its_prompt_alone_keeps(family, side):
    model = tiny.tiny_model(family)
    maker = tiny.Maker(family)
    prompts = tiny.ragged_rows(maker, 3)
    answers = [maker.text(length) for length in (6, 3, 5)]
    whole = [tiny.Row([*row.pieces, answer]) for row, answer in zip(prompts, answers, strict=True)]
    inputs = maker.inputs(whole, side)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, answer in enumerate(answers):
        stop = int(torch.nonzero(inputs["attention_mask"][row]).max()) + 1
        labels[row, stop - len(answer) : stop] = answer
    alone = _kept(model, tiny.Maker(family).inputs(prompts, side))
    assert _kept(model, inputs, labels=labels) == alone
    assert _kept(model, inputs) != alone, "without labels the last token rates, or the test proves nothing"
