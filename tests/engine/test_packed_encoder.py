"""Encoder stages of the Qwen-VL families: against an encoder at full length that is written out here, with masked keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import families
from foveate.core.trace import MediumTrace, Trace
from foveate.engine.attachment import Attachment
from foveate.errors import PlanError, UnsupportedCombination
from foveate.spec import parse
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.oracles.row_encoder import stage_of

LOGITS = 2e-4
FAMILIES = tuple(family for family in tiny.ALL_FAMILIES if tiny.packs(family))
near_first = [pytest.param(name, marks=[] if name in tiny.FAMILIES else pytest.mark.full) for name in FAMILIES]
# Qwen2.5-VL looks at the whole picture in layers 1 and 3 only.
PLANS = (
    "illava_v1(site=vision, layer=2, keep=0.5)",
    "illava_v2(site=vision, layer=2, keep=0.4, recycle=0.5)",
    "random(site=vision, layer=1, keep=0.6) | tome(site=vision, layer=3, keep=0.5)",
    "partition(site=vision, layer=2, keep=0.6) | fastv(layer=3, keep=0.5)",
    "uniform(site=vision, layer=0, keep=0.5)",
)


class Case:
    """A model and prompts with one, two and no media."""

    def __init__(self, family: str, backend: str, kind: str) -> None:
        self.family = family
        self.model = tiny.tiny_model(family, backend)
        self.maker = maker = tiny.Maker(family)
        # Where all placeholders look alike, a call holds images or videos.
        other = "image" if "video" in families.get(family).placeholders else kind
        self.rows = [
            tiny.Row([maker.text(5), maker.picture(kind=kind), maker.text(7)]),
            tiny.Row([maker.text(3), maker.picture(kind=other), maker.text(4), maker.picture(kind=kind), maker.text(5)]),
            tiny.Row([maker.text(12)]),
        ]
        self.inputs = maker.inputs(self.rows)
        self.tower: Any = tiny.towers_of(self.model)[0]
        self.unit = self.tower.spatial_merge_size**2

    def frames(self, trace: Trace) -> list[tuple[MediumTrace, int]]:
        """(medium, number of its frame) in the order of the encoder: all images, then all videos."""
        media = sorted(trace.media, key=lambda entry: entry.medium.shape.kind)
        return [(entry, t) for entry in media for t in range(entry.medium.shape.grid[0])]


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str, str], Case]:
    return {}


def case_of(cases: dict[tuple[str, str, str], Case], *key: str) -> Case:
    if key not in cases:
        cases[key] = Case(*key)
    return cases[key]


def window_places(tower: Any, grids: Tensor) -> Tensor:
    """Which unit lies at each place of the sequence, from transformers' own rule."""
    import sys

    module = sys.modules[type(tower).__module__]
    if not hasattr(module, "get_vision_window_index"):
        return torch.arange(int(grids.prod(1).sum()) // tower.spatial_merge_size**2)
    return module.get_vision_window_index(
        grids, spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
    )[0]


def of_heads(module: Any, states: Tensor) -> list[Tensor]:
    """Queries, keys and values [n, H, D] of what an attention module projects together; key heads may be fewer."""
    shared = getattr(module, "num_key_value_groups", 1)
    own = module.num_heads // shared
    width = states.shape[1] // (module.num_heads + 2 * own)
    query, key, value = states.view(len(states), -1, width).split([module.num_heads, own, own], dim=1)
    return [query, *(part.repeat_interleave(shared, dim=1) for part in (key, value))]


@contextmanager
def dense_encoder(case: Case, trace: Trace, texts: list[str]) -> Iterator[None]:
    """Blocks at full length: merged states in place at each stage's layer, dead keys masked from there on.

    Images and videos pass the tower in two calls; the frames of the second follow those of the first.
    """
    tower, unit = case.tower, case.unit
    done = [0]
    state: dict[str, Any] = {}

    def before_tower(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids = args[1] if len(args) > 1 else kwargs["grid_thw"]
        windowed = hasattr(tower, "fullatt_block_indexes")
        at = window_places(tower, grids) if windowed else torch.arange(int(grids.prod(1).sum()) // unit)
        place = torch.argsort(at)
        count = int(grids[:, 0].sum())
        frames = case.frames(trace)[done[0] : done[0] + count]
        done[0] += count
        state.update(alive={}, maps={})
        for number, text in enumerate(texts):
            layer = int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
            change, keep, start = torch.eye(len(at)), torch.zeros(len(at), dtype=torch.bool), 0
            for entry, t in frames:
                kept, own, arriving = stage_of(entry, number)
                size = entry.medium.shape.grid[1] * entry.medium.shape.grid[2]
                here, there = kept // size == t, arriving // size == t
                targets = place[start + kept[here] % size]
                sources = place[start + arriving[there] % size]
                change[targets] = 0
                change[targets[:, None], sources[None]] = own[here][:, there]
                keep[targets] = True
                start += size
            state["alive"][layer] = keep.repeat_interleave(unit)
            state["maps"][layer] = torch.kron(change, torch.eye(unit))

    def before_block(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index in state["maps"]:
                hidden = state["maps"][index] @ hidden
            return (hidden, *args[1:]), kwargs

        return run

    def attention(index: int, module: Any) -> Any:
        rotate = __import__("sys").modules[type(module).__module__].apply_rotary_pos_emb_vision

        def run(hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any) -> Tensor:
            length = len(hidden_states)
            together = (
                module.qkv(hidden_states)
                if hasattr(module, "qkv")
                else torch.cat([getattr(module, name)(hidden_states) for name in "qkv"], dim=1)
            )
            q, k, v = of_heads(module, together)
            if hasattr(module, "q_norm"):
                q, k = module.q_norm(q), module.k_norm(k)
            q, k = rotate(q, k, *position_embeddings)
            owner = torch.bucketize(torch.arange(length), cu_seqlens[1:], right=True)
            seen = owner[:, None] == owner[None]
            for layer, alive in state["alive"].items():
                if layer <= index:
                    # Dead rows may see themselves, so that they hold numbers.
                    seen = seen & (alive[None] | torch.eye(length, dtype=torch.bool))
            scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
            mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
            return module.proj(mixed.reshape(length, -1))

        return run

    handles = [tower.register_forward_pre_hook(before_tower, with_kwargs=True)]
    for index, block in enumerate(tower.blocks):
        handles.append(block.register_forward_pre_hook(before_block(index), with_kwargs=True))
        block.attn.forward = attention(index, block.attn)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in tower.blocks:
            del block.attn.forward


def alive_columns(case: Case, trace: Trace) -> dict[int, Tensor]:
    alive: dict[int, Tensor] = {}
    for number, (text, _) in enumerate(trace.media[0].stages):
        layer = 0 if "site=" in text else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        columns = torch.ones(case.inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = columns
    return alive


@pytest.mark.pairs
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", PLANS)
def test_b_g_a_shorter_encoder_equals_a_masked_one(cases, plan, family, backend, kind):
    case = case_of(cases, family, backend, kind)
    with torch.no_grad(), foveate.attach(case.model, plan) as attachment:
        pruned = case.model(**case.inputs).logits
        trace = attachment.trace
        answer = tiny.generate(case.model, case.inputs)
    assert len(trace.media[0].stages) == plan.count("(")
    texts = [text for text, _ in trace.media[0].stages if "site=vision" in text]
    alive = alive_columns(case, trace)
    with torch.no_grad(), dense_encoder(case, trace, texts), dense_reference(case.model, alive):
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
        shapes.append((output.last_hidden_state.shape, output.pooler_output.shape))

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


@pytest.mark.parametrize("family", near_first)
@pytest.mark.parametrize("plan", PLANS[:2])
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
