"""Saying no to what cannot work, before any layer has run: one line with the reason and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.layout import Layout, Role
from foveate.engine import compat
from foveate.engine.cache_kinds import check_cache
from foveate.engine.conversation import Conversation
from foveate.engine.forward import Pass
from foveate.errors import UnsupportedCombination
from foveate.families import Family

_CHUNKED = (
    "chunked prefill: stages that look at attention or at the question need one chunk with all visual tokens and the prompt's "
    "last token, and no chunk may split an image; raise prefill_chunk_size or leave it out"
)
OPEN_A_CONVERSATION = "effect=mask chooses anew at every step: run inside generate(), or inside attachment.conversation()"


class Refusals:
    """What the calls of one attached model cannot be.

    Args:
        model, family, decoder: what is attached, and its language model.
        masks: whether the plan hides tokens instead of dropping them.
        watched: whether its stages look at attention or at the question.
        on_text: whether stages act on text, or learned methods are trained.
    """

    def __init__(self, model: nn.Module, family: Family, decoder: nn.Module, masks: bool, watched: bool, on_text: bool) -> None:
        self.model, self.family, self.decoder = model, family, decoder
        self.config: Any = model.config
        self.masks, self.watched, self.on_text = masks, watched, on_text
        self.stateful = bool(family.stateful_layers(model.config))

    def check(self, running: Pass, call: Mapping[str, Any], found: Layout, drops_text: bool) -> None:
        """Say no to what cannot work, before any layer has run; `drops_text`: whether columns of text will be dropped."""
        split = int((found.roles == int(Role.VISUAL)).sum()) != sum(medium.shape.tokens for medium in found.media)
        if split:
            raise UnsupportedCombination(_CHUNKED)
        conversation = running.conversation
        if found.samples is not None:
            self._check_packed(running, call)
        if self.stateful:
            self._check_states(running, call, found)
        if not found.media and not drops_text:
            return
        mask = call.get("attention_mask")
        if (
            isinstance(mask, Tensor)
            and mask.ndim == 2
            and mask.shape[1] > running.past + running.queries
            and conversation.inputs
        ):
            raise UnsupportedCombination(
                f"attention_mask has {mask.shape[1]} columns, the cache and this call have {running.past + running.queries}: "
                "virtual tokens of a wrapper did not arrive (does this version of peft know this version of transformers?)"
            )
        if running.cached:
            check_cache(compat.cache_of(call), self.decoder.config, self.masks)
        reason = self.family.refuse_length(self.config, running.past + running.queries)
        if reason is not None and not self.masks:
            raise UnsupportedCombination(reason)
        # As transformers reads it: the argument, else the config.
        if call.get("output_attentions", getattr(self.decoder.config, "output_attentions", False)):
            raise UnsupportedCombination(
                "output_attentions is not defined for pruned layers: use attachment.disabled() to look at the plain model's"
            )
        checkpointed = self.model.training and getattr(self.decoder, "gradient_checkpointing", False)
        if checkpointed and not compat.HOOKS_SURVIVE_CHECKPOINTING:
            raise UnsupportedCombination("gradient checkpointing under a plan needs transformers >= 5.23")
        ends_early = conversation.prompt_end is not None and running.past + running.queries < conversation.prompt_end
        if ends_early and self.watched and found.media:
            raise UnsupportedCombination(_CHUNKED)

    def _keeps_cache(self, call: Mapping[str, Any]) -> bool:
        use_cache = call.get("use_cache")
        return bool(getattr(self.decoder.config, "use_cache", True) if use_cache is None else use_cache)

    def _check_states(self, running: Pass, call: Mapping[str, Any], found: Layout) -> None:
        """A state takes in every column it passes: holes must stand in front of everything that it has seen."""
        title, real = self.family.title, found.real
        if found.pads_right and (running.cached or self._keeps_cache(call)):
            raise UnsupportedCombination(
                f"{title} has layers that carry a state, and padding on the right goes into it, with and without a plan: "
                "pad on the left, or pass use_cache=False"
            )
        if running.past and (not bool(real.all()) or not _rows_alike(found)):
            raise UnsupportedCombination(
                f"{title} has layers that carry a state, and rows of unequal length behind cached columns put holes into it, "
                "with and without a plan: continue rows of one length with pictures of one size, or each row alone"
            )

    def _check_packed(self, running: Pass, call: Mapping[str, Any]) -> None:
        """Several samples in a row: each as if alone, where transformers keeps them apart and every stage can."""
        mask, keeps_cache = call.get("attention_mask"), self._keeps_cache(call)
        own_mask = isinstance(mask, Tensor) and mask.ndim == 4
        name = self.decoder.config._attn_implementation  # type: ignore[union-attr]
        reason = None
        if self.on_text:
            reason = "stages on text, gates and mode='soft' take one sample a row"
        elif "flash" in str(name):
            reason = f"{name} tells samples apart by positions, which have gaps after a stage; use sdpa"
        elif self.family.bidirectional or self.stateful:
            reason = f"transformers does not keep samples of {self.family.title} apart"
        elif not own_mask and (mask is not None or running.cached or keeps_cache):
            reason = "transformers keeps them apart only without a cache and a mask: pass use_cache=False and no attention_mask"
        if reason is not None:
            raise UnsupportedCombination(f"several samples are packed into one row (position_ids start anew): {reason}")

    def check_masked_turn(self, conversation: Conversation) -> None:
        """Several tokens on a cache cannot have one choice, unless there is no picture to choose from."""
        if conversation.layout is None and not conversation.inputs:
            if conversation.place.outer is not None and conversation.seen is not None:
                return  # a text-only call within generate()
            raise UnsupportedCombination(OPEN_A_CONVERSATION)
        ids = conversation.inputs.get("input_ids")
        placeholders = list(self.family.placeholder_ids(self.config).values())
        pictures = (
            bool(conversation.layout.media)
            if conversation.layout is not None
            else ids is None or bool(torch.isin(ids, torch.tensor(placeholders, device=ids.device)).any())
        )
        if pictures:
            raise UnsupportedCombination(
                "effect=mask selects anew for every token: several tokens on a cache (a second turn, assisted decoding, "
                "chunked prefill) would need several choices at once; use effect=drop"
            )


def _rows_alike(found: Layout) -> bool:
    """Whether all rows have pictures of the same sizes at the same columns, so that equal numbers of tokens stay."""
    rows: dict[int, list[tuple[object, ...]]] = {}
    for medium in found.media:
        rows.setdefault(medium.row, []).append((medium.shape, tuple(medium.columns.tolist())))
    return len({tuple(row) for row in rows.values()}) <= 1 and len(rows) in (0, len(found.roles))
