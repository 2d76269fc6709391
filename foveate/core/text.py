"""The canonical text of methods, stages and plans: what people read and `foveate.spec` reads back. Defaults are left out."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from foveate.core.budget import Rounding
from foveate.core.layout import Role
from foveate.core.site import Point, SiteKind
from foveate.errors import SpecError

if TYPE_CHECKING:
    from foveate.core.method import Method
    from foveate.core.plan import Stage


class Written:
    """Its `repr` is its canonical text, unless a class has one of its own. The name is that of the file."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # its own: dataclasses write none over it

    def __repr__(self) -> str:
        return f"{type(self).__module__.rpartition('.')[2]}({', '.join(option_words(self))})"


def stage_text(stage: Stage) -> str:
    """The canonical text of a stage, e.g. `fastv(layer=2, keep=0.5)`."""
    words = []
    if stage.site.kind is usual_site(stage.method):
        words.append(f"layer={stage.site.layer}")
    else:
        words.append(f"site={stage.site.kind.value}")
        words += [f"layer={stage.site.layer}"] if stage.site.layer is not None else []
    words += [f"point={stage.site.point.value}"] if stage.site.point is not Point.BEFORE else []
    if stage.budget is not None:
        words.append(f"keep={stage.budget}")
        words += [f"rounding={stage.budget.rounding.value}"] if stage.budget.rounding is not Rounding.HALF_UP else []
        words += [f"at_least={stage.budget.at_least}"] if stage.budget.at_least != 1 else []
    words += option_words(stage.method)
    words += [f"scope={stage.scope.value}"] if stage.scope.value != "medium" else []
    words += [f"role={stage.role.name.lower()}"] if stage.role is not usual_role(stage.method) else []
    words += [f"effect={stage.effect.value}"] if stage.effect.value != "drop" else []
    return f"{stage.method.name}({', '.join(words)})"


def usual_site(method: Method) -> SiteKind:
    """The kind of site that `layer=` alone means."""
    return SiteKind.DECODE if method.sites == (SiteKind.DECODE,) else SiteKind.LLM_LAYER


def usual_role(method: Method) -> Role:
    """The role that a method touches unless told otherwise."""
    return Role.VISUAL if Role.VISUAL in method.roles else method.roles[0]


def option_words(instance: Any) -> list[str]:
    """The fields of a method or recipe that differ from their defaults, as `word=value` in the spec's own grammar.

    Raises:
        SpecError: for a text with both kinds of quotes, which the grammar cannot hold.
    """
    words = []
    for field in fields(instance):
        value = getattr(instance, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value != default:
            words.append(f"{field.name}={_write(value)}")
    return words


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"[{', '.join(_write(item) for item in value)}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w:.-]*", value):
        quote = "'" if '"' in value else '"'
        if quote in value:
            raise SpecError(f"the text of a plan cannot hold {value!r}, which has both kinds of quotes")
        return f"{quote}{value}{quote}"
    return str(value)
