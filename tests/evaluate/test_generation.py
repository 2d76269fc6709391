"""Plans compared on answers: rows by plan, counts by hand, theory against the estimate that others use."""

from __future__ import annotations

import json

import pytest
import torch

import foveate
from foveate.errors import FoveateError, InputError
from foveate.evaluate.generation import Generation, Sample, evaluate, summarize
from foveate.evaluate.overlap import OverlapScore
from foveate.evaluate.reading import Rounds
from tests import tiny
from tests.trained import random_predictors

GATE, PRUNE = "stride_gate(layer=2, keep=0.5, recent=0)", "fastv(layer=2, keep=0.5)"
BOTH = f"{PRUNE} | {GATE}"


@pytest.fixture(scope="module")
def model():
    return tiny.Models()["llava", "sdpa"]


def sample(number: int, size: int) -> Sample:
    maker = tiny.Maker("llava")
    inputs = maker.inputs([tiny.Row([maker.text(4 + number), maker.picture(number), maker.text(5)])])
    answer = torch.randint(3, 30, (size,), generator=torch.Generator().manual_seed(number))
    return Sample(f"s{number}", ("a b",), lambda: Rounds(inputs, (answer,)))


SAMPLES = [sample(0, 9), sample(1, 15), sample(2, 12)]
GENERATION = Generation(lambda ids: " ".join(map(str, ids.tolist())), OverlapScore("length", lambda a, b: len(a) / 100), 6)


@pytest.fixture(scope="module")
def scores(model):
    return evaluate(model, SAMPLES, [GATE, PRUNE, BOTH, GATE], GENERATION)


@pytest.mark.full
def test_every_plan_once_and_the_plain_model_first(scores, model):
    assert list(scores) == ["none", GATE, PRUNE, BOTH]
    assert all(len(own) == 3 for own in scores.values())
    assert foveate.detach(model) is False


def test_counts_by_hand(scores):
    total = [8, 14, 11]
    assert [one.output_tokens for one in scores["none"]] == [(n, n) for n in total]
    # Tokens 1, 3, 5, ... are stored; the newest, number n - 1, is computed in any case.
    computed = [sum(number % 2 == 1 or number == n - 1 for number in range(n)) for n in total]
    assert [one.output_tokens for one in scores[GATE]] == list(zip(total, computed, strict=True))
    for plain, gated, pruned, both in zip(*scores.values(), strict=True):
        assert plain.kv_bytes > gated.kv_bytes > both.kv_bytes and plain.kv_bytes > pruned.kv_bytes
        assert plain.kv_bytes - both.kv_bytes == (plain.kv_bytes - gated.kv_bytes) + (plain.kv_bytes - pruned.kv_bytes)
        assert pruned.output_flops == plain.output_flops > gated.output_flops == both.output_flops
        assert plain.last_pass_flops > gated.last_pass_flops > both.last_pass_flops


def test_flops_are_those_of_the_estimate_and_of_equation_13(scores, model):
    decoder = foveate.families.family_for(model.config).model_shape(model.config).decoder
    for one, gated, asked in zip(scores["none"], scores[GATE], SAMPLES, strict=True):
        inputs = asked.rounds().inputs
        visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
        text = inputs["input_ids"].shape[1] - visual + one.output_tokens[0]
        for plan, score in (("none", one), (PRUNE, scores[PRUNE][SAMPLES.index(asked)])):
            cost = foveate.estimate(model, plan, [(64, 64)], text_tokens=text, max_new_tokens=0)
            assert cost.visual_tokens_per_layer[0][0] == visual
            assert score.last_pass_flops == cost.llm_prefill_flops.plan
        c = decoder.hidden

        def eq13(n, c=c):
            return 32 * n * c * c + 4 * n * n * c

        total, computed = gated.output_tokens
        assert one.output_flops == decoder.layers * eq13(total)
        assert gated.output_flops == 2 * eq13(total) + (decoder.layers - 2) * eq13(computed)


def test_generated_answers_are_the_model_s_own(scores, model):
    for plan, own in scores.items():
        for one, asked in zip(own, SAMPLES, strict=True):
            inputs = asked.rounds().inputs
            with foveate.attach(model, plan):
                ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert one.generated.answers == (GENERATION.decode(ids),)
            assert one.generated.overlap == len(one.generated.answers[0]) / 100
            total, computed = one.generated.output_tokens
            assert total == len(ids) - 1 and (computed < total) == ("gate" in plan)
            held, lasting = one.generated.kv_bytes_held, one.generated.kv_bytes
            assert lasting < held if "gate" in plan else lasting == held


def test_rows_compare_each_sample_with_itself(scores):
    rows = {row.plan: row for row in summarize(scores)}
    plain, gated = rows["none"], rows[GATE]
    assert plain.perplexity_difference.value == 0 and plain.kv_share == plain.output_flops_share == 1
    changes = [after.perplexity - before.perplexity for before, after in zip(scores["none"], scores[GATE], strict=True)]
    assert gated.perplexity_difference.value == pytest.approx(sum(changes) / 3)
    assert gated.perplexity.value == pytest.approx(sum(one.perplexity for one in scores[GATE]) / 3)
    assert min(changes) <= gated.perplexity_difference.low <= gated.perplexity_difference.high <= max(changes)
    assert gated.output_tokens[0] == 11 and gated.kv_share < 1
    assert gated.overlap.value == pytest.approx(sum(one.generated.overlap for one in scores[GATE]) / 3)
    kv = [sum(one.kv_bytes for one in scores[name]) for name in (GATE, "none")]
    assert gated.kv_share == pytest.approx(kv[0] / kv[1])
    json.dumps([row.to_json() for row in rows.values()], allow_nan=False)


def test_references_alone_and_token_by_token(model, scores):
    seen = []
    alone = evaluate(model, SAMPLES[:2], [GATE], step_by_step=True, note=lambda plan, done: seen.append((plan, done)))
    assert seen == [("none", 1), ("none", 2), (GATE, 1), (GATE, 2)]
    for plan, own in alone.items():
        for one, before in zip(own, scores[plan], strict=False):
            assert one.generated is None and one.perplexity == pytest.approx(before.perplexity, rel=1e-4)
    assert summarize(alone)[1].overlap is None


@pytest.mark.parametrize("method", ["dynamic_image", "dynamic_instruct"])
def test_a_threshold_has_no_flops_before_its_scores(model, tmp_path, method):
    inputs = SAMPLES[0].rounds().inputs
    folder, _ = random_predictors(tmp_path, model, inputs=inputs, instruct_keep=0.5)
    plan = f'{method}(layer=2, keep=threshold:0.5, path="{folder}")'
    plain, row = summarize(evaluate(model, SAMPLES[:1], [plan]))
    assert row.last_pass_flops is None and row.last_pass_flops_share is None
    assert row.output_flops == plain.output_flops and row.kv_bytes < plain.kv_bytes


def test_what_cannot_work_is_refused_before_anything_runs(model):
    seen = []
    for samples, plans, says in (([], [], "no samples"), (SAMPLES, [PRUNE, "fastv(layer=99, keep=0.5)"], "decoder layers")):
        with pytest.raises(FoveateError, match=says):
            evaluate(model, samples, plans, note=lambda *done: seen.append(done))
    assert not seen


def test_a_perplexity_that_is_not_finite_is_refused(model):
    broken = tiny.tiny_model("llava")
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="s0: the perplexity is nan"):
        evaluate(broken, SAMPLES, [])
