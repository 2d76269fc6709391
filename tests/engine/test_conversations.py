"""What happens around one prompt: several turns, several images, video, embeddings, no cache, manual decoding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import families
from foveate.core.layout import Role
from foveate.engine.compat import CACHE, cache_in
from foveate.errors import AttachError, UnsupportedCombination
from tests import tiny
from tests.oracles.dense_reference import dense_reference, eager_attention, mask_keys
from tests.oracles.fastv import fastv_kept
from tests.spies import alive_columns, real

# fp32 sums in another order: logits are of size 10, so this is a few units in the last place.
LOGITS = 2e-4
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
FASTV = "fastv(layer=2, keep=0.4)"


def prompts(family: str, batch: int = 3) -> dict[str, Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, batch))


def types_of(family: str, ids: Tensor) -> dict[str, Tensor]:
    """What the family's processor says about each column."""
    return tiny.Maker(family).side_inputs(ids)


def next_turn(family: str, answer, inputs: dict[str, Tensor], more: Tensor) -> dict[str, Tensor]:
    """Inputs of a next turn: everything said so far, and `more` [B, n]."""
    ids = torch.cat([answer.sequences, more], 1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - inputs["attention_mask"].shape[1]), value=1)
    return {"input_ids": ids, "attention_mask": mask, **types_of(family, ids)}


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize(
    ("batch", "length"),
    [(1, 1), (3, 6), (1, 6), (3, 1)],
)
def test_a_text_turn_on_a_pruned_cache_equals_the_dense_reference(model_of, family, batch, length):
    model, inputs = model_of(family), prompts(family, batch)
    more = torch.stack([tiny.Maker(family, seed).text(length) for seed in range(batch)])
    with foveate.attach(model, FASTV) as attachment:
        first = tiny.generate(model, inputs)
        alive = {2: alive_columns(attachment.trace, inputs)[0]}
        again = next_turn(family, first, inputs, more)
        second = tiny.generate(model, again, **{CACHE: cache_in(first)})
        third = next_turn(family, second, again, more)
        last = tiny.generate(model, third, **{CACHE: cache_in(second)})
    with dense_reference(model, alive):
        dense = tiny.generate(model, inputs | again, use_cache=False)
        dense_last = tiny.generate(model, inputs | third, use_cache=False)
    assert torch.equal(second.sequences, dense.sequences)
    assert tiny.greatest_difference(second, dense) < LOGITS
    assert tiny.greatest_difference(last, dense_last) < LOGITS


@every_family
def test_a_turn_may_name_the_grids_and_types_of_the_turns_before_it(model_of, family):
    model, inputs = model_of(family), prompts(family, 1)
    with foveate.attach(model, FASTV):
        first = tiny.generate(model, inputs)
        again = next_turn(family, first, inputs, torch.tensor([[5, 6, 7]]))
        cache = copy.deepcopy(cache_in(first))
        expected = tiny.generate(model, again, **{CACHE: cache})
        grids = {name: value for name, value in inputs.items() if name.endswith("grid_thw")}
        answer = tiny.generate(model, again | grids, **{CACHE: cache_in(first)})
    assert tiny.greatest_difference(answer, expected) == 0


