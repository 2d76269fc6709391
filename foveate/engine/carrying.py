"""Which models carry a plan, and the model inside of what users hold: pipelines, PEFT wrappers."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from foveate.errors import AttachError

if TYPE_CHECKING:
    from foveate.engine.attachment import Attachment

# Which models carry a plan. Weak on both sides, for an attachment holds its model: a model is freed like any other.
ATTACHED: WeakKeyDictionary[nn.Module, ref[Attachment]] = WeakKeyDictionary()
# Attaching and detaching change a model's hooks: one thread at a time.
CHANGING = RLock()

NO_COPY = (
    "this model carries a plan: detach it before copying or pickling it (save_pretrained works as it is), the copy would run "
    "the original's hooks"
)


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment that a model carries, if any."""
    known = ATTACHED.get(model)
    return None if known is None else known()


def unwrap(model: Any) -> nn.Module:
    """The Hugging Face model inside a pipeline or a PEFT wrapper.

    Raises:
        AttachError: for a compiled model, or something that holds no model.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise AttachError("the model is compiled already: attach first, compile afterwards")
    if hasattr(model, "get_base_model"):  # PeftModel
        return unwrap(model.get_base_model())
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):  # pipeline
        return unwrap(model.model)
    if not hasattr(model, "config") and isinstance(getattr(model, "module", None), nn.Module):  # DDP and its like
        raise AttachError(f"{type(model).__name__} wraps a model: attach to the model first, then wrap it")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise AttachError(f"attach takes a Hugging Face model, a pipeline or a PeftModel, not {type(model).__name__}")
    if any(getattr(part, "_compiled_call_impl", None) is not None or hasattr(part, "_orig_mod") for part in model.modules()):
        raise AttachError("a part of the model is compiled already: attach first, compile afterwards")
    return model


def refuse_carried(model: nn.Module) -> None:
    """Refuse a model that carries a plan, or whose modules do through another model."""
    known = attachment_of(model)
    if known is not None:
        raise AttachError(f"this model already carries the plan '{known}': detach it first, or use attachment.using(plan)")
    own: set[nn.Module] | None = None
    for other in [carried() for carried in ATTACHED.values()]:
        if other is None or other.model is model:
            continue
        own = set(model.modules()) if own is None else own
        if own & other._hooks.hooked:
            raise AttachError(
                f"this model shares modules with another {type(other.model).__name__} that carries the plan '{other}': detach "
                "that one first"
            )
