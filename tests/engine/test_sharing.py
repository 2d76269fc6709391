"""One attached model used by several threads, and copied."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import foveate
from foveate.errors import AttachError, InputError
from tests import tiny


def test_threads_on_one_model_keep_what_each_keeps_alone():
    model = tiny.tiny_model("llava")
    maker = tiny.Maker("llava")
    prompts = [maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(6)])]) for _ in range(4)]

    def kept(attachment, inputs) -> list[int]:
        with torch.no_grad(), attachment.conversation() as talk:
            model(**inputs)
        return talk.trace.media[0].kept_index.tolist()

    with foveate.attach(model, "fastv(layer=2, keep=0.2)") as attachment:
        alone = [kept(attachment, inputs) for inputs in prompts]
        assert len({tuple(tokens) for tokens in alone}) == len(prompts), "equal choices would hide a mix-up"
        with ThreadPoolExecutor(4) as pool:
            rounds = [list(pool.map(lambda inputs: kept(attachment, inputs), prompts)) for _ in range(15)]
    assert all(together == alone for together in rounds)
    attention = model.model.language_model.layers[1].self_attn
    assert attention.config is model.config.get_text_config()


def test_a_model_with_a_plan_is_not_copied():
    model = tiny.tiny_model("llava")
    with foveate.attach(model, "fastv(layer=2, keep=0.5)"), pytest.raises(AttachError, match="detach"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_the_hybrid_cache_that_gemma_checkpoints_name_is_the_dynamic_one():
    model = tiny.tiny_model("gemma3")
    maker = tiny.Maker("gemma3")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    with foveate.attach(model, "fastv(layer=2, keep=0.5)"):
        expected = tiny.generate(model, inputs)
        model.generation_config.cache_implementation = "hybrid"
        assert torch.equal(tiny.generate(model, inputs).sequences, expected.sequences)


def test_placeholders_without_any_picture_are_refused():
    model = tiny.tiny_model("llava")
    maker = tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    del inputs["pixel_values"]
    with foveate.attach(model, "fastv(layer=2, keep=0.5)"):
        with pytest.raises(InputError, match="no image is given"):
            model.generate(**inputs, max_new_tokens=2)
        with pytest.raises(InputError, match="does not fit"):
            model(**maker.inputs(tiny.ragged_rows(maker, 1)) | {"attention_mask": torch.ones(1, 3)})
