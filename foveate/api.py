"""The public functions: attach a plan, estimate its cost, compare plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from foveate.core.plan import Plan as CorePlan
from foveate.core.plan import Stage
from foveate.engine import attach as engine
from foveate.spec import Plan, stage_text


class Attachment(engine.Attachment):
    """A plan attached to a model, as `attach` returns it."""

    plan: Plan

    @contextmanager
    def using(self, plan: str | CorePlan | Stage | Iterable[Stage]) -> Iterator[engine.Attachment]:
        """Another plan inside the block, for one call or a comparison."""
        with self._replaced(Plan.of(plan)) as attachment:
            yield attachment


def attach(model: Any, plan: str | CorePlan | Stage | Iterable[Stage], keep_traces: int = 1) -> Attachment:
    """Attach a plan."""
    return Attachment(engine.unwrap(model), Plan.of(plan), stage_text, keep_traces)
