"""The attention study equals a direct computation from eager attention maps, and leaves no trace."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
from benchmarks._live_bytes import LiveBytes
from foveate import families
from foveate.core.attention import KINDS, Raters
from foveate.core.layout import Role
from foveate.engine import observe
from foveate.engine.compat import CACHE
from foveate.errors import AttachError, InputError
from tests import fake_backends, tiny
from tests.fake_backends import FLASH, FLEX
from tests.oracles.dense_reference import decoder_layers, mixer_of
from tests.spies import state_of

TOKENS = 5
# fp32 softmax rows of two kernels that sum in another order.
WEIGHTS = 1e-5


@pytest.fixture(scope="session", autouse=True)
def _stand_ins():
    fake_backends.register()


@pytest.fixture(scope="session")
def emulated(model_of):
    """Models of their own, for their decoder's implementation is switched."""

    def get(family: str, backend: str):
        model = tiny.tiny_model(family)
        fake_backends.use(model, backend)
        return model

    return get


def prompts(family: str, batch: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family, seed)
    return maker.inputs(tiny.ragged_rows(maker, batch))


def eager_maps(model, inputs, tokens: int = TOKENS + 1):
    """generate()'s own attention maps under eager: for each step, for each layer that attends [B, H, Q, keys]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        output = tiny.generate(model, inputs, tokens=tokens, output_attentions=True)
        output.attentions = [dict(zip(attending(model), maps, strict=True)) for maps in output.attentions]
        return output
    finally:
        model.set_attn_implementation(before)


def attending(model) -> list[int]:
    return [at for at, layer in enumerate(decoder_layers(model)) if mixer_of(layer) is None]


def direct_rows(output, layer: int, batch: int, width: int, tokens: int = TOKENS) -> dict[Raters, torch.Tensor]:
    """[B, S] in plain loops. Sliding cache layers hold the last columns only, so maps end with the newest token."""
    rows = {raters: torch.zeros(batch, width + tokens) for raters in Raters}
    for step in range(tokens + 1):
        attention = output.attentions[step][layer]
        raters = Raters.INSTRUCTION if step == 0 else Raters.OUTPUT
        end = width + step
        for row in range(batch):
            for head in range(attention.shape[1]):
                newest = attention[row, head, -1]
                share = newest / attention.shape[1] / (1 if step == 0 else tokens)
                rows[raters][row, end - len(newest) : end] += share
    return rows


def check_against_eager(study, output, inputs, layers) -> None:
    batch, width = inputs["input_ids"].shape
    for number, layer in enumerate(layers):
        expected = direct_rows(output, layer, batch, width)
        for raters in Raters:
            assert float((study.rows[raters][number] - expected[raters]).abs().max()) < WEIGHTS, (layer, raters)
            assert torch.allclose(study.rows[raters][number].sum(1), torch.ones(batch), atol=1e-5)


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_rows_equal_eager_attention_maps(model_of, family):
    model, inputs = model_of(family), prompts(family)
    study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    output = eager_maps(model, inputs)
    assert study.layers == tuple(attending(model))
    check_against_eager(study, output, inputs, study.layers)
    width = inputs["input_ids"].shape[1]
    for row, answer in enumerate(study.answers):
        assert answer.tolist() == output.sequences[row, width : width + TOKENS].tolist()


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_heat_maps_and_shares_equal_a_computation_from_eager_maps(model_of, family):
    model, inputs = model_of(family), prompts(family)
    study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    output = eager_maps(model, inputs)
    batch, width = inputs["input_ids"].shape
    placeholders = list(families.get(family).placeholder_ids(model.config).values())
    for number, layer in enumerate(study.layers):
        expected = direct_rows(output, layer, batch, width)
        for raters in Raters:
            for row in range(batch):
                ids, real = inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist()
                first = next((at for at, token in enumerate(ids) if token in placeholders), None)
                share, count = [0.0] * 4, [0] * 4
                for at in range(width + TOKENS):
                    if at < width and not real[at]:
                        continue
                    if at >= width:
                        kind = 3
                    elif ids[at] in placeholders:
                        kind = 1
                    else:
                        kind = 0 if first is not None and at < first else 2
                    share[kind] += float(expected[raters][row, at])
                    count[kind] += 1
                got = study.shares(raters)[number, row]
                assert float((got - torch.tensor(share)).abs().max()) < WEIGHTS
                assert study.token_counts()[row].tolist() == count
                phi = study.efficiency(raters)[number, row]
                for role, tokens in enumerate(count):
                    assert phi[role].isnan() if not tokens else abs(float(phi[role]) - share[role] / tokens) < WEIGHTS
            for medium in study.layout.media:
                heat = study.received(raters, medium)[number]
                assert heat.shape == (medium.shape.grid_tokens,)
                assert float((heat - expected[raters][medium.row, medium.columns]).abs().max()) < WEIGHTS


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
def test_tokens_of_video_are_measured_frame_after_frame(model_of, family):
    maker = tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(4), maker.picture(kind="video"), maker.text(6)])])
    model = model_of(family)
    study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    check_against_eager(study, eager_maps(model, inputs), inputs, study.layers)
    (medium,) = study.layout.media
    assert medium.shape.kind == "video"
    assert study.received(Raters.OUTPUT, medium).shape == (len(study.layers), medium.shape.grid_tokens)


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("backend", ["eager", FLASH, FLEX])
def test_every_backend_measures_the_same(model_of, emulated, family, backend):
    inputs = prompts(family)
    model = model_of(family, "eager") if backend == "eager" else emulated(family, backend)
    study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    # Flash cannot let an image's tokens see each other, so states differ.
    if backend == FLASH and families.get(family).bidirectional:
        assert_windows_hide(study)
        return
    check_against_eager(study, eager_maps(model_of(family), inputs), inputs, study.layers)


def assert_windows_hide(study) -> None:
    """No weight outside a sliding window, and full layers do look there."""
    end = study.layout.width
    for number, window in enumerate(study.windows):
        far = float(study.rows[Raters.INSTRUCTION][number, :, : end - TOKENS - (window or 40)].sum())
        assert far == 0 if window else far > 0
    assert len({window is None for window in study.windows}) == 2


def long_prompt(family: str) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs([tiny.Row([maker.text(30), maker.picture(), maker.text(40)])])


@pytest.mark.parametrize("backend", ["sdpa", FLASH])
def test_tokens_outside_a_sliding_window_get_nothing(model_of, emulated, backend):
    model = model_of("gemma3") if backend == "sdpa" else emulated("gemma3", backend)
    assert_windows_hide(foveate.attention(model, long_prompt("gemma3"), max_new_tokens=TOKENS))


def test_flash_windows_equal_the_masks_of_sdpa(model_of, emulated):
    maker = tiny.Maker("gemma3")
    inputs = maker.inputs([tiny.Row([maker.picture(), maker.text(60)])])
    rows = {}
    for backend in ("sdpa", FLASH):
        model = model_of("gemma3") if backend == "sdpa" else emulated("gemma3", backend)
        rows[backend] = foveate.attention(model, inputs, max_new_tokens=2, layers=[0]).rows[Raters.INSTRUCTION]
    # Layer 0 has seen no attention yet, so its queries and keys are the same under both.
    assert float((rows["sdpa"] - rows[FLASH]).abs().max()) < WEIGHTS


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_the_study_changes_no_answer_and_leaves_no_trace(model_of, family):
    model, inputs = model_of(family), prompts(family)
    plain, before = tiny.generate(model, inputs, tokens=TOKENS), state_of(model)
    study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    assert state_of(model) == before
    assert observe.PROBE not in ALL_ATTENTION_FUNCTIONS
    again = tiny.generate(model, inputs, tokens=TOKENS)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))
    width = inputs["input_ids"].shape[1]
    assert [answer.tolist() for answer in study.answers] == plain.sequences[:, width:].tolist()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_row_in_a_batch_equals_the_row_alone(model_of, family):
    maker = tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 2)
    model = model_of(family)
    together = foveate.attention(model, maker.inputs(rows), max_new_tokens=TOKENS)
    for number, row in enumerate(rows):
        alone = foveate.attention(model, maker.inputs([row]), max_new_tokens=TOKENS)
        for raters in Raters:
            pad = together.layout.width - alone.layout.width
            assert float((together.rows[raters][:, number, pad:] - alone.rows[raters][:, 0]).abs().max()) < WEIGHTS
            assert not together.rows[raters][:, number, :pad].any()


def test_an_answer_ends_with_its_end_token(model_of):
    model, inputs = model_of("llava"), prompts("llava", 2)
    width = inputs["input_ids"].shape[1]
    sequences = tiny.generate(model, inputs, tokens=TOKENS).sequences[:, width:]
    end = int(sequences[0, 2])
    lengths = [row.tolist().index(end) if end in row.tolist() else TOKENS for row in sequences]
    assert lengths[0] <= 2 and lengths[0] != lengths[1]
    output = eager_maps(model, inputs)
    model.generation_config.eos_token_id = [end, 98]
    try:
        study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    finally:
        model.generation_config.eos_token_id = None
    assert [len(answer) for answer in study.answers] == lengths
    assert study.token_counts()[:, 3].tolist() == lengths
    short = direct_rows(output, 1, 2, width, lengths[0])[Raters.OUTPUT][0]
    assert float((study.rows[Raters.OUTPUT][1, 0, : len(short)] - short).abs().max()) < WEIGHTS
    assert int((study.layout.roles[0] == int(Role.PAD)).sum()) >= TOKENS - lengths[0] - 1


def test_an_answer_without_tokens_has_no_raters(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    model.generation_config.eos_token_id = int(tiny.generate(model, inputs, tokens=1).sequences[0, -1])
    try:
        study = foveate.attention(model, inputs, max_new_tokens=TOKENS)
    finally:
        model.generation_config.eos_token_id = None
    assert not study.has_answer(0)
    assert not study.rows[Raters.OUTPUT].any()
    assert torch.allclose(study.rows[Raters.INSTRUCTION].sum(2), torch.ones(1))
    assert study.efficiency(Raters.INSTRUCTION)[..., 3].isnan().all()


def test_what_the_checkpoint_says_about_generating_is_left_aside(model_of):
    model, inputs = model_of("gemma3"), prompts("gemma3", 2)
    plain = foveate.attention(model, inputs, max_new_tokens=3)
    said = dict(cache_implementation="static", num_beams=2, do_sample=True, prefill_chunk_size=16)
    before = {name: getattr(model.generation_config, name) for name in said}
    try:
        for name, value in said.items():
            setattr(model.generation_config, name, value)
        study = foveate.attention(model, inputs, max_new_tokens=3)
    finally:
        for name, value in before.items():
            setattr(model.generation_config, name, value)
    assert all(torch.equal(study.rows[raters], plain.rows[raters]) for raters in Raters)


def test_chosen_layers_are_measured_alone(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    every = foveate.attention(model, inputs, max_new_tokens=2)
    some = foveate.attention(model, inputs, max_new_tokens=2, layers=[3, 1])
    assert some.layers == (1, 3)
    for raters in Raters:
        assert torch.equal(some.rows[raters], every.rows[raters][[1, 3]])
        assert len(KINDS) == some.shares(raters).shape[2]


def test_nothing_of_the_size_of_an_attention_map_is_made(model_of):
    model = model_of("llava")
    maker = tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(100), maker.picture(), maker.text(100)])])
    tokens = inputs["input_ids"].shape[1]
    with LiveBytes(tokens * tokens) as plain:
        tiny.generate(model, inputs, tokens=TOKENS + 1)
    with LiveBytes(tokens * tokens) as measured:
        foveate.attention(model, inputs, max_new_tokens=TOKENS)
    assert measured.flagged - plain.flagged == {}
    bounded = 4 * 4 * tokens * len(list(model.model.language_model.layers)) * 4
    assert measured.peak - plain.peak < bounded  # a few rows per head and layer


def test_other_threads_are_not_measured(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    alone = foveate.attention(model, inputs, max_new_tokens=2)
    other, ready = prompts("llava", 1, seed=5), []

    def meanwhile(*_: object) -> None:
        if not ready:
            ready.append(1)
            thread = threading.Thread(target=lambda: tiny.generate(model, other, tokens=2))
            thread.start()
            thread.join()

    handle = model.model.language_model.layers[1].register_forward_hook(meanwhile)
    try:
        study = foveate.attention(model, inputs, max_new_tokens=2)
    finally:
        handle.remove()
    assert ready
    assert all(torch.equal(study.rows[raters], alone.rows[raters]) for raters in Raters)


def test_an_interrupt_leaves_no_trace(model_of):
    model, inputs = model_of("llava"), prompts("llava", 1)
    before = state_of(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[2].self_attn.q_proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        foveate.attention(model, inputs, max_new_tokens=2)
    handle.remove()
    assert state_of(model) == before
    assert observe.PROBE not in ALL_ATTENTION_FUNCTIONS


def test_a_plan_on_another_model_keeps_its_probe(model_of):
    first, second = model_of("llava"), model_of("gemma3")
    with foveate.attach(second, "fastv(layer=2, keep=0.4)") as attachment:
        pruned = tiny.generate(second, prompts("gemma3", 1))
        foveate.attention(first, prompts("llava", 1), max_new_tokens=2)
        assert torch.equal(tiny.generate(second, prompts("gemma3", 1)).sequences, pruned.sequences)
        with pytest.raises(AttachError, match=r"attachment\.disabled"):
            foveate.attention(second, prompts("gemma3", 1))
        with attachment.disabled():
            foveate.attention(second, prompts("gemma3", 1), max_new_tokens=2)
    assert observe.PROBE not in ALL_ATTENTION_FUNCTIONS


def test_a_pipeline_is_unwrapped(model_of):
    model = model_of("llava")
    study = foveate.attention(SimpleNamespace(model=model), prompts("llava", 1), max_new_tokens=1)
    assert len(study.answers[0]) == 1


def refusals():
    maker = tiny.Maker("llava")
    good = prompts("llava")
    return [
        ({**good, CACHE: object()}, {}, "whole prompt"),
        ({name: value for name, value in good.items() if name != "input_ids"}, {}, "whole prompt"),
        ({**good, "do_sample": True}, {}, "do_sample"),
        (maker.inputs(tiny.ragged_rows(maker, 3), side="right"), {}, "padding_side='left'"),
        (maker.inputs([tiny.Row([maker.text(6)])]), {}, "no picture"),
        ({**good, "pixel_values": good["pixel_values"][:1]}, {}, "pixel values for 1"),
        (good, dict(max_new_tokens=0), "max_new_tokens=0"),
        (good, dict(layers=[]), "layers: none"),
        (good, dict(layers=[1, 99]), r"layers: 99; this model has \d decoder layers"),
        (good, dict(layers=[-1]), "layers: -1"),
    ]


@pytest.mark.parametrize(("inputs", "options", "says"), refusals(), ids=[says for _, _, says in refusals()])
def test_what_cannot_be_measured_is_refused(model_of, inputs, options, says):
    model = model_of("llava")
    before = state_of(model)
    with pytest.raises(InputError, match=says):
        foveate.attention(model, inputs, **options)
    assert state_of(model) == before


def test_a_medium_of_another_prompt_is_refused(model_of):
    study = foveate.attention(model_of("llava"), prompts("llava", 1), max_new_tokens=1)
    other = foveate.attention(model_of("llava"), prompts("llava", 1), max_new_tokens=1)
    with pytest.raises(InputError, match=r"study\.layout\.media"):
        study.received(Raters.OUTPUT, other.layout.media[0])
