"""Without a KV cache the vision encoder runs once in an answer, and every bit is as if it had run at every step.

Transformers hands pixels to every such step before 5.18, and encodes beforehand since; where it does, a test makes it hand them
over as it did, so that what the plan's hooks remember is tried here too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

import foveate
from foveate import families
from foveate.engine import compat, conversation
from foveate.errors import AttachError
from tests import tiny
from tests.spies import state_of

STEPS = 4
TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "video_tower")
EMBEDDER = "embed_vision"  # where there is no encoder
GATED = "fastv(layer={l}, keep=0.5) | random_gate(layer={l}, keep=0.5, recent=0)"
ENCODER = "random(site=vision, layer=1, keep=0.5) | fastv(layer={l}, keep=0.5)"
PLANS = (
    GATED,
    "random(site=pre_llm, keep=100%)",
    "random(site=pre_llm, keep=0.7) | fastv(layer={l}, keep=0.5)",
    "random_gate(layer={l}, keep=0.5, recent=0)",
    ENCODER,
    "partition(site=vision, layer={v}, keep=0.5) | random_gate(layer={l}, keep=0.5, recent=0)",
)
Hand = Callable[..., None]


def serves(family: str, plan: str) -> bool:
    found = families.get(family)
    return "site=vision" not in plan or found.encoder(found.tiny_config()) is not None


CASES = [
    (family, plan, side)
    for family in tiny.ALL_FAMILIES
    for plan in PLANS
    for side in (("left", "right") if plan in (GATED, ENCODER) else ("left",))
    if serves(family, plan)
]


@pytest.fixture
def hand_pixels(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """Makes transformers hand pixels to every pass without a cache; `remembered` says whether a plan may remember features."""

    def hand(model: nn.Module, remembered: bool) -> None:
        if hasattr(model, "_supports_mm_encoder_outputs"):
            monkeypatch.setattr(type(model), "_supports_mm_encoder_outputs", lambda self: False)
        monkeypatch.setattr(compat, "encodes_beforehand", lambda model: not remembered)

    return hand


@contextmanager
def tower_calls(model: nn.Module) -> Iterator[list[str]]:
    """The names of the vision encoders that run."""
    base = model.get_submodule(families.family_for(model.config).base)
    children, calls = dict(base.named_children()), []
    found = {name: child for name, child in children.items() if name in TOWERS} or {EMBEDDER: children[EMBEDDER]}
    handles = [child.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, child in found.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def plan_for(family: str, plan: str) -> str:
    return plan.format(l=tiny.FIRST_LAYER[family], v=tiny.encoder_layer(family))


def prompts(family: str, batch: int = 3, side: str = "left", seed: int = 1) -> dict[str, Tensor]:
    maker = tiny.Maker(family, seed)
    return maker.inputs(tiny.ragged_rows(maker, batch), side)


def pixels_of(inputs: dict[str, Tensor]) -> Tensor:
    return next(value for name, value in inputs.items() if name.startswith("pixel_values"))


def answer(model: nn.Module, inputs: dict[str, Tensor], plan: str, **options: Any) -> tuple[Any, list[str], list[Any]]:
    """An answer under a plan, the encoders that ran for it, and what each stage kept in its last pass."""
    torch.manual_seed(0)
    with foveate.attach(model, plan) as attachment, tower_calls(model) as calls:
        found = tiny.generate(model, inputs, STEPS, use_cache=False, **options)
        kept = [entry.kept for entry in attachment.trace.media] + [list(attachment.trace.answer_kept)]
    return found, calls, kept


def check(given: tuple[Any, list[str], list[Any]], reference: tuple[Any, list[str], list[Any]], runs: int = 1) -> None:
    """The same bits, from an encoder that ran once and not at every step."""
    (found, calls, kept), (again, all_calls, kept_again) = given, reference
    assert len(calls) == runs
    assert all_calls == calls * STEPS
    assert torch.equal(found.sequences, again.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, again.logits, strict=True))
    for some, others in zip(kept, kept_again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def compare(hand: Hand, model: nn.Module, inputs: dict[str, Tensor], plan: str, runs: int = 1, **options: Any) -> None:
    """Answers by transformers' own way, by what the plan remembers, and by an encoder that runs at every step."""
    own_way = answer(model, inputs, plan, **options)
    hand(model, remembered=True)
    remembered = answer(model, inputs, plan, **options)
    hand(model, remembered=False)
    reference = answer(model, inputs, plan, **options)
    check(own_way, reference, runs)
    check(remembered, reference, runs)


