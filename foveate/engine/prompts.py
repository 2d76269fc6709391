"""Finding the layout that a call has: of its own arguments, or its share of the prompt of the generate() it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout
from foveate.engine import compat, forward
from foveate.engine import layout as layouts
from foveate.engine.conversation import Conversation
from foveate.engine.forward import Pass
from foveate.errors import InputError, UnsupportedCombination
from foveate.families import Family

_DRAFT = (
    "the prompt has pictures, but neither their pixel values nor their sizes reach this generate(), as in a draft model of "
    "assisted decoding: attach the plan to the model that is assisted"
)


class Prompts:
    """Layouts of the calls of one attached model.

    Args:
        owner: the attachment, as the key of passes.
        model, family: what is attached.
    """

    def __init__(self, owner: object, model: nn.Module, family: Family) -> None:
        self.owner, self.model, self.family = owner, model, family
        self.config: Any = model.config

    def layout(self, running: Pass, call: Mapping[str, Any]) -> Layout | None:
        """The layout of this pass, None if it is text only. A generate call finds the layout of its prompt once."""
        conversation, past = running.conversation, running.past
        if not conversation.inputs:
            found = self._find(conversation, past, running.labels, call, call)
            if found is not None and past == 0:
                conversation.layout = found
            return found
        if conversation.layout is None:
            conversation.layout = self._find(conversation, past, running.labels, call, conversation.inputs)
        if conversation.layout is None:
            return None
        conversation.copies = row_count(call) // conversation.layout.roles.shape[0]
        prompt_layout = conversation.layout.repeated(conversation.copies).behind(conversation.shift)
        return prompt_layout.columns_between(past, past + running.queries).extended(running.queries)

    def known(self, conversation: Conversation) -> Layout | None:
        """The layout of the prompt where the encoder runs; generate() may encode pictures before it calls the model."""
        running = forward.current(self.owner)
        if running is not None and not conversation.inputs:
            return None if running.survivors is None else running.survivors.layout
        fresh = compat.cache_of(conversation.inputs) is None and isinstance(conversation.inputs.get("input_ids"), Tensor)
        if conversation.layout is None and fresh:
            conversation.layout = self._find(conversation, 0, None, conversation.inputs, conversation.inputs)
        return conversation.layout

    def text_only(self, running: Pass, call: Mapping[str, Any]) -> Layout:
        """The layout of a call without media."""
        shape = (row_count(call), running.queries)
        mask = call.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -running.queries :].bool().cpu()
        else:
            real = torch.ones(shape, dtype=torch.bool, device="cpu")
        length = running.conversation.prompt_end
        length = None if length is None else max(length - running.past, 0)
        return Layout.of_text(real, length)

    def _find(
        self,
        conversation: Conversation,
        past: int,
        labels: Tensor | None,
        call: Mapping[str, Any],
        inputs: Mapping[str, Any],
    ) -> Layout | None:
        """The layout of `inputs`: of the whole prompt inside generate, of this call's columns otherwise."""
        length, in_generate = conversation.prompt_length, inputs is conversation.inputs
        mask = layouts.two_dimensional_mask(call, inputs, in_generate)
        ids = inputs.get("input_ids")
        embeds = None if ids is not None else inputs.get("inputs_embeds")
        embed = self.model.get_input_embeddings()  # type: ignore[operator]
        codes = layouts.column_codes(self.family, self.config, ids, embeds, mask, embed, labels)
        # Positions that generate() made itself are those of single samples.
        packing = () if in_generate else layouts.PACKING
        codes, inputs = layouts.fetch(codes, inputs, (*self.family.host_inputs, *packing))
        samples = None if in_generate else layouts.packed_samples(inputs, codes)
        if not in_generate and length is not None:
            length = length - past if length > past else None
        cached = past - conversation.shift if in_generate else 0
        try:
            return layouts.build_layout(self.family, self.config, inputs, codes, length, cached, samples)
        except InputError as error:
            layouts.refuse_hidden(self.family, self.config, ids, mask)
            pixels = any(name.startswith("pixel_values") and value is not None for name, value in inputs.items())
            if in_generate and not pixels and "is missing" in str(error):
                raise InputError(_DRAFT) from None
            raise

    def explain(self, conversation: Conversation) -> None:
        """Raise InputError if media that do not fit their placeholders made generate() fail in transformers' own code."""
        ids = conversation.inputs.get("input_ids")
        if conversation.layout is None and isinstance(ids, Tensor):
            codes = layouts.column_codes(
                self.family, self.config, ids, None, conversation.inputs.get("attention_mask"), nn.Identity()
            )
            layouts.build_layout(self.family, self.config, conversation.inputs, codes.cpu(), conversation.prompt_length)


def source_of(call: Mapping[str, Any]) -> Tensor | None:
    """The ids or embeddings of a call."""
    return call["input_ids"] if call.get("input_ids") is not None else call.get("inputs_embeds")


def row_count(call: Mapping[str, Any]) -> int:
    """Rows of a call."""
    source = source_of(call)
    assert source is not None
    return int(source.shape[0])


def prompt_mask(conversation: Conversation, call: Mapping[str, Any]) -> Tensor:
    """[B, S] bool on the CPU, False at padding: of generate's whole prompt, one row per sample."""
    source = source_of(conversation.inputs)
    assert source is not None
    mask = layouts.two_dimensional_mask(call, conversation.inputs, True)
    return torch.ones(source.shape[:2], dtype=torch.bool, device="cpu") if mask is None else mask.bool().cpu()


def shift(inputs: Mapping[str, Any], call: Mapping[str, Any], source: Tensor, past: int) -> int:
    """Columns that a wrapper put in front of generate's prompt: virtual tokens as embeddings, or in a cache of its own."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or inputs.get("inputs_embeds") is not None:
        return 0
    if call.get("input_ids") is not None:
        return past if compat.cache_of(inputs) is None else 0
    extra = past + source.shape[1] - ids.shape[1]
    if extra < 0:
        raise UnsupportedCombination("virtual tokens in front of a prompt that is read in chunks: leave prefill_chunk_size out")
    return extra
