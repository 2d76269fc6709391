"""Labels stand on what the assistant says and nowhere else, in every template and mix of rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image

from demo_model.processor import build_processor
from foveate.errors import InputError
from foveate.train.collator import IGNORED, ChatCollator

PICTURES = "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
TEXTS = "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}"
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    f"{PICTURES}"
    "{% if message['role'] == 'assistant' %}"
    f"{{% generation %}}{TEXTS}{{{{ '<|end|>' }}}}{{% endgeneration %}}"
    f"{{% else %}}{TEXTS}{{% endif %}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FORGETFUL = "{{ bos_token }}{{ '<|user|> ' + messages[-1]['content'][0]['text'] + '<|assistant|>' }}"


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(0, 100)


def row(*turns: str, pictures: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Questions and answers in turns, with a picture in the turns of these numbers."""
    messages = []
    for number, text in enumerate(turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if number in pictures:
            content.insert(0, {"type": "image", "image": Image.new("RGB", (96, 96), "blue")})
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return messages


def collator(processor: Any, length: int = 2048) -> ChatCollator:
    return ChatCollator(processor, [processor.image_token_id], length)


def answers(processor: Any, batch: dict[str, torch.Tensor]) -> list[str]:
    return [processor.tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]]


ROWS = [
    row("what color is the star?", "red", pictures=(0,)),
    row("hello", "a long answer with many words", "and?", "blue 12"),
    row("first?", "one", "second?", "two", pictures=(0, 2)),
]
EXPECTED = [" red<|end|>", " a long answer with many words<|end|> blue 12<|end|>", " one<|end|> two<|end|>"]


@pytest.mark.parametrize("template", [None, MARKED])
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_the_answers_and_their_ends(processor, template, side):
    processor = copy.deepcopy(processor)
    processor.tokenizer.padding_side = side
    processor.chat_template = template or processor.chat_template
    batch = collator(processor)(ROWS)
    assert answers(processor, batch) == EXPECTED
    on = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][on], batch["input_ids"][on])
    assert not on[batch["attention_mask"] == 0].any()
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 3 * 144
    assert batch["pixel_values"].shape[0] == 3


def test_a_batch_holds_what_its_rows_hold_alone(processor):
    together = collator(processor)(ROWS)
    for number, alone in enumerate(ROWS):
        single = collator(processor)([alone])
        real = together["attention_mask"][number].bool()
        for name in ("input_ids", "labels"):
            assert torch.equal(together[name][number][real], single[name][0])


def test_a_batch_without_pictures_has_no_pixels(processor):
    batch = collator(processor)([ROWS[1]])
    assert "pixel_values" not in batch
    assert answers(processor, batch) == EXPECTED[1:2]


def test_long_rows_lose_the_end_of_their_answers(processor):
    whole = collator(processor)(ROWS[:2])
    length = int(whole["attention_mask"].sum(1).max()) - 1
    cut = collator(processor, length)(ROWS[:2])
    assert cut["input_ids"].shape[1] == length
    assert answers(processor, cut) == [" red", EXPECTED[1]]
    assert torch.equal(
        cut["input_ids"] == processor.image_token_id, (whole["input_ids"] == processor.image_token_id)[:, :length]
    )


@pytest.mark.parametrize(
    ("length", "said"), [(100, "a picture reaches beyond column 100"), (150, "no answer of a batch begins")]
)
def test_what_cannot_be_cut_is_refused(processor, length, said):
    with pytest.raises(InputError, match=said):
        collator(processor, length)(ROWS[:1])


def test_templates_that_hide_answers_are_refused(processor):
    processor = copy.deepcopy(processor)
    processor.chat_template = FORGETFUL
    with pytest.raises(InputError, match="changes earlier turns"):
        collator(processor)([ROWS[1]])
    processor.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        collator(processor)
