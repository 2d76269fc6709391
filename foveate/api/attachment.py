"""attach(): a plan on a model, with a report in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from foveate import methods
from foveate.api import selfcheck
from foveate.core.layout import Role
from foveate.core.learned import LearnedMethod
from foveate.core.plan import Effect, Stage
from foveate.core.plan import Plan as CorePlan
from foveate.cost.estimate import CostEstimate, estimate_cost
from foveate.engine import attach as engine
from foveate.engine.conversation import Conversation
from foveate.engine.soft import SoftMode
from foveate.errors import AttachError
from foveate.families import family_for
from foveate.spec import Plan, stage_text


@dataclass(frozen=True)
class Report:
    """What a plan did in the last conversation.

    Attributes:
        plan: canonical text.
        media: (sample, kind, visual tokens in, visual tokens kept) of each image or video; beams are counted once.
        estimate: theory for the conversation's first sample with media; None where the cost depends on more than shapes: a
            turn behind a cache, or a threshold.
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
            lines.append(f"answers: {self.answer[0]} of {self.answer[1]} tokens stored behind the gate")
        if self.saves_nothing:
            lines.append("effect=mask hides tokens but computes and stores all of them: nothing is saved")
        if self.ignored_labels:
            lines.append(f"{self.ignored_labels} labels ignored: they would be predicted from pruned positions")
        return "\n".join(lines)

    def _measured(self) -> str:
        if self.prefill_kv_bytes is not None:
            return f"{self.prefill_kv_bytes:,} bytes"
        return f"not measured ({'no cache, or a quantized one' if self.media else 'no picture whose tokens could be left out'})"


class Attachment(engine.Attachment):
    """A plan attached to a model, as `attach` returns it. A context manager; `detach()` takes everything back."""

    plan: Plan

    @contextmanager
    def using(self, plan: str | CorePlan | Stage | Iterable[Stage]) -> Iterator[Attachment]:
        """Another plan inside the block, for one call or a comparison."""
        with self._replaced(Plan.of(plan)):
            yield self

    def report(self) -> Report:
        """Visual tokens, FLOPs and KV bytes of the last conversation, theory and measured.

        Raises:
            AttachError: if nothing that the plan acts on has passed the model yet.
        """
        talk = self.last
        media = tuple(
            (entry.medium.row // talk.copies, entry.medium.shape.kind, entry.medium.shape.grid_tokens, len(entry.kept_index))
            for entry in talk.trace
            if entry.medium.row % talk.copies == 0
        )
        gated = talk.trace.answer_kept
        return Report(
            plan=str(self.plan),
            media=media,
            estimate=self._estimate(talk),
            prefill_kv_bytes=talk.prefill_kv_bytes,
            ignored_labels=talk.ignored_labels,
            saves_nothing=any(stage.effect is Effect.MASK for stage in self.plan.stages),
            answer=(sum(int(row.sum()) for row in gated), sum(len(row) for row in gated)) if gated else None,
        )

    def _estimate(self, talk: Conversation) -> CostEstimate | None:
        if talk.past:
            return None
        if any(stage.budget is not None and not stage.budget.is_fixed for stage in self.plan.stages):
            return None
        row = talk.trace.media[0].medium.row if len(talk.trace) else 0
        shapes = [entry.medium.shape for entry in talk.trace.sample(row)]
        text = 0 if shapes else talk.prompt_length or 0
        if talk.layout is not None:
            roles = talk.layout.roles[row // talk.copies]
            text = int(((roles != int(Role.PAD)) & (roles != int(Role.VISUAL))).sum())
        if not shapes and not text:
            return None
        bytes_each = next(self.model.parameters()).dtype.itemsize
        shape = self.family.model_shape(self.model.config)
        return estimate_cost(shape, self.plan, shapes, text, dtype_bytes=bytes_each)

    def __str__(self) -> str:
        plan = super().__str__()
        try:
            estimate = self._estimate(self.last)
        except AttachError:
            return plan
        return plan if estimate is None else f"{plan}: {estimate.summary()}"


def attach(
    model: Any,
    plan: str | CorePlan | Stage | Iterable[Stage],
    keep_traces: int = 1,
    *,
    mode: str = "hard",
    modules: Mapping[str, nn.Module] | None = None,
) -> Attachment:
    """Attach a plan to an unmodified Hugging Face model.

    Args:
        model: a model, a pipeline or a PeftModel, loaded as always.
        plan: a spec such as `"fastv(layer=2, keep=0.5)"`, a Plan, or stages.
        keep_traces: how many past conversations `attachment.traces` remembers.
        mode: "hard" drops tokens. "soft" keeps all of them and weighs their keys by what learned methods decide, with
            gradients (arXiv 2412.00876, Eq. 7); its temperature and shares are in `attachment.soft`.
        modules: by name of a learned method, the module to use instead of the one in its files.

    Raises:
        FoveateError: before anything is touched, in one line: an unknown family, a layer beyond the model, a second
            attach, a compiled model.
    """
    if mode not in ("hard", "soft"):
        raise AttachError(f'mode={mode!r}: write "hard", or "soft" to train learned methods')
    soft = SoftMode() if mode == "soft" else None
    found, stages = engine.unwrap(model), Plan.of(plan)
    if isinstance(modules, Mapping):
        _check_names(modules)
    selfcheck.ensure(family_for(found.config))
    return Attachment(found, stages, stage_text, keep_traces, soft=soft, modules=modules)


def _check_names(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules for methods that learn nothing; a plan need not use all of them."""
    learned = [name for name in methods.names() if issubclass(methods.get(name), LearnedMethod)]
    unknown = [name for name in modules if name not in learned]
    if unknown:
        raise AttachError(f"modules names {unknown[0]!r:.60}, which is no learned method; those are {', '.join(learned)}")


def detach(model: Any) -> bool:
    """Take a plan off a model whose attachment was not kept; returns whether there was one."""
    attachment = engine.attachment_of(engine.unwrap(model))
    if attachment is None:
        return False
    attachment.detach()
    return True