@pytest.mark.pairs
@pytest.mark.since((5, 23), "before, Gemma 3 sees a second turn's image through the mask of its first")
@pytest.mark.parametrize("family", tiny.PLAIN_ANCHORS)  # transformers cannot continue a Qwen chat with a new image
@pytest.mark.parametrize("plan", [FASTV, "fastv(layer=2, keep=0.5, query=text)", "random(layer=2, keep=0.3)"])
def test_a_turn_with_a_new_image_equals_the_dense_reference(model_of, family, plan):
    model, maker = model_of(family), tiny.Maker(family)
    inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    turn = maker.inputs([tiny.Row([maker.text(4), maker.picture(), maker.text(6)])])
    with foveate.attach(model, plan) as attachment:
        first = tiny.generate(model, inputs)
        old = alive_columns(attachment.trace, inputs)[0]
        again = next_turn(family, first, inputs, turn["input_ids"])
        second = tiny.generate(model, again | {"pixel_values": turn["pixel_values"]}, **{CACHE: cache_in(first)})
        assert len(attachment.trace) == 1
        entry = attachment.trace.media[0]
        past = again["input_ids"].shape[1] - turn["input_ids"].shape[1]
        width = cache_in(first).layers[3].slots
    # The last generated token was never in the cache: it comes with the next turn.
    new = alive_columns(attachment.trace, {"input_ids": again["input_ids"][:, past - 1 :]})[0]
    assert len(entry.kept_index) < 36
    alive = torch.cat([old, torch.ones(1, past - 1 - old.shape[1], dtype=torch.bool), new], 1)
    pixels = torch.cat([inputs["pixel_values"], turn["pixel_values"]])
    with dense_reference(model, {2: alive}):
        dense = tiny.generate(model, again | {"pixel_values": pixels}, use_cache=False)
    assert torch.equal(second.sequences, dense.sequences)
    assert tiny.greatest_difference(second, dense) < LOGITS
    assert width < again["input_ids"].shape[1]


