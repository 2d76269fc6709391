"""Stages inside the vision encoder: against a full-length encoder with masked keys and substituted states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import families
from foveate.core.trace import MediumTrace, Trace
from foveate.engine import attention_rows, compat, observe
from foveate.engine.attachment import Attachment
from foveate.errors import PlanError, UnsupportedCombination
from foveate.families import family_for
from foveate.spec import parse
from tests import examples, tiny
from tests.conftest import TRANSFORMERS
from tests.oracles.dense_reference import dense_reference
from tests.spies import settled_state, state_of

LOGITS = 2e-4  # as the oracles of decoder stages
SCORES = 1e-5

# Counts are of patches.
COUNTS = (
    "illava_v1(site=vision, layer=1, keep={30}) | illava_v1(site=vision, layer=2, keep={21}) "
    "| illava_v1(site=vision, layer=3, keep={14})"
)
PLANS = (
    "illava_v1(site=vision, layer=3, keep=0.5)",
    COUNTS,
    "partition(site=vision, layer=1, keep=0.6) | partition(site=vision, layer=3, keep=0.5)",
    "tome(site=vision, layer=0, keep=0.3)",
    "tome(site=vision, layer=1, keep=0.4, proportional=on) | tome(site=vision, layer=3, keep=0.5, proportional=on)",
    "tome(site=vision, layer=1, keep=0.6, proportional=on) | partition(site=vision, layer=3, keep=0.5)",
    "random(site=vision, layer=2, keep=0.5)",
    "uniform(site=vision, layer=0, keep=0.5)",
    "illava_v1(site=vision, layer=2, keep=0.6) | illava_v1(layer=2, keep=0.5)",
    "partition(site=vision, layer=2, keep=0.6) | random(site=pre_llm, keep=0.7) | fastv(layer=2, keep=0.5)",
)


def clip_llava(feature_layer: Any = -2, strategy: str = "default") -> Any:
    from transformers import CLIPVisionConfig

    return _llava(CLIPVisionConfig, feature_layer, strategy)


def siglip_llava() -> Any:
    from transformers import SiglipVisionConfig

    return _llava(SiglipVisionConfig, -1, "full")


def _llava(vision: Any, feature_layer: Any, strategy: str) -> Any:
    config = family_for(tiny.tiny_model("llava", "sdpa").config).tiny_config()
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, image_size=24, patch_size=4, num_hidden_layers=5)
    config.vision_config = vision(**sizes)
    config.vision_feature_layer, config.vision_feature_select_strategy = feature_layer, strategy
    return config


def deeper(family: str) -> Any:
    """A family's tiny config with enough encoder layers for several stages, and 36 units of each picture."""
    config = families.get(family).tiny_config()
    config.vision_config.num_hidden_layers = 5
    if family == "internvl":
        config.vision_config.image_size, config.image_seq_length = (48, 48), 36
    return config


CONFIGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "clip": ("llava", clip_llava),
    "clip-full": ("llava", lambda: clip_llava(-1, "full")),
    "clip-several": ("llava", lambda: clip_llava([-2, -1])),
    "siglip": ("llava", siglip_llava),
    "internvl": ("internvl", lambda: deeper("internvl")),
    "paligemma": ("paligemma", lambda: deeper("paligemma")),
}


class Case:
    """A model and a batch of prompts with one, two and no pictures."""

    def __init__(self, name: str, backend: str = "sdpa", batch: int = 3) -> None:
        family, make = CONFIGS[name]
        config = make()
        self.model = tiny.tiny_model(family, backend, config=config)
        self.maker = tiny.Maker(family, config=config)
        self.rows = tiny.ragged_rows(self.maker, batch)
        self.inputs = self.maker.inputs(self.rows)
        path = family_for(config).encoder(config)
        assert path is not None
        self.path = path

    def plan(self, text: str) -> str:
        """The plan with its {counts} of units in patches."""
        return re.sub(r"\{(\d+)\}", lambda found: str(int(found[1]) * self.path.unit**2), text)


@pytest.fixture(scope="module")
def cases() -> dict[tuple[str, str], Case]:
    return {}


