"""Watching one attention module: measure, during its next call, what the stages behind it asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticLayer

from foveate.core.view import AttentionRows
from foveate.engine import compat, forward, observe
from foveate.engine.decoder import in_compiled_step, uncompiled
from foveate.engine.forward import Pass


class Watch:
    """The hooks around one attention module.

    Args:
        owner: the attachment.
        layer: the decoder layer that the module belongs to.
        whole_conversation: measure all key columns, as masked plans need, instead of those of the pass.
        rotates: whether the layer rotates queries and keys.

    Attributes:
        wanted: (stage's layer, what its method asked for).
    """

    def __init__(self, owner: object, layer: int, whole_conversation: bool, rotates: bool = True) -> None:
        self.layer = layer
        self.owner, self.whole_conversation, self.rotates = owner, whole_conversation, rotates
        self.wanted: list[tuple[int, AttentionRows]] = []

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Arm the probe if the pass has something to rank."""
        if in_compiled_step(args[0] if args else kwargs["hidden_states"], compat.cache_of(kwargs)):
            return
        self._arm(module, kwargs)

    @uncompiled
    def _arm(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        running = forward.current(self.owner)
        if running is None or not running.spans:
            return
        turn_back = self._turning_back(module, kwargs.get("position_embeddings"))
        cache = compat.cache_of(kwargs)
        stored = cache.layers[self.layer] if cache is not None and self.layer < len(cache.layers) else None

        def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
            # A ranking has no gradient; saved tensors would also differ from those of a checkpointed layer run again.
            with torch.no_grad():
                for layer, wanted in self.wanted:
                    rows = self._rows(running, wanted, query, key, mask, turn_back, scaling, softcap, stored)
                    running.observed[(layer, wanted)] = rows

        observe.arm(module, measure)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Disarm, also when the call failed before its attention function."""
        if not in_compiled_step(args[0] if args else kwargs["hidden_states"], compat.cache_of(kwargs)):
            _disarm(module)

    def _turning_back(self, module: nn.Module, embeddings: Any) -> Callable[[Tensor], Tensor]:
        """What undoes the rotation of this call's queries and keys."""
        if not self.rotates:
            return lambda states: states
        flat = compat.flat_rotary(module, embeddings)
        rotate = compat.rotation(module) if flat is embeddings else None
        return partial(observe.without_rope, embeddings=flat, rotate=rotate)

    def _rows(
        self,
        running: Pass,
        wanted: AttentionRows,
        query: Tensor,
        key: Tensor,
        mask: Any,
        turn_back: Callable[[Tensor], Tensor],
        scaling: float | None,
        softcap: float | None,
        stored: Any,
    ) -> Tensor:
        """Attention [B, H, S] by column of the pass (or of the conversation)."""
        alive = running.alive_on(query.device)
        raters, valid = _raters(running, wanted, query)
        if alive is not None:
            raters = alive.slot_of.gather(1, raters)
        arriving = query.shape[2]
        order = _key_order(stored, key, arriving, running.past) if isinstance(stored, StaticLayer) else None
        if not wanted.rope:
            # Past keys carry rotations of positions that are gone by now, so the softmax runs over this pass.
            order = (torch.arange(key.shape[2], device=key.device) if order is None else order)[-arriving:]
            query, key = turn_back(query), turn_back(key.index_select(2, order))
        elif order is not None:
            key = key.index_select(2, order)
        rows = observe.attention_rows(query, key, mask, raters, valid, scaling, softcap, order)
        if self.whole_conversation:
            return rows
        rows = rows[..., -arriving:]
        if alive is None:
            return rows
        target = torch.where(alive.valid, alive.index, running.queries)[:, None].expand(-1, rows.shape[1], -1)
        by_column = rows.new_zeros(*rows.shape[:2], running.queries + 1).scatter(2, target, rows)
        return by_column[..., :-1]


_disarm = uncompiled(observe.disarm)


def _key_order(stored: StaticLayer, key: Tensor, arriving: int, past: int) -> Tensor:
    """Slots of a static layer's keys, those that arrive with this pass last; of an empty cache only those that arrive."""
    slots = torch.arange(key.shape[2], device=key.device)
    if past == 0:
        return slots[:arriving]
    order: Tensor = (slots + stored.cumulative_length) % key.shape[2]
    return order


def _raters(running: Pass, wanted: AttentionRows, query: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [B, R] of the raters within the pass, and which of them count [B, R]."""
    assert running.layout is not None
    one_token = running.queries == 1
    # Without a cache every step chooses anew, and the newest token rates; a training row's answer never does.
    output_rates = not running.cached and running.labels is None
    columns = [[0]] * query.shape[0] if one_token else observe.rater_columns(running.layout, wanted.query, output_rates)
    width = max(len(row) for row in columns)
    # Filled up with a real rater: a padding column sees nothing, and 0 * nan is nan.
    padded = torch.tensor([row + row[-1:] * (width - len(row)) for row in columns])
    valid = torch.arange(width)[None] < torch.tensor([len(row) for row in columns])[:, None]
    raters, valid = padded.to(query.device, non_blocking=True), valid.to(query.device, non_blocking=True)
    if running.alive is not None and running.dead is not None:
        # A visual token that an earlier stage removed rates nothing. The last rater is text and always alive.
        valid = valid & ~running.dead.to(query.device).gather(1, raters)
        raters = torch.where(valid, raters, raters[:, -1:])
    return raters, valid
