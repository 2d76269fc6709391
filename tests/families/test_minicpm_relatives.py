"""MiniCPM-V 4.7 and MiniCPM-OCR: where slices stand for the decoder; sizes are counted by the rules of MiniCPM-V 4.6."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import families
from foveate.errors import UnsupportedModel
from tests import tiny

RELATIVES = ("minicpmv4_7", "minicpm_ocr")
pytestmark = pytest.mark.skipif(
    any(find_spec(f"transformers.models.{name}") is None for name in RELATIVES), reason="this transformers does not have them"
)
# The image processor's functions that look at sizes.
OF_SIZES = ("ensure_divide", "find_best_resize", "get_refine_size", "get_sliced_grid")


def processor_file(name: str, file: str) -> ast.Module:
    package = find_spec(f"transformers.models.{name}")
    assert package is not None and package.submodule_search_locations is not None
    return ast.parse((Path(package.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))


def functions(module: ast.Module) -> dict[str, str]:
    return {node.name: ast.dump(node) for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}


def settings(module: ast.Module, name: str) -> dict[str, Any]:
    """Constants in the body of a class."""
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant):
            found[node.targets[0].id] = node.value.value
    return found


def test_pages_are_sliced_by_the_rules_of_minicpm_v():
    """Its whole processor needs torchvision; those rules are held against the one of MiniCPM-V 4.6 in a test of their own."""
    first = processor_file("minicpmv4_6", "image_processing_pil_minicpmv4_6.py")
    second = processor_file("minicpm_ocr", "image_processing_minicpm_ocr.py")
    for name in OF_SIZES:
        assert functions(second)[name] == functions(first)[name], name
    known, own = settings(first, "MiniCPMV4_6ImageProcessorPil"), settings(second, "MiniCPMOcrImageProcessor")
    same = ("patch_size", "scale_resolution", "max_slice_nums", "slice_mode")
    assert {name: own[name] for name in same} == {name: known[name] for name in same}
    mode = families.get("minicpm_ocr").tiny_config().downsample_mode
    assert own["small_image_upsize"] == "always" and own["downsample_mode"] == mode == "4x"


def test_a_page_has_four_times_as_many_tokens():
    config, plain = (families.get(name).tiny_config() for name in ("minicpm_ocr", "minicpmv4_6"))
    config.vision_config.patch_size = plain.vision_config.patch_size = 14
    page = families.get("minicpm_ocr").media_of_images(config, [(1344, 896)])[0]
    picture = families.get("minicpmv4_6").media_of_images(plain, [(1344, 896)])[0]
    assert len(page.crops) == len(picture.crops) == 6 and page.grids[1] == (1, 16, 16)
    assert all(a.patches_per_token == b for a, b in ((page, 4), (picture, 16)))


def test_survivors_keep_their_places_on_the_canvas():
    family, maker = families.get("minicpmv4_7"), tiny.Maker("minicpmv4_7")
    model = tiny.tiny_model("minicpmv4_7")
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(1), maker.text(4), maker.picture(0), maker.text(2)])])
    ids, config = inputs["input_ids"], model.config
    seen = {}

    def note(at):
        def hook(layer, args, kwargs):
            seen[at] = kwargs["position_embeddings"][0]

        return hook

    layers = model.get_submodule(family.decoder).layers
    with torch.no_grad(), foveate.attach(model, "random(layer=2, keep=0.5)") as attachment:
        handles = [layers[at].register_forward_pre_hook(note(at), with_kwargs=True) for at in (1, 4)]
        model(**inputs)
    for handle in handles:
        handle.remove()
    kept = ids[0] != config.image_token_id
    places, first = (~kept).nonzero().flatten(), 0
    for entry in attachment.trace.media:
        kept[places[first + torch.as_tensor(entry.kept_index)]] = True
        first += entry.medium.shape.grid_tokens
    assert 0 < (~kept).sum() < first
    assert torch.equal(seen[4], seen[1][:, kept])
    # Two slices of 2 x 1 tokens lie below each other on a canvas of 4 x 1; the text behind starts where the canvas ends.
    positions, _ = model.model.get_rope_index(
        ids, mm_token_type_ids=inputs["mm_token_type_ids"], target_sizes=inputs["target_sizes"]
    )
    overview, *slices = positions[1, 0, places[:5]].tolist()
    assert [place - overview for place in slices] == [0, 1, 2, 3]


def test_a_model_that_merges_more_than_once_is_refused():
    config = families.get("minicpmv4_7").tiny_config()
    config.merger_times = 2
    with pytest.raises(UnsupportedModel, match="published models merge once"):
        families.family_for(config)