def case_of(cases: dict[tuple[str, str], Case], name: str, backend: str) -> Case:
    if (name, backend) not in cases:
        cases[name, backend] = Case(name, backend)
    return cases[name, backend]


def stage_of(entry: MediumTrace, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept originals [K] of a stage, its own matrix [K, M], and the originals [M] that arrived at it."""
    size = entry.medium.shape.grid_tokens
    whole = entry.stages[number][1].to_dense().double()
    before = entry.stages[number - 1][1].to_dense().double() if number else torch.eye(size, dtype=torch.double)
    own = torch.linalg.lstsq(before.T, whole.T).solution.T.float()
    return entry.kept[number], own, entry.kept[number - 1] if number else torch.arange(size)


@contextmanager
def dense_encoder(case: Case, trace: Trace, texts: list[str]) -> Iterator[None]:
    """The plain encoder at full length: at each stage's layer merged states in place, from there on dead keys masked.

    What its dead rows hold is arbitrary; the language model is to ignore them.
    """
    prefix, patches = case.path.prefix, case.path.patches
    (height, width), side = case.path.grid, case.path.unit
    # Patches of each unit, in raster order: the squares that one visual token is made of.
    raster = torch.arange(patches).view(height, width)
    units = torch.stack([square.flatten() for band in raster.split(side) for square in band.split(side, dim=1)])
    count = len(units)
    sequences = [(entry, piece) for entry in trace.media for piece in range(len(entry.medium.shape.pieces))]
    alive, maps = {}, {}
    for number, text in enumerate(texts):
        layer = int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        # What attention adds to the scores of each key.
        keep = torch.full((len(sequences), prefix + patches), torch.finfo(torch.float32).min)
        keep[:, :prefix] = 0
        weighs = any("proportional" in earlier for earlier in texts[: number + 1])
        change = torch.eye(prefix + patches).repeat(len(sequences), 1, 1)
        for row, (entry, piece) in enumerate(sequences):
            kept, own, arriving = stage_of(entry, number)
            here, there = (kept // count == piece), (arriving // count == piece)
            kept, arriving, own = kept[here] % count, arriving[there] % count, own[here][:, there]
            parts = (entry.stages[number][1].to_dense()[here] != 0).sum(1)
            keep[row, prefix + units[kept]] = parts.log()[:, None] if weighs else 0.0
            for member in units.T:
                targets, sources = prefix + member[kept], prefix + member[arriving]
                change[row, targets] = 0
                change[row, targets[:, None], sources[None]] = own
        alive[layer], maps[layer] = keep, change

    def substitute(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            changed = maps[index] @ hidden
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return run

    def mask(index: int) -> Any:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            now = [keep for layer, keep in alive.items() if layer <= index]
            seen = now[-1][:, None, None]
            seen = seen.expand(-1, 1, seen.shape[-1], -1)
            return args, {**kwargs, "attention_mask": seen}

        return run

    layers = compat.encoder_layers(case.model.get_submodule(case.path.towers[0]))
    handles = [layers[index].register_forward_pre_hook(substitute(index), with_kwargs=True) for index in maps]
    for index in range(min(alive), len(layers)):
        attention = layers[index].get_submodule(case.path.attention)
        handles.append(attention.register_forward_pre_hook(mask(index), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def alive_columns(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{decoder layer: [B, S] bool} of what each stage left, those of the encoder at layer 0."""
    alive: dict[int, Tensor] = {}
    for number, (text, _) in enumerate(trace.media[0].stages):
        inside = "site=vision" in text or "site=pre_llm" in text
        layer = 0 if inside else int(text.partition("layer=")[2].partition(",")[0].rstrip(")"))
        columns = torch.ones(case.inputs["input_ids"].shape, dtype=torch.bool)
        for entry in trace.media:
            gone = torch.ones(entry.medium.shape.grid_tokens, dtype=torch.bool)
            gone[entry.kept[number]] = False
            columns[entry.medium.row, entry.medium.columns[gone]] = False
        alive[layer] = columns
    return alive


def merges_in_decoder(case: Case, trace: Trace) -> dict[int, Tensor]:
    """{layer: [B, S, S]} of the merges of the last stage, if it merges in front of a decoder layer."""
    text = trace.media[0].stages[-1][0]
    if "illava" not in text or "site=vision" in text:
        return {}
    layer, width = int(text.partition("layer=")[2].partition(",")[0]), case.inputs["input_ids"].shape[1]
    change = torch.eye(width).repeat(len(case.inputs["input_ids"]), 1, 1)
    for entry in trace.media:
        kept, own, arriving = stage_of(entry, len(entry.stages) - 1)
        kept, arriving = entry.medium.columns[kept], entry.medium.columns[arriving]
        change[entry.medium.row, kept] = 0
        change[entry.medium.row, kept[:, None], arriving[None]] = own
    return {layer: change}


@pytest.mark.pairs
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("plan", [*PLANS, *examples.encoder_plans(layer=1)])
def test_b_g_a_shorter_encoder_equals_a_masked_one(cases, plan, name, backend):
    case = case_of(cases, name, backend)
    with torch.no_grad(), foveate.attach(case.model, case.plan(plan)) as attachment:
        pruned = case.model(**case.inputs).logits
        trace = attachment.trace
        answer = tiny.generate(case.model, case.inputs)
    texts = [text for text, _ in trace.media[0].stages if "site=vision" in text]
    assert len(trace.media[0].stages) == plan.count("(")
    alive, merged = alive_columns(case, trace), merges_in_decoder(case, trace)
    assert not alive[0].all()
    with torch.no_grad(), dense_encoder(case, trace, texts), dense_reference(case.model, alive, merged):
        reference = case.model(**case.inputs).logits
        dense = tiny.generate(case.model, case.inputs, use_cache=False)
    if name == "paligemma" and TRANSFORMERS < (5, 19):
        dense = None  # plain transformers answers otherwise without a cache than with one
    everywhere = case.inputs["attention_mask"].bool()
    for columns in alive.values():
        everywhere = everywhere & columns
    assert not pruned.isnan().any()
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert dense is None or tiny.greatest_difference(answer, dense) < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_keeping_everything_is_bit_identical(cases, name, shortcut):
    case = case_of(cases, name, "sdpa")
    plan = parse("random(site=vision, layer=1, keep=100%) | tome(site=vision, layer=2, keep=100%, proportional=on)")
    plain = tiny.generate(case.model, case.inputs)
    with Attachment(case.model, plan, shortcut=shortcut) as attachment:
        kept = tiny.generate(case.model, case.inputs)
        for entry in attachment.trace.media:
            assert len(entry.kept_index) == entry.medium.shape.grid_tokens
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.pairs
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("plan", PLANS)
def test_c_a_row_in_company_equals_the_row_alone(cases, plan, name):
    case = case_of(cases, name, "sdpa")
    with foveate.attach(case.model, case.plan(plan)):
        together = tiny.generate(case.model, case.inputs)
        for number, row in enumerate(case.rows):
            alone = tiny.generate(case.model, case.maker.inputs([row]))
            for step, logits in enumerate(alone.logits):
                torch.testing.assert_close(together.logits[step][number], logits[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("plan", PLANS[:2])
def test_d_a_cached_answer_equals_an_uncached_one(cases, plan):
    case = case_of(cases, "clip", "sdpa")
    with foveate.attach(case.model, case.plan(plan)):
        cached, uncached = (tiny.generate(case.model, case.inputs, use_cache=use) for use in (True, False))
    assert tiny.greatest_difference(cached, uncached) < LOGITS


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@pytest.mark.parametrize("beams", [2, 3])
def test_beams_share_one_encoding(cases, beams):
    case = case_of(cases, "clip", "sdpa")
    with foveate.attach(case.model, PLANS[0]) as attachment:
        cached = case.model.generate(**case.inputs, num_beams=beams, max_new_tokens=5, do_sample=False)
        trace = attachment.trace
        again = case.model.generate(**case.inputs, num_beams=beams, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)
    assert all(len(entry.kept_index) == 18 for entry in trace.media)


def test_f_detaching_leaves_no_trace_and_the_same_answers(cases):
    case = case_of(cases, "clip", "sdpa")
    plain = tiny.generate(case.model, case.inputs)
    before = settled_state(case.model, case.inputs)
    with foveate.attach(case.model, case.plan(COUNTS)):
        tiny.generate(case.model, case.inputs)
    assert state_of(case.model) == before
    after = tiny.generate(case.model, case.inputs)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


def test_the_encoder_really_gets_shorter_and_gives_back_its_full_length(cases):
    case = case_of(cases, "clip", "sdpa")
    tower = case.model.get_submodule(case.path.towers[0])
    seen: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1])) for layer in tower.encoder.layers
    ]
    with torch.no_grad(), foveate.attach(case.model, case.plan(COUNTS)):
        case.model(**case.inputs)
        features = case.model.get_image_features(case.inputs["pixel_values"]).pooler_output
    for handle in handles:
        handle.remove()
    assert seen[:5] == [37, 31, 22, 15, 15]
    assert seen[5:] == [37] * 5, "outside of a call of the model nobody wants shorter features"
    assert not any(part.isnan().any() for part in features)