@pytest.mark.pairs
@pytest.mark.parametrize(("family", "plan", "side"), CASES)
def test_the_encoder_runs_once_and_every_bit_is_as_if_it_ran_at_every_step(model_of, hand_pixels, family, plan, side):
    compare(hand_pixels, model_of(family), prompts(family, 3, side), plan_for(family, plan))


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("family", "plan"),
    [(family, plan) for family in tiny.VIDEO_FAMILIES for plan in (PLANS[2], ENCODER) if serves(family, plan)],
)
def test_videos_and_images_are_encoded_once_each(model_of, hand_pixels, family, plan):
    maker = tiny.Maker(family)
    both = "video" in families.get(family).placeholders  # else frames and images have one placeholder
    beside = [maker.picture(1)] if both else []
    rows = [
        tiny.Row([maker.text(4), maker.picture(0, "video"), maker.text(3), *beside, maker.text(5)]),
        tiny.Row([maker.picture(1, "video"), maker.text(6)]),
    ]
    compare(hand_pixels, model_of(family), maker.inputs(rows), plan_for(family, plan), runs=1 + both)


@pytest.mark.parametrize("options", [dict(num_beams=3), dict(do_sample=True, num_return_sequences=2)], ids=["beams", "sampled"])
def test_rows_of_one_sample_share_what_is_remembered(model_of, hand_pixels, options):
    maker = tiny.Maker("llava")
    rows = [tiny.Row([maker.text(length), maker.picture(), maker.text(4)]) for length in (3, 6)]
    compare(hand_pixels, model_of("llava"), maker.inputs(rows), GATED.format(l=2), **options)


def test_no_answer_sees_the_picture_of_another(model_of, hand_pixels):
    model, first, second = model_of("llava"), prompts("llava"), prompts("llava", seed=2)
    second = {**first, "pixel_values": second["pixel_values"]}
    hand_pixels(model, remembered=False)
    expected = [answer(model, inputs, ENCODER.format(l=2))[0] for inputs in (first, second)]
    assert not torch.equal(expected[0].logits[0], expected[1].logits[0])
    hand_pixels(model, remembered=True)
    given = {**first, "pixel_values": first["pixel_values"].clone()}
    with foveate.attach(model, ENCODER.format(l=2)), tower_calls(model) as calls:
        found = [tiny.generate(model, given, STEPS, use_cache=False)]
        given["pixel_values"].copy_(second["pixel_values"])  # the same object
        found += [tiny.generate(model, given, STEPS, use_cache=False), tiny.generate(model, first, STEPS, use_cache=False)]
    assert len(calls) == 3
    for some, others in zip(found, (*expected, expected[0]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some.logits, others.logits, strict=True))


