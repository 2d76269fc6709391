"""Which instruction is judged where there are several turns: the last user's, in one prompt and on a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import foveate
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import SpecError
from tests import tiny
from tests.marks import one_and_more
from tests.oracles.dense_reference import dense_reference
from tests.oracles.dynamic import dynamic_instruct_kept
from tests.trained import random_predictors, states_entering

LOGITS = 2e-4  # as the oracles of decoder stages
MARKER = torch.tensor([81, 82, 83])  # the maker's texts do not hold these
LAYER = 2
KNOWN, UNKNOWN = f", turn={MARKER.tolist()}", ""


def plan(path: str, more: str = KNOWN) -> str:
    return f"dynamic_instruct(path='{path}', layer={LAYER}, keep=threshold:0.5{more})"


@pytest.fixture(scope="module")
def path(model_of, tmp_path_factory) -> str:
    model, inputs, folder = model_of("llava"), two_turns(), tmp_path_factory.mktemp("instruct")
    judged = judged_rows(inputs["input_ids"].shape[1], LAST_TURN)
    for seed in range(30):  # random predictors may drop all of a row, or nothing
        own, _ = random_predictors(folder, model, seed=seed, inputs=inputs, layer=LAYER, instruct_keep=0.5)
        first, second, _ = drops_of_twin(model, own, inputs, judged)
        if 2 < len(first) < 8 and 2 < len(second) < 8:
            break
    return own


def two_turns() -> dict[str, Tensor]:
    """Rows of unequal length on the left: a picture and a question, the answer, the marker and a second question. In the second
    row the picture belongs to the second turn; the third has none.
    """
    maker = tiny.Maker("llava")
    rows = [
        tiny.Row([maker.text(5), maker.picture(), maker.text(9), MARKER, maker.text(8)]),
        tiny.Row([maker.text(3), MARKER, maker.text(4), MARKER, maker.picture(), maker.text(11)]),
        tiny.Row([maker.text(12), MARKER, maker.text(6)]),
    ]
    return maker.inputs(rows)


# Columns from the end at which the instruction of each row begins: with the marker, and where none is known.
LAST_TURN, BEHIND_PICTURES = (11, 11, None), (20, 11, None)


def judged_rows(width: int, starts: tuple[int | None, ...]) -> list[range]:
    """All columns from the start on but for the last."""
    return [range(0) if start is None else range(width - start, width - 1) for start in starts]


def placed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the positions that generate() gives, which leave padding out."""
    mask = inputs.get("attention_mask")
    return inputs if mask is None else {**inputs, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def drops_of_twin(model: Any, path: str, inputs: dict[str, Tensor], judged: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the predictor drops of these columns, in plain loops, from the states of a plain model: nothing is gone below."""
    prefix = "instruct_score_predictor."
    stored = load_file(f"{path}/predictors.safetensors")
    weights = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    states = states_entering(model, LAYER, placed(inputs))
    kept = [dynamic_instruct_kept(weights, [states[row, at] for at in columns], 0.5) for row, columns in enumerate(judged)]
    return [
        [at for at, stays in zip(columns, stay, strict=True) if not stays] for columns, stay in zip(judged, kept, strict=True)
    ]


def check_answer(model: Any, inputs: dict[str, Tensor], answer: Any, gone: list[list[int]]) -> None:
    """The answer's logits are those of a plain model that does not see the columns that are gone."""
    length = inputs["input_ids"].shape[1]
    whole = answer.sequences[:, :-1]
    extra = torch.ones(len(whole), whole.shape[1] - length, dtype=torch.long)
    alive = torch.ones_like(whole, dtype=torch.bool)
    for row, columns in enumerate(gone):
        alive[row, columns] = False
    mask = torch.cat([inputs["attention_mask"], extra], dim=1)
    with torch.no_grad(), dense_reference(model, {LAYER: alive}):
        logits = model(**placed({**inputs, "input_ids": whole, "attention_mask": mask}), use_cache=False).logits
    for step, found in enumerate(answer.logits):
        torch.testing.assert_close(found, logits[:, length - 1 + step], atol=LOGITS, rtol=0)


def dropped(attachment: foveate.Attachment) -> list[list[int]]:
    return [columns.tolist() for columns in attachment.trace.dropped_text]


@pytest.mark.parametrize("use_cache", one_and_more([True, False]))
@pytest.mark.parametrize(("more", "starts"), [(KNOWN, LAST_TURN), (UNKNOWN, BEHIND_PICTURES)])
def test_of_one_prompt_the_last_turn_is_judged(model_of, path, more, starts, use_cache):
    model, inputs = model_of("llava"), two_turns()
    expected = drops_of_twin(model, path, inputs, judged_rows(inputs["input_ids"].shape[1], starts))
    with foveate.attach(model, plan(path, more)) as attachment:
        answer = tiny.generate(model, inputs, use_cache=use_cache)
        assert dropped(attachment) == expected
    check_answer(model, inputs, answer, expected)


def test_a_row_in_a_batch_of_turns_equals_the_row_alone(model_of, path):
    model, inputs = model_of("llava"), two_turns()
    pixels = {0: inputs["pixel_values"][:1], 1: inputs["pixel_values"][1:]}
    with foveate.attach(model, plan(path)):
        together = tiny.generate(model, inputs)
        for row in range(3):
            real = inputs["attention_mask"][row].bool()
            alone = {"input_ids": inputs["input_ids"][row, real][None], "attention_mask": torch.ones(1, int(real.sum())).long()}
            answer = tiny.generate(model, alone | ({"pixel_values": pixels[row]} if row in pixels else {}))
            for step, logits in enumerate(answer.logits):
                torch.testing.assert_close(together.logits[step][row], logits[0], atol=LOGITS, rtol=0)


def second_turn(first: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole conversation and a second question for every row: of 10 columns, of 8 and two of padding, of 10."""
    maker = tiny.Maker("llava", seed=3)
    fillers = (0, 2, 0)[: len(first.sequences)]
    question = torch.stack([torch.cat([torch.full((n,), tiny.PAD), MARKER, maker.text(7 - n)]) for n in fillers])
    ids = torch.cat([first.sequences, question], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, inputs["input_ids"].shape[1] :])], dim=1)
    for row, filled in enumerate(fillers):
        mask[row, -10 : filled - 10] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", one_and_more(["static", "dynamic"]))
@pytest.mark.parametrize("more", [KNOWN, UNKNOWN])
def test_a_second_turn_on_a_cache_is_judged(model_of, path, more, kind):
    """From the marker on; without one all that is new: the first answer's last token, which was never read, too."""
    from transformers import StaticCache

    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    length = inputs["input_ids"].shape[1]
    options = {CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=140)} if kind == "static" else {}
    with foveate.attach(model, plan(path, more)) as attachment:
        first = tiny.generate(model, inputs, **options)
        gone = dropped(attachment)
        again = second_turn(first, inputs)
        answer = tiny.generate(model, again, **{CACHE: cache_in(first)})
        later = dropped(attachment)
    width = again["input_ids"].shape[1]
    judged = judged_rows(width, (11, 11, None) if more == UNKNOWN else (10, 8, None))
    judged = [[at for at in columns if again["attention_mask"][row, at]] for row, columns in enumerate(judged)]
    whole = {**again, "pixel_values": inputs["pixel_values"]}
    assert cache_in(answer).get_seq_length() == width + 5 and length + 5 == width - 11
    assert later == drops_of_twin(model, path, whole, judged)
    assert any(later[:2])
    both = [before + after for before, after in zip(gone, later, strict=True)]
    check_answer(model, whole, answer, both)


def test_a_turn_read_by_hand_on_a_cache_is_judged(model_of, path):
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])], mask=False)
    more = maker.text(9)[None]
    with torch.no_grad(), foveate.attach(model, plan(path)) as attachment:
        first = model(**inputs, use_cache=True)
        gone = dropped(attachment)
        found = model(input_ids=more, **{CACHE: cache_in(first)}).logits
        later = dropped(attachment)
    length = inputs["input_ids"].shape[1]
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
    assert later == drops_of_twin(model, path, whole, judged_rows(length + 9, (9,)))
    alive = torch.ones(1, length + 9, dtype=torch.bool)
    alive[0, gone[0] + later[0]] = False
    with torch.no_grad(), dense_reference(model, {LAYER: alive}):
        logits = model(**whole, use_cache=False).logits
    seen = alive[0, length:]
    torch.testing.assert_close(found[0][seen], logits[0, length:][seen], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("size", one_and_more([45, 50]))
def test_a_prompt_in_chunks_is_judged_as_a_whole(model_of, path, size):
    """The first chunk ends behind the picture, within the first question or within the second."""
    model, inputs = model_of("llava"), {name: value[:1] for name, value in two_turns().items()}
    inputs = {**inputs, "pixel_values": two_turns()["pixel_values"][:1]}
    real = inputs["attention_mask"][0].bool()
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, real], "attention_mask": inputs["attention_mask"][:, real]}
    with foveate.attach(model, plan(path)) as attachment:
        expected = tiny.generate(model, inputs)
        once = dropped(attachment)
        answer = tiny.generate(model, inputs, prefill_chunk_size=size)
        assert dropped(attachment) == once and once[0]
    assert tiny.greatest_difference(answer, expected) < LOGITS


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
def test_beams_of_a_second_turn_judge_the_same(model_of, path):
    model, inputs = model_of("llava"), two_turns()
    with foveate.attach(model, plan(path)):
        cached, uncached = (tiny.generate(model, inputs, num_beams=2, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)


def test_a_conversation_without_pictures_stays_whole(model_of, path):
    model, maker = model_of("llava"), tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(12)])])
    plain = tiny.generate(model, inputs)
    expected = tiny.generate(model, second_turn(plain, inputs))
    with foveate.attach(model, plan(path)):
        first = tiny.generate(model, inputs)
        answer = tiny.generate(model, second_turn(first, inputs), **{CACHE: cache_in(first)})
    assert torch.equal(answer.sequences, expected.sequences)
    assert tiny.greatest_difference(answer, expected) < LOGITS


def test_predictors_say_how_a_turn_begins(model_of, tmp_path):
    model, inputs = model_of("llava"), two_turns()
    options = dict(inputs=inputs, layer=LAYER, instruct_keep=0.5, turn=tuple(MARKER.tolist()))
    own, _ = random_predictors(tmp_path, model, **options)
    expected = drops_of_twin(model, own, inputs, judged_rows(inputs["input_ids"].shape[1], LAST_TURN))
    with foveate.attach(model, f"dynamic_llava(path='{own}', image=off, text=off, instruct=on)") as attachment:
        tiny.generate(model, inputs, tokens=1)
        assert dropped(attachment) == expected
    with pytest.raises(SpecError, match="token ids are never negative"):
        foveate.attach(model, plan(own, ", turn=[-1]"))
