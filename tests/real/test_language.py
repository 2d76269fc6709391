"""What only a pretrained language model shows: the attention sink, and that it must see its last words."""

from __future__ import annotations

from pathlib import Path

import pytest

import foveate
from foveate.core.attention import Raters
from foveate.evaluate.reading import Rounds, read_rounds

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
PROMPT, ANSWER = 64, 256  # tokens


def test_late_layers_look_at_the_first_token(real, prompt):
    model, inputs = real[0], prompt(f"{' '.join(LICENSE.split()[:150])}[picture]What is this?")
    study = foveate.attention(model, inputs, max_new_tokens=8)
    for raters in Raters:
        rows = study.rows[raters][:, 0]  # [layers, columns]
        even = 1 / rows.shape[1]
        late = rows[12:, 0]
        assert float(late.min()) > 20 * even and float(late.mean()) > 0.25
        assert float(rows[12:, 1:].max()) < float(late.max())


def test_an_untrained_gate_needs_the_last_words(real):
    model, tokenizer = real
    ids = tokenizer(LICENSE, return_tensors="pt").input_ids[:, : PROMPT + ANSWER]
    rounds = Rounds({"input_ids": ids[:, :PROMPT], "attention_mask": ids[:, :PROMPT] * 0 + 1}, (ids[0, PROMPT:],))
    plain = read_rounds(model, rounds, None)[0].perplexity
    for name in ("random_gate", "stride_gate"):
        found = {}
        for options in ("", ", recent=0"):
            with foveate.attach(model, f"{name}(layer=2, keep=0.5{options})") as attachment:
                found[options] = read_rounds(model, rounds, attachment)[0].perplexity
        assert plain < found[""] < 1.5 * plain, (plain, found)
        assert found[", recent=0"] > 2 * found[""], (plain, found)