def test_features_that_a_call_returns_carry_no_mark(cases):
    case = case_of(cases, "clip", "sdpa")
    with torch.no_grad(), foveate.attach(case.model, PLANS[0]):
        output = case.model(**case.inputs)
    features = output.image_outputs.pooler_output if compat.CACHE == "cache" else output.image_hidden_states
    features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
    assert not features.isnan().any()
    assert int((features == 0).all(-1).sum()) == 3 * 18


def test_column_means_equal_eager_attention(cases):
    case = case_of(cases, "clip", "eager")
    tower = case.model.get_submodule(case.path.towers[0])
    pixels = case.inputs["pixel_values"]
    with torch.no_grad():
        eager = tower(pixels, output_attentions=True).attentions[1]
    found: list[Tensor] = []
    attention = tower.encoder.layers[1].self_attn
    owner = nn.Identity()
    observe.enable(owner)

    def measure(query, key, mask, scaling, softcap):
        found.append(attention_rows.column_means(query, key, mask, scaling))

    handle = attention.register_forward_pre_hook(lambda module, args: observe.arm(module, measure))
    with torch.no_grad():
        tower(pixels)
    handle.remove()
    observe.disable(owner)
    torch.testing.assert_close(found[0], eager.mean((1, 2)), atol=SCORES, rtol=0)


