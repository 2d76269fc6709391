"""Prompts and pictures of a converted model are those that the official code makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from foveate.convert import convert_dynamic_llava
from foveate.convert.processor import load_tokenizer, save_processor
from foveate.predictors import read_config
from tests.convert import official
from tests.convert.official import SIZES, VOCABULARY

PATCHES = SIZES["side"] ** 2
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
FIRST = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
BOTH = [
    *FIRST,
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processor")
    source = official.write(root / "src", official.weights(), official.config())
    return convert_dynamic_llava(str(source), root / "dst").folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def as_official(tokenizer: Any, prompt: str) -> list[int]:
    """Parts between pictures are tokenized one by one; all but the first lose their start token."""
    ids: list[int] = []
    for number, part in enumerate(prompt.split("<image>")):
        own = tokenizer(part).input_ids
        assert own[0] == 1
        ids += own if number == 0 else [VOCABULARY] * PATCHES + own[1:]
    return ids


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        (FIRST, SYSTEM + "USER: <image>\nWhat is it? ASSISTANT:"),
        (BOTH, SYSTEM + "USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:"),
        ([{"role": "user", "content": "Hi."}], SYSTEM + "USER: Hi. ASSISTANT:"),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}], "Be brief. USER: Hi. ASSISTANT:"),
    ],
)
def test_token_ids_are_the_official_ones(folder, processor, turns, prompt):
    tokenizer = load_tokenizer(folder.parent / "src")
    turns = json.loads(json.dumps(turns))
    for turn in turns:
        for part in turn["content"] if isinstance(turn["content"], list) else []:
            if part["type"] == "image":
                part["image"] = Image.new("RGB", (30, 20))
    made = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert made["input_ids"][0].tolist() == as_official(tokenizer, prompt)
    assert processor.tokenizer.padding_side == "left"


def test_the_predictors_say_with_which_ids_a_user_s_turn_begins(folder, processor):
    turn = read_config(str(folder / "predictors")).turn
    assert "".join(processor.tokenizer.convert_ids_to_tokens(list(turn))) == "USER:"
    text = processor.apply_chat_template(BOTH, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text)["input_ids"]
    begins = [at for at in range(len(ids)) if tuple(ids[at : at + len(turn)]) == turn]
    assert ids[begins[-1] - 1] == processor.tokenizer.eos_token_id, "the second question's"


def test_pictures_are_padded_to_squares_with_the_mean_colour(processor):
    """As LLaVA 1.5: the middle of a square of CLIP's mean, then resized; a crop would lose the sides."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 3), dtype=np.uint8)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    square = Image.new("RGB", (48, 48), tuple(int(255 * part) for part in mean))
    square.paste(Image.fromarray(noise), (0, 18))
    small = np.asarray(square.resize((24, 24), Image.Resampling.BICUBIC)) / 255
    expected = torch.tensor((small - mean) / std).permute(2, 0, 1).float()
    pixels = processor.image_processor(images=Image.fromarray(noise), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_pictures_are_cropped_where_the_model_was_trained_on_crops(tmp_path):
    source = official.write(tmp_path / "src", official.weights(), official.config(image_aspect_ratio=None))
    made = convert_dynamic_llava(str(source), tmp_path / "dst")
    assert not AutoProcessor.from_pretrained(made.folder).image_processor.do_pad


def test_a_sentencepiece_model_gives_the_same_ids_and_travels_both_ways(tmp_path):
    import sentencepiece

    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    config = {"add_bos_token": True, "legacy": False, "tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 700
    save_processor(tokenizer, tmp_path / "out", 24, 4, True)
    made = AutoProcessor.from_pretrained(tmp_path / "out")
    ids = made.apply_chat_template(BOTH, add_generation_prompt=True, tokenize=False)
    found = made.tokenizer(ids).input_ids
    begin = [1, *pieces.encode(SYSTEM + "USER: "), 700, *pieces.encode("\nWhat is it? ASSISTANT: A cat."), 2]
    assert found[: len(begin)] == begin
    assert "".join(made.tokenizer.convert_ids_to_tokens(found[len(begin) :])) == "USER:\u2581Why?\u2581ASSISTANT:"
