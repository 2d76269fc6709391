"""The public face: attach, report, using, compare, estimate, save and load."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import AttachError, UnknownName
from tests import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model("llava")


@pytest.fixture
def inputs():
    maker = tiny.Maker("llava")
    return maker.inputs(tiny.ragged_rows(maker, 2))


def test_the_four_lines_of_the_readme(model, inputs):
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 4
    assert str(attachment).startswith("fastv(layer=2, keep=0.5): 36 -> 18 visual tokens from layer 2")


def test_report_says_theory_and_what_was_measured(model, inputs):
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
        report = attachment.report()
    assert [entry[2:] for entry in report.media] == [(36, 18)] * 3
    assert report.prefill_kv_bytes == sum(x.keys.nbytes + x.values.nbytes for x in cache_in(out).layers)
    assert "LLM prefill FLOPs" in str(report)
    # Theory is for the first row, on its own: 12 text and 36 visual tokens, 2 full and 3 pruned layers, 2 heads of 8, fp32.
    per_token = 2 * 2 * 8 * 4
    assert report.estimate.kv_bytes.plan == per_token * (2 * 48 + 3 * 30)


def test_a_masked_plan_says_that_nothing_is_saved(model, inputs):
    with foveate.attach(model, "fastv(layer=2, keep=0.5, effect=mask)") as attachment:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert "nothing is saved" in str(attachment.report())


def test_report_before_any_picture_says_what_to_do(model):
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment, pytest.raises(AttachError, match="generate"):
        attachment.report()


def test_plans_are_accepted_as_text_plan_stage_and_stages(model):
    stage = foveate.Stage(foveate.Site.llm_layer(2), foveate.methods.get("fastv")(), foveate.Budget.of_ratio(0.5))
    texts = []
    for plan in ("fastv(layer=2, keep=0.5)", foveate.parse("fastv(layer=2, keep=50%)"), stage, [stage]):
        with foveate.attach(model, plan) as attachment:
            texts.append(str(attachment.plan))
    assert set(texts) == {"fastv(layer=2, keep=0.5)"}


def test_using_another_plan_for_one_call(model, inputs):
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        with attachment.using("random(site=pre_llm, keep=0.25)"):
            model(**inputs)
            assert len(attachment.trace.media[0].kept_index) == 9
        model(**inputs)
        assert len(attachment.trace.media[0].kept_index) == 18


def test_compare_runs_every_plan_on_the_same_inputs(model, inputs):
    rows = foveate.compare(model, inputs, ["fastv(layer=2, keep=0.5)", "pool(site=pre_llm)"], max_new_tokens=3, repeats=2)
    assert [row.name for row in rows] == ["plain", "fastv(layer=2, keep=0.5)", "pool(site=pre_llm)"]
    assert [row.kept_tokens for row in rows] == [108, 54, 27]
    assert rows[0].loyalty == 1.0
    assert rows[0].prefill_ratio is None
    assert rows[2].kv_bytes < rows[1].kv_bytes < rows[0].kv_bytes
    assert all(row.ttft_ms > 0 and row.tpot_ms is not None for row in rows)
    with torch.no_grad():
        plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(rows[0].new_tokens, plain[:, -3:])


def test_compare_tells_what_lasts_from_what_a_gate_holds_for_a_while(model, inputs):
    gate, steps = "stride_gate(layer=2, keep=0.5, recent=0)", 7
    plain, gated, pruned = foveate.compare(model, inputs, [gate, "fastv(layer=2, keep=0.5)"], max_new_tokens=steps)
    layers = model.config.text_config.num_hidden_layers
    slot = plain.kv_bytes // (inputs["input_ids"].shape[1] + steps - 1) // layers
    # Of the 6 tokens that were read again 0, 2 and 4 were rejected; none was taken away yet.
    assert plain.kv_bytes - gated.kv_bytes == 3 * slot * (layers - 2)
    assert gated.kv_bytes_held == plain.kv_bytes_held == plain.kv_bytes
    assert pruned.kv_bytes_held == pruned.kv_bytes


def test_compare_refuses_a_bad_plan_before_generating(model, inputs, monkeypatch):
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: pytest.fail("generated before the plans were checked"))
    with pytest.raises(foveate.FoveateError, match="layer=9"):
        foveate.compare(model, inputs, ["random(layer=2, keep=0.5)", "random(layer=9, keep=0.5)"])


def test_estimate_agrees_with_the_attached_run(model, inputs):
    alone = {name: value[:1] for name, value in inputs.items() if name != "pixel_values"} | {
        "pixel_values": inputs["pixel_values"][:1]
    }
    keep = alone["attention_mask"][0].bool()
    alone = {name: value[:, keep] if value.ndim == 2 else value for name, value in alone.items()}
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        model.generate(**alone, max_new_tokens=1, do_sample=False)
        report = attachment.report()
    theory = foveate.estimate(model, "fastv(layer=2, keep=0.5)", [(24, 24)], text_tokens=12, max_new_tokens=0, dtype="fp32")
    assert theory.kv_bytes.plan == report.prefill_kv_bytes
    assert theory.prefill_flops == report.estimate.prefill_flops


def test_a_preset_name_and_a_config_give_the_same_estimate():
    from transformers import AutoConfig

    from foveate.cost.presets import load_preset

    config = AutoConfig.for_model(**load_preset("llava-1.5-7b"))
    plan = "fastv(layer=2, keep=0.5)"
    assert foveate.estimate(config, plan) == foveate.estimate("llava-1.5-7b", plan)


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match=r"llava-1\.5-7b"):
        foveate.estimate("llava-1.5-7", "none")


def test_a_lost_attachment_can_be_detached(model):
    foveate.attach(model, "fastv(layer=2, keep=0.5)")
    assert foveate.detach(model)
    assert not foveate.detach(model)
    with foveate.attach(model, "fastv(layer=2, keep=0.5)"):
        pass


def test_beams_are_counted_once(model, inputs):
    rows = foveate.compare(model, inputs, "fastv(layer=2, keep=0.5)", max_new_tokens=2, num_beams=3)
    assert [(row.visual_tokens, row.kept_tokens) for row in rows] == [(108, 108), (108, 54)]
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        model.generate(**inputs, max_new_tokens=2, num_beams=3)
        assert [entry[0] for entry in attachment.report().media] == [0, 1, 1]


def test_compare_takes_the_options_of_generate(model, inputs):
    (row,) = foveate.compare(model, inputs, "none", max_new_tokens=2, use_cache=False, with_plain=False)
    assert row.kv_bytes == row.kv_bytes_held == 0
    for option in ("past_key_values", "return_dict_in_generate"):
        with pytest.raises(foveate.FoveateError, match=option):
            foveate.compare(model, inputs, "none", **{option: True})


def test_theory_is_not_made_up_for_a_turn_behind_a_cache(model):
    maker = tiny.Maker("llava")
    first = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(6)])])
    picture = maker.picture()
    with foveate.attach(model, "fastv(layer=2, keep=0.5)") as attachment:
        out = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        more = torch.cat([maker.text(2), torch.full((36,), tiny.IMAGE), maker.text(4)])[None]
        ids = torch.cat([out.sequences, more], dim=1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture.inputs}
        model.generate(**second, **{CACHE: cache_in(out)}, max_new_tokens=2, do_sample=False)
        report = attachment.report()
    assert report.estimate is None
    assert "not computed: more than shapes decide it" in str(report)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": (1024, 768)}, "width, height"),
        ({"images": [("a", "b")]}, "width, height"),
        ({"text_tokens": "64"}, "whole number"),
        ({"dtype": torch.int64}, "int64"),
    ],
)
def test_estimate_answers_wrong_types_in_one_line(arguments, says):
    with pytest.raises(foveate.FoveateError, match=says):
        foveate.estimate("llava-1.5-7b", "none", **arguments)


def test_estimate_takes_torch_dtypes():
    named, torch_dtype = (foveate.estimate("llava-1.5-7b", "none", dtype=dtype) for dtype in ("bf16", torch.bfloat16))
    assert named == torch_dtype


def test_the_report_of_a_prompt_without_pictures_has_its_cache_measured():
    model, make = tiny.tiny_model("llava"), tiny.Maker("llava")
    with foveate.attach(model, "random_gate(layer=2, keep=0.5, recent=0)") as attachment:
        model.generate(**make.inputs([tiny.Row([make.text(9)])]), max_new_tokens=3, do_sample=False, pad_token_id=0)
        report = str(attachment.report())
    assert "KV cache after prefill, whole batch: " in report and "not measured" not in report
