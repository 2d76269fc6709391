"""What decoding stores: a step stage judges each generated token, and the layers after it forget those it rejects.

A rejected token attends to itself and is seen by no later one. Its slot is marked at once and taken away later, a few dozen
steps at a time: marking needs nothing from the host, taking away needs to know how many are left. Several tokens of an answer
in one pass (teacher forcing, guesses of assisted decoding, decoding without a cache) are judged together and see each other
through a mask that says the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from foveate.core.method import StepMethod
from foveate.core.plan import Stage
from foveate.core.view import StepView
from foveate.engine.asking import placed
from foveate.engine.forward import Answers, Pass
from foveate.engine.projection import pack, project_mask, take
from foveate.engine.slots import Announcement, Places, SlotLayer, columns_of, mark
from foveate.errors import MethodError, UnsupportedCombination

# Steps between two cleanings: each waits for the device once. Until then up to as many rejected slots are held.
CLEAN_EVERY = 64


def answer_numbers(running: Pass, source: Tensor, labels: Tensor | None) -> Tensor | None:
    """[B or 1, S] long, which token of its answer each column of a pass is, negative where it is none; None without any.

    Generated columns are those after the conversation's prompt; in training those that have a label.
    """
    length = running.conversation.prompt_end
    if length is not None:
        if running.past + running.queries <= length:
            return None
        return torch.arange(running.past - length, running.past - length + running.queries, device=source.device)[None]
    if labels is None or labels.shape != source.shape[:2]:
        return None
    answered = labels.to(source.device) != -100
    return torch.where(answered, answered.cumsum(1) - 1, -1)


def see(mask: Any, marked: Tensor, asking: Tensor, recent: int) -> Any:
    """A layer's mask with rejected keys hidden from all queries but the `recent` next ones.

    Args:
        mask: [B, 1, n, P] bool or added to scores, [B, P] (flash) or a BlockMask (flex).
        marked: [B, P] column of every key, as `mark` writes them.
        asking: [B, n] column of every query.
    """
    rejected, columns = marked <= -2, columns_of(marked)
    if isinstance(mask, BlockMask):
        return _see_blocks(mask, rejected, columns, asking, recent)
    if mask.ndim == 2:
        # One mask for all queries: right where they are one, or where nothing rejected is recent to any of them.
        seen = ~rejected | (asking[:, -1:] - columns < recent)
        return mask.bool() & seen
    seen = ~rejected[:, None] | (asking[:, :, None] - columns[:, None] < recent)
    if mask.dtype == torch.bool:
        return mask & seen[:, None]
    return torch.where(seen[:, None], mask, torch.finfo(mask.dtype).min)


def _see_blocks(mask: BlockMask, rejected: Tensor, columns: Tensor, asking: Tensor, recent: int) -> BlockMask:
    original = mask.mask_mod

    def seen(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        near = asking[b, q] - columns[b, kv] < recent
        allowed: Tensor = original(b, h, q, kv) & (~rejected[b, kv] | near)
        return allowed

    batch, queries = asking.shape
    return create_block_mask(seen, batch, None, queries, columns.shape[1], device=columns.device, _compile=False)


class Gate:
    """The step stage of a plan.

    Args:
        stage: of the plan.
        remembered: whether layers from here on carry a state, which takes in every token: attention forgets, they do not.
    """

    def __init__(self, stage: Stage, remembered: bool = False) -> None:
        assert isinstance(stage.method, StepMethod) and stage.site.layer is not None
        self.stage, self.method, self.layer = stage, stage.method, stage.site.layer
        self.remembered = remembered
        self.recent = max(self.method.recent, 1)  # a token sees itself
        self.keep = None if stage.budget is None else float(stage.budget.ratio or 0)

    def concerns(self, running: Pass, index: int, stored: Any) -> bool:
        """Whether a layer judges tokens in this pass, or holds slots that were judged before and may still be seen."""
        return index >= self.layer and (running.numbers is not None or (isinstance(stored, SlotLayer) and stored.gated))

    def has_nothing_to_judge(self, running: Pass) -> bool:
        """Whether a pass holds no token of an answer, and nobody said so: the first layer may be as it was without a gate."""
        answers = running.answers
        return answers is not None and answers.numbers is None and answers.rejected is None

    def decide(self, running: Pass, hidden: Tensor) -> Tensor:
        """Judge the answer's tokens of a pass, if it has any; returns the hidden states of those that go on.

        Without a cache, rejected tokens other than the last are not computed further, unless a state takes them in.

        Args:
            running: the pass; what it rejects is noted in its answers.
            hidden: [B, n, D] states entering the stage's layer.
        """
        batch, device = hidden.shape[0], hidden.device
        answers = running.answers
        assert answers is not None
        if answers.numbers is None:
            answers.rejected = torch.zeros(batch, running.queries, dtype=torch.bool, device=device)
            return hidden
        numbers = answers.numbers.to(device).expand(batch, -1)
        alive = running.alive_on(device)
        features = hidden if alive is None else take(hidden, alive.slot_of, 1)
        module = placed(running.modules.get(self.stage), features)
        stored = self.method.gate(StepView(features, numbers, module), self.keep)
        if stored.shape != numbers.shape or stored.dtype != torch.bool:
            raise MethodError(
                f"method '{self.method.name}' broke its contract: gate() must return {tuple(numbers.shape)} bool, "
                f"not {tuple(stored.shape)} {stored.dtype}"
            )
        stored = stored | (numbers < self.method.first)
        if self.method.protect:
            stored = stored | torch.isin(self._ids(answers).to(device), torch.tensor(self.method.protect, device=device))
        answers.rejected = ~stored
        running.conversation.trace.add_gate(running.past, stored | (numbers < 0), numbers >= 0)
        in_generate = bool(running.conversation.inputs)
        if in_generate and not running.cached and self.recent == 1 and not self.remembered:
            return self._drop(running, answers, hidden)
        return hidden

    def _ids(self, answers: Answers) -> Tensor:
        if answers.ids is None:
            raise UnsupportedCombination(
                f"{self.method.name}(protect=...) looks at token ids: pass input_ids, not inputs_embeds"
            )
        return answers.ids

    def _drop(self, running: Pass, answers: Answers, hidden: Tensor) -> Tensor:
        """Leave rejected tokens out of the rest of the pass: without a cache only the newest token's state is read."""
        assert answers.rejected is not None
        gone = answers.rejected & running.left.real
        gone[:, -1] = False
        running.left.remove(gone)
        answers.rejected = None
        return running.left.shorten(self.layer, hidden)

    def expect(self, running: Pass, slots: SlotLayer) -> None:
        """Tell a layer that reserves its slots ahead how many of the answer's tokens will not need one."""
        end, room = running.conversation.prompt_end, slots.room
        if room is None or end is None or room <= end:
            return
        unsure = self.recent + self.method.first
        slots.spare = max(0, int((1 - self.method.share(self.keep)) * (room - end)) - unsure)

    def project(self, running: Pass, slots: SlotLayer | None, hidden: Tensor, mask: Any, implementation: str) -> Any:
        """Tell a cache layer what arrives and what of it stays; returns the layer's mask."""
        first_key = None if slots is None else slots.first_key(running.queries)
        alive, device = running.alive_on(hidden.device), hidden.device
        asking, arriving = running.shared.once(
            ("arriving", id(alive), device), running, lambda: self._arriving(running, hidden)
        )
        if slots is not None:
            if slots.dirty(arriving.shape[1], CLEAN_EVERY):
                self._clean(running, slots, hidden)
            slots.make_room(arriving, running.past, running.queries, self.recent)
        lineage = None if slots is None else (slots.lineage, slots.slots, slots.is_sliding)

        def place() -> tuple[Any, Places]:
            recent = self.recent
            places = (
                Places(arriving, arriving, recent)
                if slots is None
                else slots.places(arriving, running.past, running.queries, recent)
            )
            return self._mask(running, places, asking, hidden, mask, implementation, first_key), places

        own_mask, places = running.shared.once(("gate", id(alive), lineage, device), mask, place)
        if slots is not None:
            step = hash(("gate", running.past, running.queries))
            slots.announce(Announcement(None, running.queries, False, step, places), hidden.shape[0], device)
        return own_mask

    def _arriving(self, running: Pass, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The columns [B, n] of the pass's states, -1 at holes, and the same with the rejected ones marked."""
        assert running.answers is not None and running.answers.rejected is not None
        past, device = running.past, hidden.device
        alive, rejected = running.alive_on(device), running.answers.rejected.to(device)
        if alive is None:
            columns = torch.arange(past, past + running.queries, device=device).expand(hidden.shape[0], -1)
            return columns, mark(columns, rejected)
        return alive.columns(past), mark(alive.columns(past), rejected.gather(1, alive.index))

    def _mask(
        self,
        running: Pass,
        places: Places,
        asking: Tensor,
        hidden: Tensor,
        mask: Any,
        implementation: str,
        first_key: int | None,
    ) -> Any:
        """The mask of the layers whose slots are the same."""
        alive, visible = running.alive_on(hidden.device), columns_of(places.seen)
        past, queries = running.past, running.queries
        projected = project_mask(mask, visible, alive, past, queries, False, False, implementation, hidden.dtype, first_key)
        if isinstance(projected, Tensor) and projected.ndim == 2 and queries > 1 and running.numbers is not None:
            raise UnsupportedCombination(
                f"{self.method.name} under flash attention: several tokens of an answer in one pass see different keys, and a "
                "flash mask is the same for all of them; use sdpa"
            )
        return see(projected, places.seen, asking, places.recent)

    def _clean(self, running: Pass, slots: SlotLayer, hidden: Tensor) -> None:
        """Take rejected slots away that no later token sees. Layers with equal slots share one wait."""
        fixed = slots.fixed_slots

        def plan() -> tuple[Tensor, Tensor, int]:
            before = slots.positions(hidden.shape[0], hidden.device)
            marked = before[:, fixed:]
            keep = (marked >= 0) | ((marked <= -2) & (running.past - columns_of(marked) < self.recent))
            index, valid = pack(keep, keep.sum(1).tolist())
            after = torch.cat([before[:, :fixed], torch.where(valid, marked.gather(1, index), -1)], dim=1)
            return index, after, hash(("clean", running.past))

        key = ("clean", slots.lineage, slots.slots, fixed, slots.is_sliding, hidden.device)
        index, marked, step = running.shared.once(key, running, plan)
        slots.repack(index.to(slots.keys.device), marked, step)
