"""Gemma 4: images of any shape within a budget of tokens, videos of frames behind timestamps, layers that read others' keys."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate import families
from foveate.core.plan import Plan
from foveate.cost.estimate import estimate_cost
from foveate.cost.presets import load_preset
from foveate.errors import InputError, PlanError, UnsupportedModel
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor

SIZES = [(640, 480), (1024, 768), (1, 1), (5, 900), (2500, 13), (16, 4096), (300, 1), (4000, 3000), (767, 769), (48, 48)]


def config_of(**changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**(load_preset("gemma-4-e2b") | changes))


@pytest.mark.full
def test_a_size_gives_the_grid_of_the_processor():
    config, rules = config_of(), image_processor("gemma4", "gemma4", "Gemma4ImageProcessorPil")
    family = family_for(config)
    expected = family.media_of_images(config, SIZES)
    inputs = rules(images=[image(*size) for size in SIZES], return_tensors="pt")
    assert [shape.tokens for shape in expected] == list(inputs["num_soft_tokens_per_image"])
    columns = {"image": sum(shape.tokens for shape in expected), "video": 0}
    assert family.media(config, inputs, columns)["image"] == expected
    assert expected[0].grid == (1, 14, 19) and expected[0].encoder_tokens == 9 * 280


@pytest.mark.parametrize(("kind", "most"), [("image", 280), ("video", 70)])
def test_many_sizes_give_the_grids_of_the_resize_rule(kind, most):
    found = pytest.importorskip("transformers.models.gemma4.image_processing_pil_gemma4")
    config, rng = config_of(), random.Random(0)
    family = family_for(config)
    for _ in range(5000):
        width, height = rng.choice([(rng.randint(1, 5000), rng.randint(1, 5000)), (rng.randint(1, 20), rng.randint(1, 5000))])
        high, wide = found.get_aspect_ratio_preserving_size(height, width, 16, most * 9, 3)
        size = (width, height)
        shape = family.media_of_video(config, size, 5) if kind == "video" else family.media_of_images(config, [size])[0]
        assert shape.grid == (5 if kind == "video" else 1, high // 48, wide // 48), size


def test_the_features_of_a_region_are_at_its_cell_of_the_grid():
    # 10 x 7 cells of 12 x 12 pixels are the whole budget of 70 tokens, so that nothing is resized.
    options = dict(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    rules, model = image_processor("gemma4", "gemma4", "Gemma4ImageProcessorPil", **options), tiny.tiny_model("gemma4")
    plain = image(120, 84)

    def features(picture: Any) -> torch.Tensor:
        inputs = rules(images=[picture], return_tensors="pt")
        (shape,) = families.get("gemma4").media(model.config, inputs, {"image": 70, "video": 0})["image"]
        assert shape.grid == (1, 7, 10)
        with torch.no_grad():
            found = model.model.get_image_features(inputs["pixel_values"], inputs["image_position_ids"]).pooler_output
            return found if isinstance(found, torch.Tensor) else torch.cat(found)

    before = features(plain)
    for cell in (0, 9, 10, 33, 60, 69):
        other, corner = plain.copy(), (cell % 10 * 12, cell // 10 * 12)
        other.paste((250, 10, 200), (*corner, corner[0] + 12, corner[1] + 12))
        assert int((features(other) - before).norm(dim=1).argmax()) == cell


def test_a_video_has_the_columns_that_its_processor_writes():
    from transformers import Gemma4Processor

    names = SimpleNamespace(boi_token="[", eoi_token="]", video_token="V")
    places = torch.full((5, 630, 2), -1)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(18), indexing="ij")
    places[:, :216] = torch.stack([x, y], dim=-1).view(-1, 2)
    metadata = SimpleNamespace(fps=2, timestamps=[0, 1, 61])
    written = {"num_soft_tokens_per_video": [24, 24], "video_metadata": [metadata, SimpleNamespace(fps=2, timestamps=[0, 9])]}
    if not hasattr(Gemma4Processor, "replace_video_token"):
        pytest.skip("this version writes videos where it also decodes them")
    texts = [Gemma4Processor.replace_video_token(names, written, number) for number in (0, 1)]
    inputs = {"video_position_ids": places, "num_frames_per_video": torch.tensor([3, 2])}
    config = config_of()
    media = family_for(config).media(config, inputs, {"image": 0, "video": 120})["video"]
    assert [shape.grid for shape in media] == [(3, 4, 6), (2, 4, 6)]
    assert [shape.tokens for shape in media] == [text.count("V") for text in texts]
    assert media[0].encoder_sequences == (630,) * 3
    # Videos of equal length may come stacked.
    assert (
        family_for(config).media(config, {"video_position_ids": places[None, :3]}, {"image": 0, "video": 72})["video"]
        == media[:1]
    )


def test_placeholders_without_their_positions_are_refused():
    config, places = config_of(), torch.zeros(2, 9, 2)
    family = family_for(config)
    for kind in ("image", "video"):
        with pytest.raises(InputError, match=f"{kind}_position_ids is missing"):
            family.media(config, {}, {"image": 0, "video": 0} | {kind: 4})
    with pytest.raises(InputError, match="num_frames_per_video is missing"):
        family.media(config, {"video_position_ids": places}, {"image": 0, "video": 2})
    with pytest.raises(InputError, match="pixel values of 1 image frames, but image_position_ids of 2"):
        family.media(config, {"image_position_ids": places, "pixel_values": [None]}, {"image": 2, "video": 0})
    for call in (lambda: family.media_of_images(config, [(0, 4)]), lambda: family.media_of_video(config, (4, 4), 0)):
        with pytest.raises(InputError, match="at least 1"):
            call()


def test_layers_read_the_keys_of_the_last_layer_of_their_kind():
    config = config_of()
    family = family_for(config)
    shared = family.shared_keys(config)
    assert shared == {layer: 14 if layer % 5 == 4 else 13 for layer in range(15, 35)}
    assert [family.refuse_layer(config, layer) is None for layer in (1, 13, 14, 15, 34)] == [True, True, False, False, False]
    assert "layers 15 to 34 read the keys and values of layers 13 and 14" in family.refuse_layer(config, 14)
    plain = config_of(text_config=load_preset("gemma-4-e2b")["text_config"] | {"num_kv_shared_layers": 0})
    assert family.shared_keys(plain) == {} and family.refuse_layer(plain, 34) is None


@pytest.mark.parametrize("effect", ["", ", effect=mask"])
def test_a_stage_behind_a_layer_whose_keys_are_read_later_is_refused(effect):
    model = tiny.tiny_model("gemma4")
    for layer in (5, 6, 7):
        with pytest.raises(PlanError, match=rf"layer={layer}: layers 6 to 7 .* the largest valid layer is 4"):
            foveate.attach(model, f"fastv(layer={layer}, keep=0.5{effect})")
    with foveate.attach(model, f"fastv(layer=4, keep=0.5{effect})"):
        pass


def test_models_without_a_picture_or_without_a_direction_are_refused():
    with pytest.raises(UnsupportedModel, match="no vision encoder"):
        family_for(config_of(vision_config=None))
    text = load_preset("gemma-4-e2b")["text_config"] | {"use_bidirectional_attention": "all"}
    with pytest.raises(UnsupportedModel, match="both directions everywhere"):
        family_for(config_of(text_config=text))


@torch.no_grad()
def test_experts_beside_the_mlp_are_counted():
    from transformers import AutoModelForImageTextToText, Gemma4Config

    family = families.get("gemma4")
    given = family.tiny_config().to_dict()
    experts = dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=16, num_kv_shared_layers=0)
    config = Gemma4Config(**given | {"text_config": given["text_config"] | experts})
    kernels = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model, inputs = AutoModelForImageTextToText.from_config(config, **kernels).eval(), family.tiny_inputs(config)
    with FlopCounterMode(display=False, depth=3) as counter:
        model(**inputs, logits_to_keep=1)
    counts = {name.rpartition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    columns = {"image": int((inputs["input_ids"] == 90).sum()), "video": 0}
    media = family.media(config, inputs, columns)["image"]
    cost = estimate_cost(family.model_shape(config), Plan(), media, inputs["input_ids"].shape[1] - columns["image"])
    assert cost.llm_prefill_flops.plain == pytest.approx(counts["language_model"] + counts["lm_head"], rel=1e-3)