class Between(LogitsProcessor):
    """Calls a function between two steps, with the number of the step."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call, self.steps = call, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.call(self.steps)
        self.steps += 1
        return scores


def test_a_picture_that_is_written_over_within_an_answer_is_encoded_again(model_of, hand_pixels):
    model, plan = model_of("llava"), PLANS[2].format(l=2)

    def given_way(remembered: bool, writes: bool = True) -> tuple[Any, list[str], list[Any]]:
        inputs = prompts("llava")
        write = Between(lambda step: pixels_of(inputs).mul_(-1) if step == 1 and writes else None)
        hand_pixels(model, remembered)
        return answer(model, inputs, plan, logits_processor=LogitsProcessorList([write]))

    (found, calls, _), (expected, _, _) = given_way(True), given_way(False)
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    assert not torch.equal(found.logits[2], given_way(True, writes=False)[0].logits[2])


@pytest.mark.parametrize("use_cache", [False, True])
def test_the_rows_of_the_prompt_are_all_that_is_held_and_only_without_a_cache(model_of, hand_pixels, use_cache):
    model, inputs, held = model_of("llava"), prompts("llava"), []
    hand_pixels(model, remembered=True)
    with foveate.attach(model, GATED.format(l=2)) as attachment:

        def look(step: int) -> None:
            held.append(
                [features.output for features in conversation.open_conversation(attachment).encodings.features.values()]
            )

        tiny.generate(model, inputs, STEPS, use_cache=use_cache, logits_processor=LogitsProcessorList([Between(look)]))
        assert attachment.last.encodings.features == {}
        wrong = LogitsProcessorList([Between(lambda step: 1 / 0)])
        with pytest.raises(ZeroDivisionError):
            tiny.generate(model, inputs, STEPS, use_cache=use_cache, logits_processor=wrong)
        assert attachment.last.encodings.features == {}
    if use_cache:
        assert held == [[]] * STEPS
        return
    (output,) = held[0]
    values = {name: value for name, value in vars(output).items() if value is not None}
    visual = int((inputs["input_ids"] == tiny.IMAGE).sum())
    assert list(values) == ["pooler_output"]
    assert sum(rows.numel() for rows in values["pooler_output"]) == visual * model.config.text_config.hidden_size
    assert all(step == [output] for step in held)


def test_bare_calls_encode_what_they_are_given(model_of, hand_pixels):
    # Between them weights, adapters and the plan may change, which no tensor would say.
    model, inputs = model_of("llava"), prompts("llava")
    hand_pixels(model, remembered=True)
    with torch.no_grad(), foveate.attach(model, GATED.format(l=2)) as attachment, tower_calls(model) as calls:
        model(**inputs, use_cache=False)
        with attachment.conversation() as talk:
            model(**inputs, use_cache=False)
            model(**inputs, use_cache=False)
        assert talk.encodings.features == {}
    assert len(calls) == 3


def test_asking_for_features_between_two_steps_is_answered_in_full(model_of, hand_pixels):
    model, inputs, asked = model_of("llava"), prompts("llava"), []
    hand_pixels(model, remembered=True)

    def ask(step: int) -> None:
        asked.append(model.get_image_features(pixel_values=inputs["pixel_values"]))

    with foveate.attach(model, GATED.format(l=2)), tower_calls(model) as calls:
        tiny.generate(model, inputs, 2, use_cache=False, logits_processor=LogitsProcessorList([Between(ask)]))
    assert len(calls) == 1 + 2
    assert all(output.last_hidden_state is not None for output in asked)


def test_nothing_is_left_on_the_model(hand_pixels):
    model, inputs = tiny.tiny_model("llava"), prompts("llava")
    tiny.generate(model, inputs, 1)
    before, own = state_of(model), model.model.get_image_features
    hand_pixels(model, remembered=True)
    with foveate.attach(model, GATED.format(l=2)) as attachment:
        assert vars(model.model)["get_image_features"].__doc__ == own.__doc__
        for part in (model, model.model):
            with pytest.raises(AttachError, match="detach it before copying"):
                copy.deepcopy(part)
        with attachment.disabled():
            assert state_of(model) == before
            copy.deepcopy(model)
    assert state_of(model) == before
    model.model.get_image_features = own  # somebody else's, on the instance
    with foveate.attach(model, GATED.format(l=2)):
        assert vars(model.model)["get_image_features"] is not own
        tiny.generate(model, inputs, 2, use_cache=False)
    assert vars(model.model)["get_image_features"] is own


def test_models_that_transformers_encodes_for_beforehand_are_left_alone(model_of):
    model = model_of("llava")
    with foveate.attach(model, GATED.format(l=2)):
        assert ("get_image_features" in vars(model.model)) != compat.encodes_beforehand(model)
