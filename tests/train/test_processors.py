"""The collator with other families' real processors, which write row breaks, tiles and brackets around a picture."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.train.collator import IGNORED, ChatCollator
from tests.families.processors import image, image_processor
from tests.train.test_collator import answers

TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tokenizer(**special: str) -> Any:
    """A tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<pad>", "<|start|>", "<|end|>", *special.values()]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate([*names, *letters])}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=special)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]}, replace_extra_special_tokens=False)
    return made


def build(name: str) -> tuple[Any, str]:
    """A processor and what its template writes for a picture."""
    if name == "llava_next":
        from transformers import LlavaNextProcessor

        size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "image_grid_pinpoints": [[28, 56]]}
        pixels = image_processor(name, name, "LlavaNextImageProcessorPil", **size)
        words = tokenizer(image_token="<image>")
        options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return LlavaNextProcessor(pixels, words, **options), "<image>"
    if name == "gemma3":
        from transformers import Gemma3Processor

        pixels = image_processor(name, name, "Gemma3ImageProcessorPil", size={"height": 28, "width": 28})
        words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
        return Gemma3Processor(pixels, words, image_seq_length=4), "<boi>"
    from transformers import Idefics3Processor

    pixels = image_processor(
        name, name, "Idefics3ImageProcessorPil", max_image_size={"longest_edge": 28}, size={"longest_edge": 56}
    )
    return Idefics3Processor(pixels, tokenizer(), image_seq_len=4), "<image>"


def row(*turns: str, pictures: tuple[int, ...]) -> list[dict[str, Any]]:
    messages = []
    for number, text in enumerate(turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if number in pictures:
            content.insert(0, {"type": "image", "image": image(60, 30 + 10 * number)})
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return messages


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "idefics3"])
def test_labels_are_found_behind_whatever_a_picture_becomes(name):
    processor, picture = build(name)
    processor.chat_template = TEMPLATE.replace("PICTURE", picture)
    batch = ChatCollator(processor, [processor.image_token_id])(
        [
            row("what?", "a red star", "and now?", "two\nlines", pictures=(0,)),
            row("what?", "one", "and this?", "another", pictures=(0, 2)),
            row("what?", "no picture", pictures=()),
        ]
    )
    expected = ["a red star<|end|>two\nlines<|end|>", "one<|end|>another<|end|>", "no picture<|end|>"]
    assert answers(processor, batch) == expected
    visual = batch["input_ids"] == processor.image_token_id
    assert (visual.sum(1) > 0).tolist() == [True, True, False]
    assert not ((batch["labels"] != IGNORED) & visual).any()
