"""Idefics3 and SmolVLM: which tiles make an image, how many there are, and where the features of a region land."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate import families
from foveate.cost.presets import load_preset
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import InputError, UnsupportedCombination
from foveate.families import family_for
from tests import tiny
from tests.families.processors import image, image_processor
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns

LOGITS = 2e-4
# The preset, patches along a side of a tile, visual tokens along a side of a tile.
CHECKPOINTS = {"idefics3-8b": (364, 26, 13), "smolvlm2-2.2b": (384, 27, 9), "smolvlm2-500m": (512, 32, 8)}
both = pytest.mark.parametrize("family", ["idefics3", "smolvlm"])


def config_of(preset: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**load_preset(preset))


def processor(tile: int, family: str = "idefics3") -> Any:
    name = {"idefics3": "Idefics3ImageProcessorPil", "smolvlm": "SmolVLMImageProcessorPil"}[family]
    sizes = {"size": {"longest_edge": 4 * tile}, "max_image_size": {"longest_edge": tile}}
    return image_processor(family, family, name, **sizes)


def tiles_by_the_rules_of(module: Any, width: int, height: int, tile: int) -> int:
    """The processor's own arithmetic on a picture without pixels."""

    def resized(picture: np.ndarray, size: Any, resample: Any = None) -> np.ndarray:
        shape = (size.height, size.width)
        if size.longest_edge:
            shape = module.get_resize_output_image_size(picture, size.longest_edge)
        return np.broadcast_to(np.int8(0), (1, *shape))

    rules = module.Idefics3ImageProcessorPil()
    rules.resize = resized
    picture = resized(np.broadcast_to(np.int8(0), (1, height, width)), module.SizeDict(longest_edge=4 * tile))
    return len(rules.split_images(rules.resize_for_vision_encoder(picture, tile), {"longest_edge": tile})[0])


@pytest.mark.parametrize("preset", CHECKPOINTS)
def test_many_sizes_give_the_tiles_of_the_processor(preset):
    config, (tile, patches, side) = config_of(preset), CHECKPOINTS[preset]
    rules, rng = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3"), random.Random(0)
    sizes = [(rng.randint(1, 4000), rng.randint(1, 4000)) for _ in range(1500)]
    sizes += [(rng.randint(1, 40), rng.randint(1, 4000)) for _ in range(500)] + [(tile, tile), (4 * tile, tile), (1, 1)]
    for size, shape in zip(sizes, family_for(config).media_of_images(config, sizes), strict=True):
        tiles = tiles_by_the_rules_of(rules, *size, tile)
        assert shape.grids == ((1, side, side),) * tiles, size
        assert shape.encoder_sequences == (patches**2,) * tiles and shape.encoder_tokens == tiles * patches**2


@both
@pytest.mark.parametrize("size", [(96, 72), (33, 90), (7, 7), (300, 20), (500, 499)])
def test_a_picture_gives_as_many_tiles_as_its_size_says(family, size):
    config = families.get(family).tiny_config()
    (shape,) = families.get(family).media_of_images(config, [size])
    assert processor(24, family)(images=[image(*size)], return_tensors="pt")["pixel_values"].shape[1] == len(shape.grids)


