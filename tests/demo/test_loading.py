from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate.demo import loading
from foveate.demo.evaluation import generate_answers
from foveate.demo.forced import correct_answers
from foveate.demo.loading import MODEL_FOLDER, example_pictures, load_demo
from foveate.demo.packing import Packer
from foveate.demo.questions import SINGLE_TASKS
from foveate.demo.samples import KINDS, make_sample
from foveate.errors import FoveateError

SIZE_LIMIT_BYTES = 30_000_000


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load_demo()


def test_missing_weights_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="name a folder"):
        load_demo(tmp_path)


def test_missing_pictures_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PICTURES_FOLDER", tmp_path)
    with pytest.raises(FoveateError, match="example pictures"):
        example_pictures()


def test_the_shipped_model_is_a_small_plain_llava(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.dtype == torch.float32
    assert not model.training
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size < SIZE_LIMIT_BYTES
    assert json.loads((MODEL_FOLDER / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.full
def test_one_teacher_forced_pass_decides_like_generate(demo: tuple[Any, Any]) -> None:
    """For one, two and four pictures, short and long answers, one turn and two."""
    model, processor = demo
    for kind in KINDS:
        samples = [make_sample("test", 5, index, kind=kind) for index in range(2, 5)]
        batch = Packer(processor).pack(samples, [sample.long_questions for sample in samples])
        forced = [flag for row in correct_answers(model, batch) for flag in row]
        asked = [(sample, question) for sample, row in zip(samples, batch.questions, strict=True) for question in row]
        written = generate_answers(model, processor, asked, 130)
        assert [answer == question.answer for answer, (_, question) in zip(written, asked, strict=True)] == forced


def test_the_shipped_model_answers_its_example_pictures(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    examples = example_pictures()
    assert [example.name for example in examples] == list(SINGLE_TASKS)
    for example in examples:
        content = [{"type": "image", "image": Image.open(example.path)}, {"type": "text", "text": example.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert answer == example.answer
