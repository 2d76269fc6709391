"""Invariant 8: everything that generate() and forward() do with the plain model works on a pruned one, or is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

import foveate
from foveate import families
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import UnsupportedCombination
from tests import tiny
from tests.oracles.dense_reference import dense_reference
from tests.spies import alive_columns, layer_calls, real

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
# The same for beam scores, which are means of log probabilities of size 1.
SCORES = 1e-4
# Gradients of size 1 through the same kernels in the same order; checkpointing recomputes, it does not reorder.
GRADIENTS = 1e-5

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
FASTV = "fastv(layer=2, keep=0.4)"


def prompts(family: str, batch: int = 3, side: str = "left") -> dict[str, Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch), side=side)


def frozen(model: nn.Module, inputs: dict[str, Tensor], plan: str = FASTV) -> dict[int, Tensor]:
    """{2: [B, S]}: what one prefill keeps."""
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        model(**inputs)
        return {2: alive_columns(attachment.trace, inputs)[0]}


@every_family
def test_invariant_8_greedy_equals_the_dense_reference(model_of, family):
    model, inputs = model_of(family), prompts(family)
    with dense_reference(model, frozen(model, inputs)):
        dense = tiny.generate(model, inputs, tokens=10, use_cache=False)
    with foveate.attach(model, FASTV):
        answer = tiny.generate(model, inputs, tokens=10)
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS


@every_family
def test_invariant_8_sampling_with_a_seed_equals_the_dense_reference(model_of, family):
    model, inputs = model_of(family), prompts(family)
    options: dict[str, Any] = dict(do_sample=True, temperature=1.5, top_k=0, tokens=8)
    with dense_reference(model, frozen(model, inputs)):
        torch.manual_seed(7)
        dense = tiny.generate(model, inputs, use_cache=False, **options)
    with foveate.attach(model, FASTV):
        torch.manual_seed(7)
        answer = tiny.generate(model, inputs, **options)
        torch.manual_seed(8)
        other = tiny.generate(model, inputs, **options)
    assert torch.equal(answer.sequences, dense.sequences)
    assert not torch.equal(answer.sequences, other.sequences)


@pytest.mark.pairs
@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_invariant_8_beam_search_equals_the_dense_reference(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    options: dict[str, Any] = dict(num_beams=3, output_scores=True, tokens=7)
    alive = {layer: columns.repeat_interleave(3, 0) for layer, columns in frozen(model, inputs).items()}
    with dense_reference(model, alive):
        dense = tiny.generate(model, inputs, use_cache=False, **options)
    with foveate.attach(model, FASTV):
        answer = tiny.generate(model, inputs, **options)
    assert torch.equal(answer.sequences, dense.sequences)
    assert float((answer.sequences_scores - dense.sequences_scores).abs().max()) < SCORES


@pytest.mark.parametrize("family", tiny.PLAIN_ANCHORS)
def test_invariant_8_beam_search_may_run_long(model_of, family):
    # What a cache layer remembers about itself must not grow with every reordering.
    model, inputs = model_of(family), prompts(family, 2)
    with foveate.attach(model, FASTV):
        cache = cache_in(tiny.generate(model, inputs, tokens=1))
        for _ in range(3000):
            for layer in cache.layers[2:]:
                layer.reorder_cache(torch.tensor([1, 0]))
        width = cache.get_seq_length()
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        with torch.no_grad():
            model(input_ids=torch.tensor([[5], [6]]), attention_mask=mask, **{CACHE: copy.deepcopy(cache)})
        assert cache.get_seq_length() == width


@pytest.mark.since((5, 18), "before, transformers repeats pictures for beams without their rows")
@every_family
def test_invariant_8_several_return_sequences_share_a_selection(model_of, family):
    model, inputs = model_of(family), prompts(family, 2)
    with foveate.attach(model, FASTV) as attachment:
        torch.manual_seed(3)
        answer = tiny.generate(model, inputs, do_sample=True, num_return_sequences=2, tokens=3)
        kept = {(e.medium.row, e.medium.index): e.kept_index.tolist() for e in attachment.trace}
    assert answer.sequences.shape[0] == 4
    assert kept[0, 0] == kept[1, 0]
    assert kept[2, 0] == kept[3, 0]
    assert kept[2, 1] == kept[3, 1]


@pytest.mark.since((5, 17), "before, prompt lookup needs an end token")
@every_family
def test_invariant_8_prompt_lookup_equals_greedy(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    phrase = maker.text(4)
    inputs = maker.inputs([tiny.Row([phrase, maker.picture(), phrase, maker.text(3), phrase])])
    with foveate.attach(model, FASTV), layer_calls(model, 3) as calls:
        greedy = tiny.generate(model, inputs, tokens=24)
        calls.clear()
        assisted = tiny.generate(model, inputs, tokens=24, prompt_lookup_num_tokens=3)
        guesses = [call["hidden"].shape[1] for call in calls[1:]]
    assert max(guesses) > 1, "no candidate was ever tried"
    assert torch.equal(assisted.sequences, greedy.sequences)


class Listener(BaseStreamer):
    """Remembers what it is told, as TextStreamer prints it."""

    def __init__(self) -> None:
        self.heard: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.heard.append(value.flatten())

    def end(self) -> None:
        self.ended += 1


@every_family
def test_invariant_8_streaming_tells_every_token(model_of, family):
    model, inputs, listener = model_of(family), prompts(family, 1), Listener()
    with foveate.attach(model, FASTV):
        answer = tiny.generate(model, inputs)
        streamed = tiny.generate(model, inputs, streamer=listener)
    assert torch.equal(torch.cat(listener.heard), answer.sequences[0])
    assert torch.equal(streamed.sequences, answer.sequences)
    assert listener.ended == 1


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_invariant_8_labels_predicted_from_pruned_positions_are_ignored_and_counted(model_of, family, side):
    model, inputs = model_of(family), prompts(family, side=side)
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == tiny.IMAGE) | ~real(inputs), -100)
    given = labels.clone()
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)") as attachment:
        out = model(**inputs, labels=labels)
        counted = attachment.last.ignored_labels
        alive = alive_columns(attachment.trace, inputs)[0]
        positional = model(inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}, labels=labels)
    assert torch.equal(labels, given)
    assert torch.equal(positional.loss, out.loss)
    lost, losses = 0, []
    for row in range(3):
        for column in range(labels.shape[1] - 1):
            target = int(labels[row, column + 1])
            if target == -100:
                continue
            if not alive[row, column]:
                lost += 1
                continue
            losses.append(-out.logits[row, column].log_softmax(-1)[target])
    assert counted == lost >= 2
    assert float(out.loss) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@every_family
def test_invariant_8_labels_of_a_failed_call_do_not_reach_the_next(model_of, family):
    model, inputs = model_of(family), prompts(family)
    labels = inputs["input_ids"].masked_fill(~real(inputs), -100)

    def fail(*_: Any) -> None:
        raise ValueError("on purpose")

    with torch.no_grad(), foveate.attach(model, FASTV) as attachment:
        handle = model.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="on purpose"):
            model(**inputs, labels=labels)
        handle.remove()
        model.model(**prompts(family, 1))
        assert attachment.last.measured.ignored == []


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", [FASTV, "uniform(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.5)"])
def test_invariant_8_hidden_states_come_back_at_full_length(model_of, family, batch, plan):
    model, inputs = model_of(family), prompts(family, batch)
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        out = model(**inputs, output_hidden_states=True)
        stages = alive_columns(attachment.trace, inputs)
    layers = [2] if len(stages) == 1 else [0, 2]
    with torch.no_grad(), dense_reference(model, dict(zip(layers, stages, strict=True))):
        dense = model(**inputs, output_hidden_states=True)
    check_hidden_states(out.hidden_states, dense.hidden_states, layers, stages, inputs)


def check_hidden_states(got, expected, layers, stages, inputs):
    width = inputs["input_ids"].shape[1]
    assert len(got) == len(expected)
    for number, (states, dense) in enumerate(zip(got, expected, strict=True)):
        assert states.shape == dense.shape == (len(stages[0]), width, 32)
        alive = real(inputs)
        # Entry 0 is what enters layer 0, entry i what leaves layer i - 1.
        for layer, columns in zip(layers, stages, strict=True):
            if max(number - 1, 0) >= layer:
                alive = alive & columns
        assert float((states - dense)[alive].abs().max()) < LOGITS
        if not bool((alive == real(inputs)).all()):
            assert bool((states[~alive] == 0).all())


@every_family
def test_invariant_8_hidden_states_come_back_when_a_text_row_is_the_longest(model_of, family):
    # The pruned batch is then as wide as the whole one, and so is every stage.
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(3), maker.picture(), maker.text(5)]), tiny.Row([maker.text(60)])])
    plan = "uniform(site=pre_llm, keep=0.6) | fastv(layer=2, keep=0.5)"
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        out = model(**inputs, output_hidden_states=True)
        stages = alive_columns(attachment.trace, inputs)
    with torch.no_grad(), dense_reference(model, dict(zip([0, 2], stages, strict=True))):
        dense = model(**inputs, output_hidden_states=True)
    check_hidden_states(out.hidden_states, dense.hidden_states, [0, 2], stages, inputs)


@pytest.mark.since((5, 23), "before, entry 0 is not counted")
@every_family
def test_invariant_8_single_hidden_states_can_be_asked_for(model_of, family):
    model, inputs = model_of(family), prompts(family)
    with torch.no_grad(), foveate.attach(model, FASTV):
        every = model(**inputs, output_hidden_states=True).hidden_states
        some = model(**inputs, output_hidden_states=[1, -2]).hidden_states
    assert len(some) == len(every)
    assert torch.equal(some[1], every[1])
    assert torch.equal(some[-2], every[-2])
    assert some[2] is None


@every_family
def test_invariant_8_output_attentions_is_refused(model_of, family):
    model, inputs = tiny.tiny_model(family, "eager"), prompts(family)
    with foveate.attach(model, FASTV):
        with pytest.raises(UnsupportedCombination, match=r"attachment\.disabled\(\)"):
            model(**inputs, output_attentions=True)
        with pytest.raises(UnsupportedCombination, match="output_attentions"):
            tiny.generate(model, inputs, output_attentions=True)
        model.model.language_model.config.output_attentions = True
        with pytest.raises(UnsupportedCombination, match="output_attentions"):
            model(**inputs)


@pytest.mark.since((5, 23), "before, hooks are replayed inside backward, and the plan refuses")
@every_family
def test_invariant_8_gradient_checkpointing_gives_the_same_gradients(family):
    model, inputs = tiny.tiny_model(family), prompts(family)
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == tiny.IMAGE) | ~real(inputs), -100)
    model.train()

    def gradients() -> tuple[float, Tensor]:
        model.zero_grad()
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain, _ = gradients()
    with foveate.attach(model, FASTV):
        loss, expected = gradients()
        model.activation_checkpointing_enable()
        again, got = gradients()
    assert loss == again != plain
    assert float((got - expected).abs().max()) < GRADIENTS
    assert float(expected.abs().max()) > 1000 * GRADIENTS


@pytest.mark.pairs
@pytest.mark.since((5, 23), "before, transformers itself answers wrongly when a chunked prompt holds pictures")
@every_family
@pytest.mark.parametrize("chunk", [1, 7, 10, 20])
def test_invariant_8_chunked_prefill_that_splits_an_image_is_refused(model_of, family, chunk):
    model, inputs = model_of(family), prompts(family, 1)  # 5 text tokens, 16 or 36 visual ones, 7 text tokens
    for plan in (FASTV, "uniform(layer=2, keep=0.5)"):
        with foveate.attach(model, plan), pytest.raises(UnsupportedCombination, match="prefill_chunk_size"):
            tiny.generate(model, inputs, prefill_chunk_size=chunk)


@pytest.mark.since((5, 23), "before, transformers itself answers wrongly when a chunked prompt holds pictures")
@every_family
def test_invariant_8_chunked_prefill_is_refused_where_the_plan_looks_at_attention(model_of, family):
    model, inputs = model_of(family), prompts(family, 1)
    visual = int((inputs["input_ids"] == tiny.IMAGE).sum())
    whole = tiny.generate(model, inputs)
    with foveate.attach(model, FASTV):
        with pytest.raises(UnsupportedCombination, match="prefill_chunk_size"):
            tiny.generate(model, inputs, prefill_chunk_size=visual + 7)
        pruned = tiny.generate(model, inputs)
        one_chunk = tiny.generate(model, inputs, prefill_chunk_size=visual + 12)
    assert tiny.greatest_difference(one_chunk, pruned) == 0 < tiny.greatest_difference(pruned, whole)


@pytest.mark.pairs
@pytest.mark.since((5, 23), "before, transformers itself answers wrongly when a chunked prompt holds pictures")
@every_family
@pytest.mark.parametrize("plan", ["uniform(layer=2, keep=0.5)", "random(site=pre_llm, keep=0.5)"])
def test_invariant_8_chunked_prefill_works_where_no_chunk_splits_an_image(model_of, family, plan):
    model, inputs = model_of(family), prompts(family, 1)
    visual = int((inputs["input_ids"] == tiny.IMAGE).sum())
    with foveate.attach(model, plan) as attachment:
        whole = tiny.generate(model, inputs)
        kept = attachment.trace.media[0].kept_index
        chunked = tiny.generate(model, inputs, prefill_chunk_size=visual + 6)
        assert torch.equal(attachment.trace.media[0].kept_index, kept)
    if not families.get(family).bidirectional or "layer" in plan:
        assert tiny.greatest_difference(chunked, whole) < LOGITS
