"""PaliGemma: columns of an image, a prompt that sees itself in both directions, and PaliGemma 2 under the oracles."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.families import family_for
from tests import tiny
from tests.families.features import check_frames, flat
from tests.families.processors import image, image_processor, tokenizer
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, real

SIZES = [(640, 480), (224, 224), (20, 900)]
# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
PLANS = [
    "fastv(layer=2, keep=0.3)",
    "fastv(layer=2, keep=0.5, query=all)",
    "random(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.5, query=text, rope=off) | fastv(layer=5, keep=0.4)",
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the processor's own labels
@pytest.mark.parametrize(("preset", "side"), [("paligemma-3b-224", 16), ("paligemma2-3b-448", 32)])
def test_an_image_fills_the_columns_that_its_processor_makes(preset, side):
    from transformers import AutoConfig, PaliGemmaProcessor

    config = AutoConfig.for_model(**load_preset(preset))
    pixels = image_processor("siglip", "siglip", "SiglipImageProcessorPil", size={"height": 14 * side, "width": 14 * side})
    pixels.image_seq_length = side * side
    words = tokenizer(image_token="<image>", bos_token="<bos>")
    words.bos_token = "<bos>"
    rules = PaliGemmaProcessor(pixels, words)
    inputs = rules(images=[[image(*size)] for size in SIZES], text=["<image> text"] * 3, return_tensors="pt")
    columns = {"image": int((inputs["input_ids"] == rules.image_token_id).sum())}
    family = family_for(config)
    shapes = family.media(config, inputs, columns)["image"]
    assert shapes == family.media_of_images(config, SIZES)
    assert (shapes[0].grid, shapes[0].tokens * 3) == ((1, side, side), columns["image"])
    cost = foveate.estimate(preset, "fastv(layer=2, keep=0.5)", images=SIZES[:1])
    assert cost.visual_tokens_per_layer[1][1:3] == (side * side, side * side // 2)


def test_the_features_of_a_region_are_at_its_cell():
    model, family = tiny.tiny_model("paligemma"), families.get("paligemma")
    (shape,) = family.media_of_images(model.config, [(24, 24)])
    check_frames(shape, 24, lambda video: flat(model.model.get_image_features(video[0])))


def paligemma2():
    """PaliGemma 2: sliding layers, softcaps. Transformers runs it with eager attention, not with SDPA."""
    from transformers import Gemma2Config

    from foveate.families._base import TINY_TEXT

    config = families.get("paligemma").tiny_config()
    kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    sizes = dict(num_hidden_layers=6, head_dim=8, query_pre_attn_scalar=8, sliding_window=24, layer_types=kinds)
    parts = {**config.to_dict(), "text_config": Gemma2Config(**TINY_TEXT, **sizes, attn_logit_softcapping=2.0)}
    parts.pop("model_type")
    return type(config)(**parts)


@pytest.fixture(scope="module")
def second():
    config = paligemma2()
    assert config.get_text_config().use_bidirectional_attention
    return tiny.tiny_model("paligemma", "eager", config=config), tiny.Maker("paligemma", config=config)


@pytest.mark.full
@pytest.mark.since((5, 18), "before, transformers puts generated tokens into the bidirectional prompt if it has no cache")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch", [1, 3])
def test_paligemma_2_pruned_equals_the_dense_reference(second, plan, batch):
    model, maker = second
    inputs = maker.inputs(tiny.ragged_rows(maker, batch))
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = model(**inputs).logits
        layers = [0, 2, 5] if plan.startswith("random") else [2]
        alive = dict(zip(layers, alive_columns(attachment.trace, inputs), strict=True))
        answer = tiny.generate(model, inputs)
    plain = model(**inputs).logits.detach()
    with torch.no_grad(), dense_reference(model, alive):
        reference = model(**inputs).logits
        dense = tiny.generate(model, inputs, use_cache=False)
    everywhere = real(inputs)
    for columns in alive.values():
        everywhere = everywhere & columns
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert float((pruned[:, -1] - plain[:, -1]).abs().max()) > 100 * LOGITS
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.full
@pytest.mark.parametrize("plan", PLANS)
def test_paligemma_2_in_a_batch_equals_each_row_alone(second, plan):
    model, maker = second
    rows = tiny.ragged_rows(maker, 3)
    with foveate.attach(model, plan):
        together = tiny.generate(model, maker.inputs(rows))
        for number, row in enumerate(rows):
            alone = tiny.generate(model, maker.inputs([row]))
            assert torch.equal(together.sequences[number, -6:], alone.sequences[0, -6:])


def test_the_prompt_sees_itself_in_both_directions(second):
    model, maker = second
    inputs = maker.inputs([tiny.Row([maker.picture(), maker.text(6)])])
    later = {**inputs, "input_ids": inputs["input_ids"].clone()}
    later["input_ids"][0, -1] += 1
    with torch.no_grad(), foveate.attach(model, "random(layer=2, keep=0.5)"):
        before, after = (model(**given).logits[0, -3] for given in (inputs, later))
    assert float((before - after).abs().max()) > 100 * LOGITS
