from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor

from foveate.demo.evaluation import conversation as chat
from foveate.demo.packing import IMAGE_TOKEN, Packer, pixel_batch
from foveate.demo.samples import KINDS, make_sample


def conversation(text: str, image: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def encode(processor: Any, text: str, image: Any) -> Any:
    return processor.apply_chat_template(
        conversation(text, image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_a_saved_processor_loads_and_encodes_the_same(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(make_sample("test", 1, 0).pixels()[0])
    before, after = (encode(p, "what color is the star?", image) for p in (processor, loaded))
    assert torch.equal(before["input_ids"], after["input_ids"])
    assert torch.equal(before["pixel_values"], after["pixel_values"])


def test_a_picture_becomes_144_visual_tokens_whatever_its_size(processor: Any) -> None:
    for size in ((96, 96), (150, 120), (60, 40)):
        inputs = encode(processor, "what do you see?", Image.new("RGB", size, (90, 90, 90)))
        image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        assert int((inputs["input_ids"] == image_id).sum()) == 144
        assert inputs["pixel_values"].shape == (1, 3, 96, 96)


def test_training_pixels_equal_the_processor_s(processor: Any) -> None:
    sample = make_sample("test", 1, 3)
    inputs = encode(processor, "what do you see?", Image.fromarray(sample.pixels()[0]))
    torch.testing.assert_close(inputs["pixel_values"], pixel_batch([sample], 96))


def test_any_text_survives_the_tokenizer_in_lower_case(processor: Any) -> None:
    for text in (" there are 12 objects.", " what is the value of the purple bar?", " Ein Käfer, a π and a kitchen."):
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids) == text.lower()


def test_a_system_turn_is_skipped(processor: Any) -> None:
    turns = conversation("what do you see?", None)
    system = {"role": "system", "content": "be brief"}
    plain = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert processor.apply_chat_template([system, *turns], add_generation_prompt=True) == plain
    assert plain == "<s><|user|><image> what do you see?<|assistant|>"


def test_a_packed_row_equals_the_chat_template(processor: Any) -> None:
    """For one, two and four pictures, and for a second turn."""
    asked = [(make_sample("test", 1, 3, kind=kind), None) for kind in KINDS]
    dialogue = next(s for s in (make_sample("test", 1, i) for i in range(99)) if s.long_questions[-1].earlier)
    asked.append((dialogue, dialogue.long_questions[-1]))
    for sample, question in asked:
        question = question or sample.questions[0]
        alone = replace(sample, questions=(question,), long_questions=())
        batch = Packer(processor).pack([alone])
        single = processor.apply_chat_template(
            chat(sample, question), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )["input_ids"][0]
        assert torch.equal(batch.input_ids[0, : len(single)], single)
        assert batch.is_graded[0].nonzero()[0, 0] == len(single)
        assert batch.prefix == 2 + 144 * len(sample.pictures)
