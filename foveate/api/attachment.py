"""attach(): a plan on a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from foveate import methods
from foveate.api import selfcheck
from foveate.core.learned import LearnedMethod
from foveate.engine.attachment import Attachment
from foveate.engine.carrying import attachment_of, unwrap
from foveate.engine.soft import SoftMode
from foveate.errors import AttachError
from foveate.families import family_for
from foveate.spec import PlanLike, as_plan


def attach(
    model: Any,
    plan: PlanLike,
    keep_traces: int = 1,
    *,
    mode: str = "hard",
    modules: Mapping[str, nn.Module] | None = None,
) -> Attachment:
    """Attach a plan to an unmodified Hugging Face model.

    Args:
        model: a model, a pipeline or a PeftModel, loaded as always.
        plan: a spec such as `"fastv(layer=2, keep=0.5)"`, a plan, a recipe, or stages.
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
    found, stages = unwrap(model), as_plan(plan)
    if isinstance(modules, Mapping):
        _check_names(modules)
    selfcheck.ensure(family_for(found.config))
    return Attachment(found, stages, keep_traces, soft=soft, modules=modules, read=as_plan)


def _check_names(modules: Mapping[str, nn.Module]) -> None:
    """Refuse modules for methods that learn nothing; a plan need not use all of them."""
    learned = [name for name in methods.names() if issubclass(methods.get(name), LearnedMethod)]
    unknown = [name for name in modules if name not in learned]
    if unknown:
        raise AttachError(f"modules names {unknown[0]!r:.60}, which is no learned method; those are {', '.join(learned)}")


def detach(model: Any) -> bool:
    """Take a plan off a model whose attachment was not kept; returns whether there was one."""
    attachment = attachment_of(unwrap(model))
    if attachment is None:
        return False
    attachment.detach()
    return True