def tokenizer() -> Any:
    """Newlines are tokens, two of them one; `<global-img>` and the rows and columns are several, as in Idefics3."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    words = ["<unk>", "<pad>", "text", "\n", "\n\n", "<", ">", "_", "-", "row", "col", "global", "img", *"123456", *special]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    pieces = [pre_tokenizers.Split(Regex("\n\n|\n|[a-z]+|[^ a-z\n]"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    raw.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=special
    )


@pytest.mark.parametrize("texts", [["<image> text <image><image>"], ["text", "<image> text", "<image><image> text text"]])
def test_the_prompt_of_the_processor_tells_which_tiles_make_an_image(texts):
    from transformers import Idefics3Processor

    family = families.get("idefics3")
    config = family.tiny_config()
    # Without resizing the whole picture, images differ in rows and columns of tiles, and one has a single tile.
    pixels = image_processor("idefics3", "idefics3", "Idefics3ImageProcessorPil", max_image_size={"longest_edge": 24})
    whole = Idefics3Processor(pixels, tokenizer(), image_seq_len=9)
    pictures, images = [image(*size) for size in ((60, 40), (20, 20), (10, 70))], []
    for text in texts:
        images.append([pictures.pop(0) for _ in range(text.count("<image>"))])
    inputs = whole(images=images, text=texts, padding=True, do_resize=False, return_tensors="pt")
    config.image_token_id = whole.image_token_id
    columns = {"image": int((inputs["input_ids"] == whole.image_token_id).sum())}
    media = family.media(config, inputs, columns)["image"]
    assert [len(shape.grids) for shape in media] == [3 * 2 + 1, 1, 3 + 1]
    assert sum(shape.tokens for shape in media) == columns["image"]
    assert inputs["pixel_values"].shape[:2] == (len(texts), 12 if len(texts) == 1 else 7)


def test_the_frames_of_a_video_are_images(monkeypatch):
    module = pytest.importorskip("transformers.models.smolvlm.processing_smolvlm")
    if not hasattr(module.SmolVLMProcessor, "replace_video_token"):
        pytest.skip("this transformers builds the video prompt elsewhere")
    monkeypatch.setattr(module, "num2words", str)
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    metadata = SimpleNamespace(fps=1, timestamps=[0, 1, 2], duration=3)
    video = {"pixel_values": torch.ones(1, 3, 3, 24, 24), "video_metadata": [metadata]}
    prompt = module.SmolVLMProcessor.replace_video_token(SimpleNamespace(**names, image_seq_len=9), video, 0)
    words = tokenizer()
    family = families.get("smolvlm")
    config = family.tiny_config()
    config.image_token_id = words.convert_tokens_to_ids("<image>")
    ids = words(prompt, return_tensors="pt")["input_ids"]
    media = family.media(config, {"input_ids": ids, "pixel_values": video["pixel_values"]}, {"image": 27})["image"]
    assert [(shape.kind, shape.grids) for shape in media] == [("image", ((1, 3, 3),))] * 3
    with pytest.raises(UnsupportedCombination, match="each frame of a video as an image of its own, of 9 visual tokens"):
        family.media_of_video(config, (64, 64), 4)


@both
def test_the_features_of_a_region_are_at_its_token(family):
    rules, model = processor(24, family), tiny.tiny_model(family)
    plain = image(96, 72)  # 4 x 3 tiles of 24 pixels and a copy of the whole: 13 parts of 3 x 3 tokens, 8 pixels each
    (shape,) = families.get(family).media_of_images(model.config, [plain.size])
    assert len(shape.pieces) == 13
    for x, y in [(0, 0), (1, 0), (3, 1), (4, 6), (11, 8), (9, 2)]:
        other = plain.copy()
        other.paste((250, 10, 200), (8 * x, 8 * y, 8 * x + 8, 8 * y + 8))
        with torch.no_grad():
            before, after = (
                torch.cat(model.model.get_image_features(**rules(images=[one], return_tensors="pt")).pooler_output)
                for one in (plain, other)
            )
        assert len(before) == shape.tokens
        change = (after - before).norm(dim=1).view(13, 3, 3)
        assert divmod(int(change[:12].argmax()), 9) == (y // 3 * 4 + x // 3, y % 3 * 3 + x % 3)
        assert int(change[12].argmax()) == y // 3 * 3 + x // 4


@both
def test_a_turn_with_a_new_image_on_a_pruned_cache_equals_the_dense_reference(family):
    model, maker = tiny.tiny_model(family), tiny.Maker(family)
    pictures = [maker.picture(0), maker.picture(2)]
    first = maker.inputs([tiny.Row([maker.text(4), pictures[0], maker.text(6)])])
    turn = maker.inputs([tiny.Row([maker.text(3), pictures[1], maker.text(5)])])
    with foveate.attach(model, "fastv(layer=2, keep=0.4)") as attachment:
        answer = tiny.generate(model, first)
        old = alive_columns(attachment.trace, first)[0]
        ids = torch.cat([answer.sequences, turn["input_ids"]], 1)
        inputs = turn | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        second = tiny.generate(model, inputs, **{CACHE: cache_in(answer)})
        (entry,) = attachment.trace.media
        assert len(entry.medium.shape.grids) == 3 and len(entry.kept_index) == 11
        past = answer.sequences.shape[1] - 1  # the last generated token was never in the cache
        new = alive_columns(attachment.trace, {"input_ids": ids[:, past:]})[0]
    alive = torch.cat([old, torch.ones(1, past - old.shape[1], dtype=torch.bool), new], 1)
    whole = inputs | families.get(family).tiny_batch(model.config, ids, pictures)
    with dense_reference(model, {2: alive}):
        dense = tiny.generate(model, whole, use_cache=False)
    assert torch.equal(second.sequences, dense.sequences)
    assert tiny.greatest_difference(second, dense) < LOGITS


@both
def test_what_does_not_fit_is_refused(family):
    maker = tiny.Maker(family)
    config = families.get(family).tiny_config()
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(0), maker.text(6)])])
    media = families.get(family).media
    assert media(config, {}, {"image": 0}) == {"image": []}
    with pytest.raises(InputError, match="row 0 has placeholders for 3 tiles, but pixel values for 2 are given"):
        media(config, inputs | {"pixel_values": inputs["pixel_values"][:, :2]}, {"image": 27})
    with pytest.raises(InputError, match="pass input_ids, not inputs_embeds"):
        media(config, {"inputs_embeds": torch.zeros(1, 30, 32)}, {"image": 27})
    with pytest.raises(InputError, match="a tile fills 9 image placeholder tokens, but 8 follow each other"):
        media(config, {"input_ids": torch.full((1, 8), 90)}, {"image": 8})
