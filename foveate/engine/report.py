"""What a plan did in a conversation, in words and numbers: theory and measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from foveate.core.layout import Role
from foveate.core.plan import Effect, Plan
from foveate.cost.estimate import CostEstimate, estimate_cost
from foveate.engine.conversation import Conversation
from foveate.families import Family


@dataclass(frozen=True)
class Report:
    """What a plan did in the last conversation.

    Attributes:
        plan: canonical text.
        media: (sample, kind, visual tokens in, visual tokens kept) of each image or video; beams are counted once.
        estimate: theory for the conversation's first sample with media; None where the cost depends on more than shapes: a
            turn on a cache, or a threshold.
        answer: (tokens stored, tokens judged) of all answers where a gate decides that; None without one.
        prefill_kv_bytes: bytes in the cache of the whole batch after prefill, read off the cache; None without one, for a
            quantized one, and for a prompt without pictures.
        ignored_labels: labels left out of the loss because they would be predicted from a pruned position.
        saves_nothing: the plan only masks, for accuracy studies.
    """

    plan: str
    media: tuple[tuple[int, str, int, int], ...]
    estimate: CostEstimate | None
    prefill_kv_bytes: int | None
    ignored_labels: int
    saves_nothing: bool
    answer: tuple[int, int] | None = None

    def __str__(self) -> str:
        theory = "not computed: more than shapes decide it" if self.estimate is None else self.estimate.summary()
        lines = [f"plan: {self.plan}", f"theory (first row): {theory}"]
        lines += [f"row {row}: {kind}, {before} -> {after} visual tokens" for row, kind, before, after in self.media]
        lines.append(f"KV cache after prefill, whole batch: {self._measured()}")
        if self.answer is not None:
            lines.append(f"answers: {self.answer[0]} of {self.answer[1]} tokens stored after the gate")
        if self.saves_nothing:
            lines.append("effect=mask hides tokens but computes and stores all of them: nothing is saved")
        if self.ignored_labels:
            lines.append(f"{self.ignored_labels} labels ignored: they would be predicted from pruned positions")
        return "\n".join(lines)

    def _measured(self) -> str:
        if self.prefill_kv_bytes is not None:
            return f"{self.prefill_kv_bytes:,} bytes"
        return f"not measured ({'no cache, or a quantized one' if self.media else 'no picture whose tokens could be left out'})"


def report_of(model: nn.Module, family: Family, plan: Plan, conversation: Conversation) -> Report:
    """The report of a conversation."""
    copies = conversation.copies
    media = tuple(
        (entry.medium.row // copies, entry.medium.shape.kind, entry.medium.shape.grid_tokens, len(entry.kept_index))
        for entry in conversation.trace
        if entry.medium.row % copies == 0
    )
    gated = conversation.trace.answer_kept
    return Report(
        plan=str(plan),
        media=media,
        estimate=estimate_of(model, family, plan, conversation),
        prefill_kv_bytes=conversation.measured.prefill_kv_bytes,
        ignored_labels=conversation.ignored_labels,
        saves_nothing=any(stage.effect is Effect.MASK for stage in plan.stages),
        answer=(sum(int(row.sum()) for row in gated), sum(len(row) for row in gated)) if gated else None,
    )


def estimate_of(model: nn.Module, family: Family, plan: Plan, conversation: Conversation) -> CostEstimate | None:
    """Theory for a conversation's first sample with media; None where the cost depends on more than shapes."""
    if conversation.past:
        return None
    if any(stage.budget is not None and not stage.budget.is_fixed for stage in plan.stages):
        return None
    row = conversation.trace.media[0].medium.row if len(conversation.trace) else 0
    shapes = [entry.medium.shape for entry in conversation.trace.sample(row)]
    text = 0 if shapes else conversation.prompt_length or 0
    if conversation.layout is not None:
        roles = conversation.layout.roles[row // conversation.copies]
        text = int(((roles != int(Role.PAD)) & (roles != int(Role.VISUAL))).sum())
    if not shapes and not text:
        return None
    shape = family.model_shape(model.config)
    return estimate_cost(shape, plan, shapes, text, dtype_bytes=next(model.parameters()).dtype.itemsize)