@every_family
def test_a_batch_of_no_one_and_two_images_equals_the_rows_alone(model_of, family):
    model, maker, alone = model_of(family), tiny.Maker(family), tiny.Maker(family)
    rows = [
        tiny.Row([maker.text(11)]),
        tiny.Row([maker.picture(), maker.text(2), maker.picture(), maker.text(9)]),  # starts with an image
        tiny.Row([maker.text(2), maker.picture(), maker.text(1)]),
        tiny.Row([maker.text(2), maker.picture(), maker.picture(), maker.text(4)]),  # side by side
    ]
    if tiny.axes_differ(family):  # it tells images apart by the tokens between them
        rows[3].pieces.insert(2, maker.text(1))
    with foveate.attach(model, "random(site=pre_llm, keep=0.7) | fastv(layer=2, keep=0.4)"):
        together = tiny.generate(model, maker.inputs(rows), tokens=4)
        for number, row in enumerate(rows):
            single = tiny.generate(model, alone.inputs([row]), tokens=4)
            assert torch.equal(together.sequences[number, -4:], single.sequences[0, -4:])
            difference = max(float((a[number] - b[0]).abs().max()) for a, b in zip(together.logits, single.logits, strict=True))
            assert difference < LOGITS


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.VIDEO_FAMILIES)
@pytest.mark.parametrize("scope", ["frame", "medium", "sample"])
@pytest.mark.parametrize("batch", [1, 2])
def test_video_equals_the_dense_reference(model_of, family, scope, batch):
    model, maker, layer = model_of(family), tiny.Maker(family), tiny.FIRST_LAYER[family]
    # Where frames and images have the same placeholder, one call cannot hold both.
    beside = maker.picture(1, *([] if "video" in families.get(family).placeholders else ["video"]))
    rows = [
        tiny.Row([maker.text(4), maker.picture(0, "video"), maker.text(3), beside, maker.text(5)]),
        tiny.Row([maker.picture(1, "video"), maker.text(6)]),
    ][:batch]
    inputs = maker.inputs(rows)
    plan = f"random(site=pre_llm, keep=0.75, scope={scope}) | fastv(layer={layer}, keep=0.5, scope={scope})"
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        pruned = model(**inputs).logits
        first, second = alive_columns(attachment.trace, inputs)
        video = attachment.trace.media[0]
        answer = tiny.generate(model, inputs)
    t, h, w = video.medium.shape.grid
    assert t > 1
    if scope == "frame":
        kept = torch.bincount(video.kept_index // (h * w), minlength=t)
        assert kept.tolist() == [kept_of(kept_of(h * w, 0.75), 0.5)] * t
    elif scope == "medium":
        assert len(video.kept_index) == kept_of(kept_of(t * h * w, 0.75), 0.5)
    alive = {0: first, layer: second}
    with torch.no_grad(), dense_reference(model, alive):
        reference = model(**inputs).logits
        dense = tiny.generate(model, inputs, use_cache=False)
    everywhere = real(inputs) & first & second
    assert float((pruned - reference)[everywhere].abs().max()) < LOGITS
    assert tiny.greatest_difference(answer, dense) < LOGITS


def kept_of(count: int, ratio: float) -> int:
    return int(count * ratio + 0.5)


@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_embeddings_instead_of_ids_give_the_same_answer(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    embeds = {k: v for k, v in inputs.items() if k != "input_ids"}
    embeds["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"]).detach()
    if tiny.axes_differ(family):
        # Qwen finds the positions of images in ids only, so who passes embeddings passes positions too.
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"], attention_mask=inputs["attention_mask"]
        )
        inputs["position_ids"] = embeds["position_ids"] = positions
    with torch.no_grad(), foveate.attach(model, FASTV) as attachment:
        expected = model(**inputs).logits
        kept = [entry.kept_index.tolist() for entry in attachment.trace]
        logits = model(**embeds).logits
        assert [entry.kept_index.tolist() for entry in attachment.trace] == kept
        if family == "llava":  # transformers generates from embeddings with it only
            answer, by_embeds = tiny.generate(model, inputs), tiny.generate(model, embeds)
            assert tiny.greatest_difference(answer, by_embeds) < LOGITS
    assert float((logits - expected).abs().max()) < LOGITS


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_without_a_cache_every_step_chooses_anew(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    with foveate.attach(model, "fastv(layer=2, keep=0.2)") as attachment:
        answer = tiny.generate(model, inputs, use_cache=False)
        assert len(attachment.trace) == (1 if batch == 1 else 3)
        last = [entry.kept_index.tolist() for entry in attachment.trace]
    # The last step saw everything but its own token, and its last query was the token before.
    said = {**inputs, "input_ids": answer.sequences[:, :-1]}
    said["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
    said |= types_of(family, said["input_ids"])
    attention = eager_attention(model, said, {})[1]
    for entry, kept in zip(attachment.trace, last, strict=True):
        columns = entry.medium.columns
        keep = int(len(columns) * 0.2 + 0.5)
        expected = fastv_kept(attention, entry.medium.row, columns.tolist(), [said["input_ids"].shape[1] - 1], keep)
        assert columns[kept].tolist() == expected


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_masking_equals_dropping_in_the_prefill_and_saves_nothing(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    plain = tiny.generate(model, inputs, tokens=1)
    with torch.no_grad():
        with foveate.attach(model, FASTV):
            dropped = model(**inputs).logits[:, -1]
        with foveate.attach(model, f"{FASTV[:-1]}, effect=mask)") as attachment:
            masked = model(**inputs).logits[:, -1]
            cache = cache_in(tiny.generate(model, inputs, tokens=1))
            assert attachment.last.measured.prefill_kv_bytes == sum(k.keys.nbytes + k.values.nbytes for k in cache.layers)
    assert float((masked - dropped).abs().max()) < LOGITS
    assert float((masked - plain.logits[0]).abs().max()) > 100 * LOGITS
    assert [layer.keys.shape for layer in cache.layers] == [layer.keys.shape for layer in cache_in(plain).layers]


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_masking_ranks_anew_at_every_decode_step(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    with foveate.attach(model, "fastv(layer=2, keep=0.2, effect=mask)") as attachment:
        answer = tiny.generate(model, inputs, tokens=5)
        media = attachment.trace.media
        assert len(media) == (1 if batch == 1 else 3), "the trace holds the last step's choice, not every step's"
    with mask_of_each_query(model, inputs, answer.sequences, media, family, 0.2) as choices:
        dense = tiny.generate(model, inputs, tokens=5, use_cache=False)
    assert torch.equal(answer.sequences, dense.sequences)
    assert tiny.greatest_difference(answer, dense) < LOGITS
    assert len({str(choice) for choice in choices}) > 1, "no step chose otherwise than the prefill"


class mask_of_each_query:  # noqa: N801 - reads as a block
    """A dense reference for effect=mask: each generated token has its own choice, the prompt has the last prompt token's.

    Uses that the plain model below layer 2 does not depend on the choice, so one eager call knows every token's ranking.
    """

    def __init__(self, model: nn.Module, inputs, sequences: Tensor, media, family: str, ratio: float) -> None:
        said = {**inputs, "input_ids": sequences}
        prompt, width = inputs["input_ids"].shape[1], sequences.shape[1]
        said["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, width - prompt), value=1)
        said |= types_of(family, sequences)
        attention = eager_attention(model, said, {})[1]
        self.hidden = torch.zeros(len(sequences), width, width, dtype=torch.bool)  # [B, query, key]
        self.choices = []
        for step in range(prompt - 1, width):
            queries = slice(0, prompt) if step == prompt - 1 else slice(step, step + 1)
            for entry in media:
                row, columns = entry.medium.row, entry.medium.columns
                kept = fastv_kept(attention, row, columns.tolist(), [step], int(len(columns) * ratio + 0.5))
                gone = columns[~torch.isin(columns, torch.tensor(kept))]
                self.hidden[row, queries, gone] = True
                self.choices.append((row, tuple(kept)) if entry.medium.index == 0 and row == 0 else None)
        self.model = model

    def __enter__(self):
        def hook(_, args, kwargs):
            size = args[0].shape[1]
            mask = mask_keys(kwargs.get("attention_mask"), torch.ones(len(self.hidden), size, dtype=torch.bool), size)
            gone = self.hidden[:, None, :size, :size]
            lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            kwargs["attention_mask"] = mask.expand(len(self.hidden), -1, -1, -1).masked_fill(gone, lowest)
            return args, kwargs

        layers = self.model.model.language_model.layers
        self.handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers[2:]]
        return [choice for choice in self.choices if choice is not None]

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.since((5, 17), "before, prompt lookup needs an end token")
@every_family
def test_masking_refuses_what_would_need_several_choices_at_once(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    phrase = maker.text(4)
    inputs = maker.inputs([tiny.Row([phrase, maker.picture(), phrase])])
    with torch.no_grad(), foveate.attach(model, f"{FASTV[:-1]}, effect=mask)") as attachment:
        first = tiny.generate(model, inputs)
        again = next_turn(family, first, inputs, torch.tensor([[5, 6, 7]]))
        with pytest.raises(UnsupportedCombination, match="effect=drop"):
            tiny.generate(model, again, **{CACHE: cache_in(first)})
        with pytest.raises(UnsupportedCombination, match="effect=drop"):
            tiny.generate(model, inputs, tokens=20, prompt_lookup_num_tokens=3)
        for columns in (1, 2):
            step = {"input_ids": first.sequences[:, -columns:], CACHE: cache_in(first)}
            with pytest.raises(UnsupportedCombination, match=r"attachment\.conversation\(\)"):
                model(**step)
        with attachment.conversation(prompt_length=inputs["input_ids"].shape[1]):
            cache = cache_in(model(**inputs, use_cache=True))
            with pytest.raises(UnsupportedCombination, match="effect=drop"):
                model(input_ids=torch.tensor([[5, 6]]), **{CACHE: cache})


@every_family
@pytest.mark.parametrize("plan", [FASTV, f"{FASTV[:-1]}, effect=mask)"])
def test_a_conversation_with_a_manual_decode_loop_equals_generate(model_of, family, plan):
    model, inputs = model_of(family), prompts(family, 1 if tiny.axes_differ(family) else 3)
    width = inputs["input_ids"].shape[1]
    # What generate() passes too; Qwen finds its own.
    first = {} if tiny.axes_differ(family) else {"position_ids": (real(inputs).long().cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad(), foveate.attach(model, plan) as attachment:
        answer = tiny.generate(model, inputs)
        expected = [entry.kept_index.tolist() for entry in attachment.trace]
        with attachment.conversation(prompt_length=width) as talk:
            out = model(**inputs, **first, use_cache=True)
            positions = real(inputs).long().sum(1, keepdim=True)
            if tiny.axes_differ(family):
                positions = positions + model.model.rope_deltas
            for step in range(6):
                assert float((out.logits[:, -1] - answer.logits[step]).abs().max()) < LOGITS
                if step == 5:
                    break
                mask = torch.nn.functional.pad(inputs["attention_mask"], (0, step + 1), value=1)
                position_ids = positions + step
                out = model(
                    input_ids=answer.sequences[:, width + step, None],
                    attention_mask=mask,
                    position_ids=position_ids.expand(3, -1, -1) if tiny.axes_differ(family) else position_ids,
                    **{CACHE: cache_in(out)},
                )
        assert attachment.last is talk
        assert [entry.kept_index.tolist() for entry in attachment.trace] == expected
        assert bool((talk.layout.roles[real(inputs)] != int(Role.OUTPUT)).all())


@pytest.mark.parametrize("family", tiny.PLAIN_ANCHORS)
def test_a_new_image_in_an_open_conversation_is_pruned_too(model_of, family):
    model, maker = model_of(family), tiny.Maker(family)
    first = maker.inputs([tiny.Row([maker.text(5), maker.picture(), maker.text(7)])])
    then = maker.inputs([tiny.Row([maker.text(4), maker.picture(), maker.text(6)])], mask=False)
    with torch.no_grad(), foveate.attach(model, "uniform(layer=2, keep=0.25)") as attachment:
        with attachment.conversation(prompt_length=48):
            cache = cache_in(model(**first, use_cache=True))
            slots = cache.layers[4].slots
            model(**then, **{CACHE: cache})
        assert [len(entry.kept_index) for entry in attachment.trace] == [9, 9]
        assert cache.layers[4].slots == slots + 19


def test_keep_traces_remembers_the_last_conversations(model_of):
    model, maker = model_of("llava"), tiny.Maker("llava")
    with foveate.attach(model, FASTV, keep_traces=2) as attachment:
        with pytest.raises(AttachError, match="generate"):
            attachment.trace  # noqa: B018
        answers = []
        for _ in range(3):
            tiny.generate(model, maker.inputs([tiny.Row([maker.text(4), maker.picture(), maker.text(5)])]), tokens=2)
            answers.append(attachment.trace.media[0].kept_index.tolist())
        tiny.generate(model, maker.inputs([tiny.Row([maker.text(4)])]), tokens=2)  # text only: nothing to remember
        assert [trace.media[0].kept_index.tolist() for trace in attachment.traces] == answers[1:]
    assert attachment.trace.media[0].kept_index.tolist() == answers[-1]
    for talk in attachment._conversations:
        assert not talk.inputs, "a finished conversation keeps no pixels and no cache alive"


@every_family
def test_a_pruned_cache_without_its_plan_is_refused(model_of, family):
    model, inputs = model_of(family), prompts(family, 1)
    with foveate.attach(model, FASTV) as attachment:
        first = tiny.generate(model, inputs)
        again = next_turn(family, first, inputs, torch.tensor([[5, 6]]))
        with attachment.disabled(), pytest.raises(AttachError, match="attach the plan again"):
            tiny.generate(model, again, **{CACHE: copy.deepcopy(cache_in(first))})
    with pytest.raises(AttachError, match="attach the plan again"):
        tiny.generate(model, again, **{CACHE: copy.deepcopy(cache_in(first))})
    with foveate.attach(model, FASTV):
        tiny.generate(model, again, **{CACHE: cache_in(first)})


@pytest.mark.pairs
@every_family
@pytest.mark.parametrize("batch", [1, 3])
def test_a_copy_of_a_pruned_cache_continues_like_the_original(model_of, family, batch):
    model, inputs = model_of(family), prompts(family, batch)
    more = torch.arange(5, 9).expand(batch, -1)
    with foveate.attach(model, FASTV):
        first = tiny.generate(model, inputs)
        copied = copy.deepcopy(cache_in(first))
        again = next_turn(family, first, inputs, more)
        one = tiny.generate(model, again, **{CACHE: cache_in(first)})
        two = tiny.generate(model, again, **{CACHE: copied})
    assert all(torch.equal(a, b) for a, b in zip(one.logits, two.logits, strict=True))
