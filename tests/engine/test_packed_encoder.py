"""Stages inside encoders that pack pictures into one sequence: against the same encoder at full length, with masked keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

import foveate
from foveate.core.view import TokenView
from foveate.engine import choosing
from foveate.engine.attachment import Attachment
from foveate.errors import PlanError, UnsupportedCombination
from foveate.spec import parse
from tests import examples, tiny
from tests.oracles.dense_reference import dense_reference
from tests.oracles.packed_encoder import Case, alive_columns

LOGITS = 2e-4
FAMILIES = tuple(family for family in tiny.ALL_FAMILIES if tiny.packs(family))
KINDS = [(family, kind) for family in FAMILIES for kind in ("image", "video")[: 1 + (family in tiny.VIDEO_FAMILIES)]]
near_first = [pytest.param(name, marks=[] if name in tiny.FAMILIES else pytest.mark.full) for name in FAMILIES]
# Qwen2.5-VL looks at the whole picture in layers 1 and 3 only.
PLANS = (
    "illava_v1(site=vision, layer=2, keep=0.5)",
    "illava_v2(site=vision, layer=2, keep=0.4, recycle=0.5)",
    "random(site=vision, layer=1, keep=0.6) | tome(site=vision, layer=3, keep=0.5)",
    "partition(site=vision, layer=2, keep=0.6) | fastv(layer=3, keep=0.5)",
    "uniform(site=vision, layer=0, keep=0.5)",
    "random(site=vision, layer=1, keep=0.6) | illava_v1(site=vision, layer=2, keep=0.5)",
)
BY_PIXELS = (
    "pixelprune(site=vision, layer=0, keep=0.5)",
    "pixelprune(site=vision, layer=0, keep=threshold:0.8) | tome(site=vision, layer=2, keep=0.6)",
)
CASES = [(family, kind, plan) for family, kind in KINDS for plan in (*PLANS, *BY_PIXELS) if examples.fits(plan, family)]


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str, str], Case]:
    return {}


def case_of(cases: dict[tuple[str, str, str], Case], *key: str) -> Case:
    if key not in cases:
        cases[key] = Case(*key)
    return cases[key]


@pytest.mark.pairs
@pytest.mark.parametrize(("family", "kind", "plan"), CASES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_b_g_a_shorter_encoder_equals_a_masked_one(cases, plan, family, backend, kind):
    case = case_of(cases, family, backend, kind)
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        pruned = case.model(**case.inputs).logits
        trace = attachment.trace
        answer = tiny.generate(case.model, case.inputs)
    assert len(trace.media[0].stages) == plan.count("(")
    texts = [text for text, _ in trace.media[0].stages if "site=vision" in text]
    alive = alive_columns(case, trace)
    with torch.no_grad(), case.dense(trace, texts), dense_reference(case.model, alive):
        reference = case.model(**case.inputs).logits
    everywhere = case.inputs["attention_mask"].bool()
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not pruned.isnan().any()
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert float((answer.logits[0] - reference[:, -1]).abs().max()) < LOGITS


@pytest.mark.parametrize("family", near_first)
def test_the_named_ratio_is_the_one_that_comes_out(cases, family):
    case = case_of(cases, family, "sdpa", "video")
    with torch.no_grad(), foveate.attach(case.model, "illava_v1(site=vision, layer=2, keep=0.5)") as attachment:
        case.model(**case.inputs)
        for entry in attachment.trace.media:
            t, h, w = entry.medium.shape.grid
            assert len(entry.kept_index) == t * ((h * w + 1) // 2)
            frames = torch.bincount(entry.kept_index // (h * w), minlength=t)
            assert frames.tolist() == [(h * w + 1) // 2] * t, "every frame is seen, each with its share"


@pytest.mark.parametrize("family", near_first)
def test_the_encoder_gives_back_its_full_length(cases, family):
    case, shapes = case_of(cases, family, "sdpa", "image"), []

    def look(_: nn.Module, args: Any, output: Any) -> None:
        states = [output.last_hidden_state, output.pooler_output, *(output.hidden_states or ())]
        shapes.append([state.shape for state in states if isinstance(state, torch.Tensor)])

    with torch.no_grad():
        for plan in ("random(layer=2, keep=0.5)", PLANS[0]):
            with foveate.attach(case.model, plan):
                handle = case.tower.register_forward_hook(look)
                case.model(**case.inputs)
                handle.remove()
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("family", near_first)
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_keeping_everything_is_bit_identical(cases, family, shortcut):
    case = case_of(cases, family, "sdpa", "video")
    plan = parse("random(site=vision, layer=1, keep=100%) | tome(site=vision, layer=2, keep=100%)")
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=shortcut):
        kept = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


PAIRS = [(family, plan) for family in FAMILIES for plan in (*PLANS[:2], BY_PIXELS[1]) if examples.fits(plan, family)]


@pytest.mark.pairs
@pytest.mark.parametrize(("family", "plan"), PAIRS)
def test_c_a_row_in_company_equals_the_row_alone(cases, plan, family):
    case = case_of(cases, family, "sdpa", "image")
    with foveate.attach(case.model, plan):
        together = tiny.generate(case.model, case.inputs)
        for number, row in enumerate(case.rows):
            alone = tiny.generate(case.model, case.maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


def test_a_stage_between_a_windowed_encoder_s_full_layer_and_the_ranking_is_refused(cases):
    case = case_of(cases, "qwen2_5_vl", "sdpa", "image")
    with pytest.raises(PlanError, match="acts in between"):
        foveate.attach(case.model, "random(site=vision, layer=2, keep=0.6) | illava_v1(site=vision, layer=3, keep=0.5)")
    with pytest.raises(PlanError, match="first layer that works is 2"):
        foveate.attach(case.model, "illava_v1(site=vision, layer=1, keep=0.5)")
    with pytest.raises(UnsupportedCombination, match="packs all pictures into one sequence"):
        foveate.attach(case.model, "tome(site=vision, layer=2, keep=0.5, proportional=on)")


@pytest.mark.parametrize("family", ["mistral3", "pixtral"])
def test_units_are_ranked_by_the_attention_that_their_own_patches_get(monkeypatch, family):
    case, views, weights = Case(family, "eager", "image"), [], []
    plain = choosing.ask

    def ask(stage: Any, view: TokenView, keep: int, check: bool) -> Any:
        views.append((stage.site.layer, view))
        return plain(stage, view, keep, check)

    monkeypatch.setattr(choosing, "ask", ask)
    attention = case.tower.transformer.layers[1].attention
    handle = attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    with torch.no_grad(), foveate.attach(case.model, PLANS[-1]) as attachment:
        case.model(**case.inputs)
        left = [entry.kept[0] for entry in attachment.trace.media]
    handle.remove()
    start, found = 0, [view.observed[need] for layer, view in views if layer == 2 for need in view.observed]
    assert len(found) == len(left) == 3, "pictures of three sizes, each asked about alone"
    for entry, kept, ranks in zip(attachment.trace.media, left, found, strict=True):
        _, h, w = entry.medium.shape.grid
        patches = case.raster(h, w)[kept]
        size = patches.numel()
        gets = weights[0][0, :, start : start + size, start : start + size].mean((0, 1))
        expected = gets[patches.flatten().argsort().argsort()].view(len(kept), -1).mean(1)
        torch.testing.assert_close(ranks[0], expected, atol=1e-6, rtol=0)
        start += size


def by_boundaries(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float,
    position_ids: torch.Tensor | None = None,
    **boundaries: Any,
) -> tuple[torch.Tensor, None]:
    """What flash does with sequences side by side: they are told by boundaries, or begin where positions do."""
    assert attention_mask is None
    if position_ids is None:
        lengths = boundaries["cu_seq_lens_q"].diff().tolist()
        assert boundaries["cu_seq_lens_k"].diff().tolist() == lengths
        assert boundaries["max_length_q"] == boundaries["max_length_k"] == max(lengths)
    else:
        assert position_ids.shape == (1, query.shape[2])
        lengths = torch.nonzero(torch.cat([position_ids[0], torch.zeros(1)]) == 0).flatten().diff().tolist()
    parts = [torch.split(states, lengths, 2) for states in (query, key, value)]
    mixed = [nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(mixed, 2).transpose(1, 2).contiguous(), None


def positions_alone(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hands a layer positions in place of boundaries, as earlier versions of transformers do."""
    lengths = kwargs["cu_seq_lens_q"].diff().tolist()
    rest = {name: value for name, value in kwargs.items() if not name.startswith(("cu_seq_lens", "max_length"))}
    return args, {**rest, "position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}


@pytest.mark.since((5, 24), "before, transformers gives layers positions in place of boundaries")
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("family", ["mistral3", "pixtral"])
@pytest.mark.parametrize("plan", PLANS[:3])
def test_flash_gets_the_boundaries_of_what_is_left(family, plan, positions):
    case = Case(family, "sdpa", "image")
    with torch.no_grad(), foveate.attach(case.model, plan):
        masked = case.model(**case.inputs).logits
    for layer in case.tower.transformer.layers if positions else ():
        layer.register_forward_pre_hook(positions_alone, with_kwargs=True)
    AttentionInterface.register("flash_by_boundaries", by_boundaries)
    case.tower.config._attn_implementation = "flash_by_boundaries"
    try:
        with torch.no_grad(), foveate.attach(case.model, plan):
            bounded = case.model(**case.inputs).logits
    finally:
        AttentionInterface._global_mapping.pop("flash_by_boundaries")
    real = case.inputs["attention_mask"].bool()
    assert float((bounded - masked)[real].abs().max()) < LOGITS
