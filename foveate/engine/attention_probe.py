"""A probe on one attention module: it measures, during its next call, what later stages asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.view import AttentionRows, Observation
from foveate.engine import attention_rows, compat, forward, observe
from foveate.engine.cache_kinds import kind_of
from foveate.engine.compiled import in_compiled_step, uncompiled
from foveate.engine.forward import Pass
from foveate.engine.projection import Alive
from foveate.engine.raters import rater_columns


class AttentionProbe:
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
        self.wanted: list[tuple[int, Observation]] = []

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Arm the probe if the pass has something to rank."""
        if in_compiled_step(args[0] if args else kwargs["hidden_states"], compat.cache_of(kwargs)):
            return
        self._arm(module, kwargs)

    @uncompiled
    def _arm(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        running = forward.current(self.owner)
        if running is None or not running.chooses:
            return
        turn_back = self._turning_back(module, kwargs.get("position_embeddings"))
        cache = compat.cache_of(kwargs)
        stored = cache.layers[self.layer] if cache is not None and self.layer < len(cache.layers) else None

        def measure(query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> None:
            # A ranking has no gradient; saved tensors would also differ from those of a checkpointed layer run again.
            with torch.no_grad():
                for layer, wanted in self.wanted:
                    if isinstance(wanted, AttentionRows):
                        rows = self._rows(running, wanted, query, key, mask, turn_back, scaling, softcap, stored)
                    else:
                        rows = _key_norms(running, key, turn_back, query.shape[2], stored)
                    running.shared.observed[(layer, wanted)] = rows

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
        return partial(attention_rows.without_rope, embeddings=flat, rotate=rotate)

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
        """Attention [B, H, S] by column of the pass (or of the conversation): each sample's own raters, on its own columns."""
        alive = running.alive_on(query.device)
        arriving = query.shape[2]
        order = _order(stored, key, arriving, running.past)
        if not wanted.rope:
            # Past keys carry rotations of positions that are gone by now, so the softmax runs over this pass.
            order = (torch.arange(key.shape[2], device=key.device) if order is None else order)[-arriving:]
            query, key = turn_back(query), turn_back(key.index_select(2, order))
        elif order is not None:
            key = key.index_select(2, order)
        found: list[Tensor] = []
        for raters, valid in _raters(running, wanted, query):
            slots = raters if alive is None else alive.slot_of.gather(1, raters)
            found.append(attention_rows.attention_rows(query, key, mask, slots, valid, scaling, softcap, order))
        by_column = (
            found if self.whole_conversation else [_by_column(rows[..., -arriving:], alive, running.queries) for rows in found]
        )
        samples = running.left.layout.samples
        if samples is None:
            return by_column[0]
        own = samples.to(query.device, non_blocking=True)[:, None]
        return sum((rows * (own == number) for number, rows in enumerate(by_column)), torch.zeros_like(by_column[0]))


def _key_norms(running: Pass, key: Tensor, turn_back: Callable[[Tensor], Tensor], arriving: int, stored: Any) -> Tensor:
    """Sum of the absolute values of the keys [B, H, P, D] that arrive, by column of the pass: [B, 1, S], fp32."""
    order = _order(stored, key, arriving, running.past)
    new = key[:, :, -arriving:] if order is None else key.index_select(2, order[-arriving:])
    return _by_column(turn_back(new).float().abs().sum((1, 3))[:, None], running.alive_on(key.device), running.queries)


def _order(stored: Any, key: Tensor, arriving: int, past: int) -> Tensor | None:
    """Slots of a layer's keys in the order of their columns; None where they stand so anyway."""
    kind = kind_of(stored)
    return None if kind is None or not kind.compiles else _key_order(stored, key, arriving, past)


def _by_column(rows: Tensor, alive: Alive | None, columns: int) -> Tensor:
    """Attention [B, H, n] to the tokens of a pass, as [B, H, columns] with zeros where tokens are gone."""
    if alive is None:
        return rows
    target = torch.where(alive.valid, alive.index, columns)[:, None].expand(-1, rows.shape[1], -1)
    return rows.new_zeros(*rows.shape[:2], columns + 1).scatter(2, target, rows)[..., :-1]


_disarm = uncompiled(observe.disarm)


def _key_order(stored: Any, key: Tensor, arriving: int, past: int) -> Tensor:
    """Slots of a static layer's keys, those that arrive with this pass last; of an empty cache only those that arrive."""
    slots = torch.arange(key.shape[2], device=key.device)
    if past == 0:
        return slots[:arriving]
    order: Tensor = (slots + stored.cumulative_length) % key.shape[2]
    return order


def _raters(running: Pass, wanted: AttentionRows, query: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each sample of a row columns [B, R] of the raters within the pass, and which of them count [B, R]."""
    if running.queries == 1:
        return [_padded(running, [[0]] * query.shape[0], query)]
    # Without a cache generate() chooses anew at every step, and the newest token rates; a given answer never does.
    conversation = running.conversation
    output_rates = not running.cached and running.labels is None and bool(conversation.inputs)
    by_row = rater_columns(running.left.layout, wanted.query, output_rates)
    found = [
        _padded(running, [samples[number] if number < len(samples) else [] for samples in by_row], query)
        for number in range(max(map(len, by_row)))
    ]
    if wanted.query != "matched" or running.shared.matched is None:
        return found
    matched = running.shared.matched.to(query.device)
    return [(raters, valid & matched.gather(1, raters)) for raters, valid in found]


def _padded(running: Pass, columns: list[list[int]], query: Tensor) -> tuple[Tensor, Tensor]:
    """Raters of each row, filled up to a common number, and which of them count."""
    width = max(len(row) for row in columns)
    # Filled up with a real rater: a padding column sees nothing, and 0 * nan is nan.
    fill = [row[-1] if row else int(running.left.layout.real[number].nonzero()[-1]) for number, row in enumerate(columns)]
    padded = torch.tensor([row + [last] * (width - len(row)) for row, last in zip(columns, fill, strict=True)], device="cpu")
    valid = torch.arange(width, device="cpu")[None] < torch.tensor([len(row) for row in columns], device="cpu")[:, None]
    raters, valid = padded.to(query.device, non_blocking=True), valid.to(query.device, non_blocking=True)
    if running.left.alive is not None:
        # A visual token that an earlier stage removed rates nothing. The last rater is always alive.
        valid = valid & ~running.left.dead.to(query.device).gather(1, raters)
        raters = torch.where(valid, raters, raters[:, -1:])
    return raters, valid
