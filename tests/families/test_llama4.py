"""Llama 4: tiles per size as its image processor cuts them, images told apart by their tokens, chunked and NoPE layers."""

from __future__ import annotations

import ast
import math
import random
from collections import defaultdict
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.engine.attention_rows import without_rope
from foveate.errors import InputError, PlanError, UnsupportedCombination
from foveate.families import family_for
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

LOGITS = 2e-4


@pytest.fixture(scope="module")
def config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset("llama-4-scout"))


@pytest.fixture(scope="module")
def rules() -> SimpleNamespace:
    """The functions of the real image processor. Its module needs torchvision; what decides about tiles does not."""
    source = Path(find_spec("transformers.models.llama4.image_processing_llama4").origin).read_text(encoding="utf-8")
    wanted = ("get_factors", "find_supported_resolutions", "get_best_fit")
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    names = {"torch": torch, "math": math, "defaultdict": defaultdict, "lru_cache": lru_cache, "SizeDict": Any}
    exec(compile(ast.Module(nodes, []), "image_processing_llama4", "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in wanted})


class Square(tuple):
    """A size as the processor has it: (height, width), both the side of a tile."""

    height = width = 336


def tiles_of(rules: SimpleNamespace, width: int, height: int) -> tuple[int, int]:
    canvases = torch.tensor(rules.find_supported_resolutions(16, Square((336, 336))))
    high, wide = rules.get_best_fit((height, width), canvases).tolist()
    return high // 336, wide // 336


def test_many_sizes_give_the_tiles_of_the_processor(config, rules):
    rng = random.Random(0)
    sizes = [(rng.randint(1, 6000), rng.randint(1, 6000)) for _ in range(2000)]
    sizes += [(336, 336), (672, 336), (1, 1), (337, 336), (5376, 336), (1344, 1344), (10_000, 10), (640, 480), (1024, 768)]
    for size, shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        high, wide = tiles_of(rules, *size)
        tiles = high * wide + (high * wide > 1)
        assert shape.grids == ((1, 12, 12),) * tiles, size
        assert shape.encoder_sequences == (577,) * tiles


def test_the_columns_are_those_that_the_processor_writes(config, rules):
    from transformers import Llama4Processor

    sizes = [(640, 480), (300, 200), (2000, 500)]
    family = family_for(config)
    words = {"<|image_start|>": config.boi_token_id, "<|patch|>": config.image_token_id, "<|image_end|>": config.eoi_token_id}
    ids = [1]
    for size in sizes:
        ratio = tiles_of(rules, *size)
        text = Llama4Processor._prompt_split_image(None, ratio, 144)
        ids += [words.get(f"<{part}>", 5) for part in text.strip("<>").split("><")]
    both = torch.tensor([ids, [1] * len(ids)])
    columns = {"image": int((both == config.image_token_id).sum())}
    media = family.media(config, {"input_ids": both}, columns)["image"]
    assert media == family.media_of_images(config, sizes)
    assert [len(shape.grids) for shape in media] == [5, 1, 13]


def test_the_features_of_a_region_are_at_its_cell_of_its_tile():
    model, maker = tiny.tiny_model("llama4"), tiny.Maker("llama4")
    pixels = maker.picture(0).inputs["pixel_values"]  # three tiles of 4 x 4 cells of 8 x 8 pixels
    (shape,) = families.get("llama4").media(model.config, maker.inputs([tiny.Row([maker.picture(0)])]), {"image": 48})["image"]
    assert shape.grids == ((1, 4, 4),) * 3

    def features(values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.vision_model(values).last_hidden_state.flatten(0, 1)

    before = features(pixels)
    for token in (0, 3, 4, 17, 30, 32, 47):
        tile, cell = divmod(token, 16)
        other, y, x = pixels.clone(), cell // 4 * 8, cell % 4 * 8
        other[tile, :, y : y + 8, x : x + 8] += 3.0
        assert int((features(other) - before).norm(dim=1).argmax()) == token


def test_prompts_that_do_not_fit_their_images_are_refused(config):
    family, patch, start = family_for(config), config.image_token_id, config.boi_token_id
    cases = [
        ([start] + [patch] * 143, {}, "an image with 143 placeholder tokens, no multiple of the 144 that one tile fills"),
        ([patch] * 144 + [start], {}, "144 image placeholder tokens stand in front of the first start-of-image token"),
        ([start] + [patch] * 144, {"pixel_values": [None] * 2}, "pixel values of 2 tiles, but 144 image placeholder tokens"),
        ([1, 2], {"pixel_values": [None]}, "pixel values of 1 tiles, but 0 image placeholder tokens"),
    ]
    for ids, more, words in cases:
        tensor = torch.tensor([ids])
        with pytest.raises(InputError, match=words):
            family.media(config, {"input_ids": tensor, **more}, {"image": int((tensor == patch).sum())})
    with pytest.raises(InputError, match="pass input_ids, not embeddings"):
        family.media(config, {}, {"image": 144})
    with pytest.raises(InputError, match="at least 1"):
        family.media_of_images(config, [(0, 5)])
    assert family.media(config, {}, {"image": 0}) == {"image": []}


@pytest.mark.runs("llama4")
def test_chunked_layers_do_not_see_the_whole_prompt(config):
    windows = family_for(config).decoder_windows(config)
    assert [layer for layer, window in enumerate(windows) if window is None] == list(range(3, 48, 4))
    assert windows[0] == 8192
    with pytest.raises(PlanError, match=r"layers below 1 see a sliding window only.* the smallest valid layer is 2"):
        foveate.attach(tiny.tiny_model("llama4"), "fastv(layer=1, keep=0.5)")


def with_floor(floor: int) -> Any:
    model = tiny.tiny_model("llama4")
    for module in model.modules():
        if hasattr(module, "floor_scale"):
            module.floor_scale = floor
    model.config.get_text_config().floor_scale = floor
    return model


@pytest.mark.runs("llama4")
def test_long_prompts_of_layers_that_weigh_by_place_are_refused():
    maker = tiny.Maker("llama4")
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    columns = inputs["input_ids"].shape[1]
    model = with_floor(columns)
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.4)"):
        for call in (lambda: model(**inputs), lambda: tiny.generate(model, inputs)):
            with pytest.raises(UnsupportedCombination, match=f"a prompt of {columns} tokens: from {columns} on .* effect=mask"):
                call()
        model(input_ids=torch.arange(3, 80)[None])  # text alone is not shortened
    with torch.no_grad(), foveate.attach(model, "fastv(layer=2, keep=0.4, effect=mask)") as attachment:
        masked = model(**inputs).logits
        (alive,) = alive_columns(attachment.trace, inputs)
    with torch.no_grad(), dense_reference(model, {2: alive}):
        reference = model(**inputs).logits
    assert float((masked - reference)[alive & real(inputs)].abs().max()) < LOGITS


@pytest.mark.runs("llama4")
def test_an_answer_that_grows_beyond_the_floor_weighs_by_its_original_place():
    maker = tiny.Maker("llama4")
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    model = with_floor(inputs["input_ids"].shape[1] + 3)
    with foveate.attach(model, "fastv(layer=2, keep=0.4)") as attachment:
        answer = tiny.generate(model, inputs, tokens=8)
        (alive,) = alive_columns(attachment.trace, inputs)
    with dense_reference(model, {2: alive}):
        dense = tiny.generate(model, inputs, tokens=8, use_cache=False)
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.runs("llama4")
def test_rotary_positions_can_be_left_out_where_there_are_none():
    model, maker = tiny.tiny_model("llama4"), tiny.Maker("llama4")
    inputs, kept = maker.inputs(tiny.ragged_rows(maker, 3)), []
    for rope in ("on", "off"):
        with torch.no_grad(), foveate.attach(model, f"fastv(layer=2, keep=0.3, rope={rope})") as attachment:
            model(**inputs)
            kept.append([entry.kept_index.tolist() for entry in attachment.trace])
    assert kept[0] == kept[1]


def test_complex_rotations_are_turned_back():
    from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

    states = torch.randn(2, 7, 4, 8)
    angles = torch.polar(torch.ones(2, 7, 4), torch.randn(2, 7, 4))
    turned, _ = apply_rotary_emb(states, states, angles)
    back = without_rope(turned.transpose(1, 2), angles)
    assert torch.allclose(back, states.transpose(1, 2), atol=1e-5)
    assert without_rope(states, ()) is states
