"""What stages of the decoder learn of the vision encoder: against full maps, carried to the prompt by the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import families
from foveate.core.encoder import PackedPath, RasterPath
from foveate.core.view import EncoderAttention, EncoderKeys, QuestionTokens
from foveate.engine import compat, prefill
from foveate.errors import InputError, PlanError, UnsupportedCombination
from tests import examples, tiny
from tests.oracles.dense_reference import decoder_layers

SCORES = 1e-5
MEASURED = [name for name in tiny.ALL_FAMILIES if families.get(name).encoder(tiny.probed(name)) is not None]
OTHERS = [name for name in tiny.ALL_FAMILIES if name not in MEASURED]
LOOKING = [one for one in examples.firsts() if any(need.encodes for need in one.needs())]
NEEDS = (EncoderAttention(), EncoderAttention(0.5, "all"), EncoderKeys(0.5))


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch, needs: tuple[Any, ...]) -> Iterator[list[Any]]:
    """What stages are told of the encoder, [B, S, ...], and the columns of each medium, where they ask for `needs`."""
    found: list[Any] = []
    original = prefill.encoder_values

    def told(running: Any, need: Any, hidden: Tensor) -> Tensor:
        values = original(running, need, hidden)
        found.append((need, values, [(medium.row, medium.columns) for medium in running.left.layout.media]))
        return values

    with monkeypatch.context() as patched:
        patched.setattr(prefill, "encoder_values", told)
        patched.setattr(type(LOOKING[0]), "needs", lambda self: needs)
        patched.setattr(type(LOOKING[0]), "select", lambda self, view, keep: _first(view, keep))
        yield found


def _first(view: Any, keep: int) -> Any:
    from foveate.core.selection import Selection

    return Selection(torch.arange(keep).expand(view.group_count, -1).contiguous())


@contextmanager
def shown(model: nn.Module, family: str, need: Any, inputs: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """The plain model's states in front of the decoder, where each visual token is what was measured of it, by full maps."""
    path: Any = families.get(family).encoder(model.config)
    maps: list[tuple[Tensor, Tensor]] = []
    states: list[Tensor] = []
    sdpa, inside = nn.functional.scaled_dot_product_attention, [False]

    def recorded(query: Tensor, given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if inside[0]:
            key = given.repeat_interleave(query.shape[1] // given.shape[1], dim=1)
            scores = query.double() @ key.double().mT * (kwargs.get("scale") or query.shape[-1] ** -0.5)
            mask = kwargs.get("attn_mask")
            if mask is not None:  # pictures side by side in one sequence: only those of a patch's own picture count
                seen = (mask == 0).expand(scores.shape)
                scores = scores.masked_fill(~seen, -torch.inf)
                weights = scores.softmax(-1) * seen.shape[2] / seen.sum(2, keepdim=True)
            else:
                weights = scores.softmax(-1)
            maps.append((weights.mean(1), given.double().mean(1)))
        return sdpa(query, given, *args, **kwargs)

    def of_unit(values: Tensor) -> Tensor:
        if isinstance(path, RasterPath):
            sides = [(high // path.patch, wide // path.patch) for high, wide in inputs["image_sizes"].tolist()]
            whole = [part.view(*side) for part, side in zip(values.split([h * w for h, w in sides]), sides, strict=True)]
            return torch.cat([nn.functional.avg_pool2d(one[None, None], path.unit).flatten() for one in whole])
        if isinstance(path, PackedPath):
            return values.reshape(-1, path.unit**2).mean(1)
        (height, width), unit = path.grid, path.unit
        squares = values.view(-1, height // unit, unit, width // unit, unit)
        return squares.mean((2, 4)).flatten(1)

    def replaced(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not maps:  # no call for a picture
            return None
        prefix = getattr(path, "prefix", 0)
        if isinstance(need, EncoderKeys):
            values = [keys[..., 1] for _, keys in maps]
        elif need.rows == "class" and prefix:
            values = [weights[:, 0] for weights, _ in maps]
        else:
            values = [weights.mean(1) for weights, _ in maps]
        whole = torch.cat([value.flatten() for value in values]) if isinstance(path, PackedPath) else torch.cat(values)
        maps.clear()
        units = of_unit(whole if isinstance(path, PackedPath) else whole[:, prefix:]).to(output.dtype)
        if units.ndim == 2 and units.shape[1] < output.shape[1]:  # the class token is shown too
            units = nn.functional.pad(units, (output.shape[1] - units.shape[1], 0))
        if output.ndim == 4:  # [B, h, w, D]
            units = units.view(output.shape[:3])
        return units[..., None].expand_as(output).contiguous()

    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [decoder_layers(model)[0].register_forward_pre_hook(entering, with_kwargs=True)]
    for name in path.towers:
        tower = model.get_submodule(name)
        attention = compat.encoder_layers(tower)[path.layer_at(need.depth)].get_submodule(path.attention)
        handles.append(attention.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)))
        handles.append(attention.register_forward_hook(lambda *_: inside.__setitem__(0, False)))
        within = isinstance(path, PackedPath) and not isinstance(path, RasterPath)
        behind = path.merger if isinstance(path, RasterPath) else getattr(path, "projector", "")
        projector = tower.get_submodule(path.merger) if within else model.get_submodule(behind)
    handles.append(projector.register_forward_hook(replaced))
    nn.functional.scaled_dot_product_attention = recorded
    try:
        yield states
    finally:
        nn.functional.scaled_dot_product_attention = sdpa
        for handle in handles:
            handle.remove()


@pytest.mark.pairs(every_family=True)
@pytest.mark.parametrize(("family", "need"), [(family, need) for family in MEASURED for need in NEEDS], ids=str)
def test_what_was_measured_is_what_full_maps_say_and_where_the_model_puts_it(model_of, monkeypatch, family, need):
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    inputs = maker.inputs(tiny.ragged_rows(maker, 3))
    with shown(model, family, need, inputs) as states, torch.no_grad():
        model(**inputs)
    plan = f"{LOOKING[0].name}(site=pre_llm, keep=0.5)"
    with spied(monkeypatch, (need,)) as found, torch.no_grad(), foveate.attach(model, plan):
        model(**inputs)
    assert found
    for told, values, media in found:
        assert told == need
        seen = values[..., 1] if isinstance(need, EncoderKeys) else values
        own = torch.cat([seen[row, columns] for row, columns in media])
        expected = torch.cat([states[0][row, columns, 0] for row, columns in media])
        assert float(expected.abs().max()) > 0
        # Some families scale all features by a constant.
        scale = float(own.abs().max() / expected.abs().max())
        torch.testing.assert_close(own, expected * scale, atol=SCORES, rtol=1e-4)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("method", LOOKING, ids=str)
def test_where_an_encoder_is_not_described_the_plan_is_refused(model_of, method, family):
    with pytest.raises(UnsupportedCombination, match="choose by features alone or by the decoder's attention"):
        foveate.attach(model_of(family, "sdpa"), f"{method.name}(site=pre_llm, keep=0.5)")


@pytest.mark.since((5, 20), "before, features are not passed as mm_encoder_outputs")
def test_features_of_before_the_call_are_refused_where_the_encoder_is_asked(model_of):
    model, maker = model_of("llava", "sdpa"), tiny.Maker("llava")
    inputs = maker.inputs(tiny.ragged_rows(maker, 1))
    plan = f"{LOOKING[0].name}(site=pre_llm, keep=0.5)"
    with torch.no_grad():
        features = {"image": model.get_image_features(inputs["pixel_values"])}
        with foveate.attach(model, plan), pytest.raises(InputError, match="were encoded before this call"):
            model(input_ids=inputs["input_ids"], mm_encoder_outputs=features)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("scope(layer=2, keep=0.5, effect=mask)", "leave effect=mask out|hidden states"),
        ("scope(site=vision, layer=1, keep=0.5)", "cannot act at site"),
        ("cdpruner(layer=2, keep=0.5)", "cannot act at site"),
    ],
)
def test_plans_without_meaning_are_refused(model_of, plan, said):
    with pytest.raises(PlanError, match=said):
        foveate.attach(model_of("llava", "sdpa"), plan)


@pytest.mark.pairs
@pytest.mark.parametrize("family", tiny.ALL_FAMILIES)
def test_the_question_of_each_row_is_its_own_text(model_of, monkeypatch, family):
    model, maker = model_of(family, "sdpa"), tiny.Maker(family)
    rows = tiny.ragged_rows(maker, 3)
    inputs, found = maker.inputs(rows), list[Any]()
    original = prefill.question_tokens

    def told(running: Any, spans: Any, hidden: Tensor) -> Tensor:
        words = original(running, spans, hidden)
        found.append((hidden, [span.row for span in spans], words))
        return words

    monkeypatch.setattr(prefill, "question_tokens", told)
    asking = next(one for one in examples.firsts() if QuestionTokens() in one.needs())
    with torch.no_grad(), foveate.attach(model, f"{asking.name}(site=pre_llm, keep=0.5)"):
        model(**inputs)
    placeholders = families.get(family).placeholder_ids(model.config).values()
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    for hidden, of_rows, words in found:
        for row, own in zip(of_rows, words, strict=True):
            last = max(c for c in range(ids.shape[1]) if int(ids[row, c]) in placeholders)
            text = [c for c in range(last + 1, ids.shape[1]) if real[row, c]]
            assert torch.equal(own[: len(text)], hidden[row, text].float())
            assert not own[len(text) :].any()
