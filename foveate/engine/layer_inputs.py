"""Bringing what a decoder layer gets to the survivors: positions, mask, and what its cache layer must know."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.engine.forward import Pass
from foveate.engine.projection import Alive, project_mask, project_positions
from foveate.engine.slots import Announcement, SlotLayer

NEXT_COLUMN = Announcement(None, 1, True, 0)


def project_rotary(running: Pass, alive: Alive, kwargs: dict[str, Any]) -> None:
    """Bring a layer's position embeddings to the survivors; layers share them, and one that rotates nothing may get none."""
    for name, embeddings in kwargs.items():
        if name.startswith("position_embeddings") and embeddings is not None:
            source = embeddings[0] if isinstance(embeddings, tuple) else embeddings
            make = partial(project_positions, embeddings, alive)
            kwargs[name] = running.shared.once(("positions", id(alive)), source, make)


def announce(running: Pass, slots: SlotLayer | None, hidden: Tensor, mask: Any, implementation: str) -> Any:
    """Tell a cache layer what arrives; returns the layer's mask in the format of an attention implementation."""
    alive = running.alive_on(hidden.device)
    # Where transformers' mask begins is a question about the cache before anything arrives.
    first_key = None if slots is None else slots.first_key(running.queries)
    if slots is not None:
        positions = None if alive is None else running.shared.once(("columns",), alive, lambda: alive.columns(running.past))
        valid = alive is None or alive.all_valid
        slots.announce(Announcement(positions, running.queries, valid, id(alive)), hidden.shape[0], hidden.device)
    return _projected_mask(running, mask, slots, hidden, first_key, implementation)


def _projected_mask(
    running: Pass, mask: Any, slots: SlotLayer | None, hidden: Tensor, first_key: int | None, implementation: str
) -> Any:
    alive, past, queries = running.alive_on(hidden.device), running.past, running.queries
    batch, device = hidden.shape[0], hidden.device
    if mask is None and past == 0 and alive is not None and alive.all_valid:
        # A first pass without holes: the kernel's causal flag is right, also in front of a static cache's empty slots.
        return None

    def make() -> Any:
        every = torch.arange(past, past + queries, device=device).expand(batch, -1)
        new = every if alive is None else alive.columns(past)
        positions = new if slots is None else slots.visible_positions(new)
        all_valid = (slots is None or slots.all_valid) and (alive is None or alive.all_valid)
        pad_free = (slots is None or slots.pad_free) and (alive is not None or queries == 1)
        return project_mask(mask, positions, alive, past, queries, all_valid, pad_free, implementation, hidden.dtype, first_key)

    lineage = None if slots is None else (slots.lineage, slots.slots, slots.is_sliding)
    return running.shared.once(("mask", id(alive), lineage, hidden.device), mask, make)


def state_mask(running: Pass, hidden: Tensor, mask: Any) -> Any:
    """The mask [B, n] of a layer without attention: False at holes, which would decay or shift its state; None without any."""
    alive = running.alive_on(hidden.device)
    if alive is None:
        return mask
    return None if alive.all_valid else alive.valid


def compiled_step_mask(slots: SlotLayer, hidden: Tensor, mask: Any, implementation: str) -> Any:
    """The mask of a pruned layer at a decode step under torch.compile, whose cache layer is told what arrives."""
    first_key = slots.first_key(1)
    slots.announce(NEXT_COLUMN, hidden.shape[0], hidden.device)
    positions = slots.visible_positions(hidden.new_zeros(hidden.shape[0], 1, dtype=torch.long))
    return project_mask(mask, positions, None, 0, 1, False, False, implementation, hidden.dtype, first_key)
