"""Stages in the middle of an encoder block: against the two halves of each block run by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.plan import Plan
from foveate.engine.attachment import Attachment
from foveate.errors import PlanError, UnsupportedCombination
from foveate.recipes.illava import Illava
from foveate.spec import from_json, parse, to_json
from tests import tiny
from tests.engine.test_encoder import LOGITS, case_of
from tests.oracles.row_encoder import Case, stage_of
from tests.spies import settled_state, state_of

PLANS = (
    "illava_v1(site=vision, layer=1, point=mid, keep=0.5)",
    "illava_v2(site=vision, layer=2, point=mid, keep=0.4, recycle=0.3)",
    "partition(site=vision, layer=1, point=mid, keep=0.6) | partition(site=vision, layer=2, keep=0.7) "
    "| tome(site=vision, layer=3, point=mid, keep=0.5)",
    "random(site=vision, layer=2, point=mid, keep=0.5) | fastv(layer=2, keep=0.5)",
)
NAMES = ("clip", "clip-several", "siglip", "paligemma", "gemma3", "idefics3", "aya_vision", "cohere2_vision", "ovis2")


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], Case]:
    return {}


def by_hand(case: Case, hidden: Tensor, media: list[Any], texts: list[str]) -> list[Tensor]:
    """What leaves each used block, [P, prefix + n, D], by the textbook: the merges are the trace's, everything else is not.

    `hidden` is what enters the first block.
    """
    tower = case.model.get_submodule(case.path.towers[0])
    sequences = [(entry, piece) for entry in media for piece in range(len(entry.medium.shape.pieces))]
    count = len(case.units)
    stages = {int(text.partition("layer=")[2].partition(",")[0]): (number, text) for number, text in enumerate(texts)}
    prefix, out = case.path.prefix, []

    def merged(states: Tensor, number: int) -> Tensor:
        rows = []
        for row, (entry, piece) in enumerate(sequences):
            kept, own, arriving = stage_of(entry, number)
            here, there = kept // count == piece, arriving // count == piece
            kept, own, arriving = kept[here] % count, own[here][:, there], arriving[there] % count
            before, after = (case.units[left].flatten().argsort() for left in (arriving, kept))
            by_unit = states[row, prefix:][before.argsort()].view(len(arriving), -1)
            rows.append(torch.cat([states[row, :prefix], (own @ by_unit).view(len(after), -1)[after]]))
        return torch.stack(rows)

    for index, layer in enumerate(tower.encoder.layers[: case.path.used]):
        if index in stages and "point=mid" not in stages[index][1]:
            hidden = merged(hidden, stages[index][0])
        norm, attention = layer.get_submodule(case.path.middle[0].replace("2", "1")), layer.get_submodule(case.path.attention)
        hidden = hidden + attention(norm(hidden), attention_mask=None)[0]
        if index + 1 in stages and "point=mid" in stages[index + 1][1]:
            hidden = merged(hidden, stages[index + 1][0])
        norm, mlp = map(layer.get_submodule, case.path.middle)
        hidden = hidden + mlp(norm(hidden))
        out.append(hidden)
    return out


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS)
def test_b_g_blocks_equal_their_halves_by_hand(cases, plan, name, backend):
    case = case_of(cases, name, backend)
    tower = case.model.get_submodule(case.path.towers[0])
    seen: list[Tensor] = []
    first: list[Tensor] = []
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        handles = [layer.register_forward_hook(lambda _, args, out: seen.append(out)) for layer in tower.encoder.layers]
        handles.append(tower.encoder.layers[0].register_forward_pre_hook(lambda _, args: first.append(args[0])))
        logits = case.model(**case.inputs).logits
        media = attachment.trace.media
    for handle in handles:
        handle.remove()
    texts = [text for text, _ in media[0].stages if "site=vision" in text]
    assert len(texts) == plan.count("site=vision")
    with torch.no_grad():
        expected = by_hand(case, first[0], media, texts)
    assert not logits.isnan().any()
    for found, hand in zip(seen, expected, strict=False):
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(found, hand, atol=LOGITS, rtol=0)
    assert seen[-1].shape[1] < case.path.prefix + case.path.patches


@pytest.mark.pairs
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_merging_nothing_is_bit_identical(cases, name, shortcut):
    case = case_of(cases, name, "sdpa")
    plan = parse("random(site=vision, layer=1, point=mid, keep=100%) | tome(site=vision, layer=2, point=mid, keep=100%)")
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=shortcut):
        kept = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_c_d_rows_alone_and_without_a_cache(cases, name):
    case = case_of(cases, name, "sdpa")
    with foveate.attach(case.model, PLANS[2]):
        together = tiny.generate(case.model, case.inputs)
        assert tiny.greatest_difference(together, tiny.generate(case.model, case.inputs, use_cache=False)) < LOGITS
        for number, row in enumerate(case.rows):
            alone = tiny.generate(case.model, case.maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


def test_f_detaching_leaves_no_trace(cases):
    case = case_of(cases, "clip", "sdpa")
    before = settled_state(case.model, case.inputs)
    with foveate.attach(case.model, PLANS[0]):
        tiny.generate(case.model, case.inputs)
    assert state_of(case.model) == before


def test_the_mlp_in_between_is_counted_at_its_length():
    before, middle = (
        foveate.estimate("llava-1.5-7b", f"illava_v1(site=vision, layer=6, {point}keep=288)", visual_tokens=576).encoder_flops
        for point in ("", "point=mid, ")
    )
    assert before is not None and middle is not None
    assert before.plan - middle.plan == 2 * 288 * 2 * 1024 * 4096  # 288 tokens less pass one MLP of two matrices


def test_the_recipe_takes_the_authors_place_and_the_text_reads_back():
    plan = Plan(Illava(preset="onevision-image", point="mid").expand())
    assert all("point=mid" in str(plan).split(" | ")[number] for number in range(4))
    assert parse(str(plan)) == plan and from_json(to_json(plan)) == plan


def test_places_that_have_no_middle_are_refused():
    with pytest.raises(PlanError, match="point=mid is the middle of the encoder block below"):
        parse("random(site=vision, layer=0, point=mid, keep=0.5)")
    with pytest.raises(PlanError, match="point=mid is the middle"):
        parse("fastv(layer=2, point=mid, keep=0.5)")
    for family in ("internvl", "qwen2_5_vl"):
        with pytest.raises(UnsupportedCombination, match="are not split between attention and MLP"):
            foveate.attach(tiny.tiny_model(family), "random(site=vision, layer=1, point=mid, keep=0.5)")