def test_a_text_only_prompt_is_an_exact_no_op(cases):
    case = case_of(cases, "clip", "sdpa")
    inputs = case.maker.inputs([tiny.Row([case.maker.text(9)])])
    plain = tiny.generate(case.model, inputs)
    with foveate.attach(case.model, PLANS[0]):
        same = tiny.generate(case.model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("illava_v1(site=vision, layer=4, keep=0.5)", "changes nothing"),
        ("illava_v1(site=vision, layer=0, keep=0.5)", "first layer that works is 1"),
        ("random(site=vision, layer=1, keep=0.5, scope=sample)", "leave scope out"),
        ("random(site=vision, layer=1, keep=0.5, effect=mask)", "drop or merge"),
        ("tome(layer=2, keep=0.5, proportional=on)", "leave proportional out"),
        ("tome(site=pre_llm, keep=0.5, proportional=on)", "leave proportional out"),
    ],
)
def test_plans_without_meaning_are_refused(cases, plan, said):
    case = case_of(cases, "clip", "sdpa")
    with pytest.raises((PlanError, UnsupportedCombination), match=said):
        foveate.attach(case.model, case.plan(plan))


def test_a_kernel_that_takes_no_bias_is_refused(cases, monkeypatch):
    case = case_of(cases, "clip", "sdpa")
    tower = case.model.model.vision_tower
    with torch.no_grad(), foveate.attach(case.model, "tome(site=vision, layer=0, keep=0.5, proportional=on)"):
        monkeypatch.setattr(tower.config, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(UnsupportedCombination, match="load the vision encoder with sdpa or eager"):
            case.model(**case.inputs)
