from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_model.growth import POSITIONS, WORDS, grow
from demo_model.model import DemoModelConfig, build_model
from demo_model.processor import build_processor
from foveate.demo.forced import correct_answers
from foveate.demo.loading import MODEL_FOLDER, load_demo
from foveate.demo.packing import Packer
from foveate.demo.samples import make_sample
from foveate.errors import InputError


def test_at_the_old_size_a_grown_model_answers_as_before() -> None:
    small, processor = load_demo()
    words = build_processor(1, 200, detailed=True)
    model = build_model(words.tokenizer, DemoModelConfig())
    grow(model, words.tokenizer, MODEL_FOLDER)
    samples = [make_sample("test", 1, index) for index in range(4)]
    before = correct_answers(small, Packer(processor).pack(samples))
    after = correct_answers(model, Packer(words).pack(samples))
    assert sum(map(sum, before)) > 20
    changed = sum(a != b for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True))
    assert changed <= 2  # new words are written with other pieces


def test_positions_are_interpolated_and_words_keep_their_vectors() -> None:
    small, processor = load_demo()
    words = build_processor(1, 200, side=192, detailed=True)
    model = build_model(words.tokenizer, DemoModelConfig(picture_pixels=192))
    grow(model, words.tokenizer, MODEL_FOLDER)
    table = model.model.state_dict()[POSITIONS]
    assert table.shape == (1 + 24 * 24, 128)
    old = small.model.state_dict()[POSITIONS]
    torch.testing.assert_close(table[0], old[0])
    # A patch of the old grid is the mean of four.
    field = table[1:].T.reshape(128, 12, 2, 12, 2).mean((2, 4)).flatten(1).T
    assert torch.nn.functional.cosine_similarity(field, old[1:]).min() > 0.9
    red = (words.tokenizer.convert_tokens_to_ids("\u0120red"), processor.tokenizer.convert_tokens_to_ids("\u0120red"))
    torch.testing.assert_close(model.model.state_dict()[WORDS][red[0]], small.model.state_dict()[WORDS][red[1]])


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    words = build_processor(1, 200)
    with pytest.raises(InputError, match="no demo weights"):
        grow(build_model(words.tokenizer), words.tokenizer, tmp_path)
