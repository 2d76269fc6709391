"""foveate: a faster, smaller vision-language model by sparsifying its context. Importing it changes nothing.

Every method and recipe is here under the name of its class: `foveate.FastV(query="text").at(layer=2, keep=0.5)`.
"""

from typing import TYPE_CHECKING, Any

from foveate.core.lazy import exports
from foveate.errors import FoveateError
from foveate.version import __version__

if TYPE_CHECKING:
    from foveate import methods, recipes
    from foveate.api import (
        Answer,
        Attachment,
        Candidate,
        Report,
        Video,
        attach,
        attention,
        compare,
        detach,
        estimate,
        fit_images,
        load_video,
    )
    from foveate.core.budget import Budget
    from foveate.core.plan import Plan, Stage
    from foveate.core.site import Site
    from foveate.spec import load_plan, parse, save_plan

# torch and transformers take seconds to import; they wait until something is used.
_get, _names = exports(
    __name__,
    {
        "Answer": "foveate.api",
        "Attachment": "foveate.api",
        "Budget": "foveate.core.budget",
        "Candidate": "foveate.api",
        "Plan": "foveate.core.plan",
        "Report": "foveate.api",
        "Site": "foveate.core.site",
        "Stage": "foveate.core.plan",
        "Video": "foveate.api",
        "attach": "foveate.api",
        "attention": "foveate.api",
        "compare": "foveate.api",
        "detach": "foveate.api",
        "estimate": "foveate.api",
        "fit_images": "foveate.api",
        "load_plan": "foveate.spec",
        "load_video": "foveate.api",
        "methods": "foveate.methods",
        "parse": "foveate.spec",
        "recipes": "foveate.recipes",
        "save_plan": "foveate.spec",
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except AttributeError:
        if not name[:1].isupper():
            raise
        from foveate import methods, recipes

        found = methods.class_named(name) or recipes.class_named(name)
        if found is None:
            raise
        return found


def __dir__() -> list[str]:
    from foveate import methods, recipes

    return sorted({*_names(), *methods.class_names(), *recipes.class_names()})


__all__ = [
    "Answer",
    "Attachment",
    "Budget",
    "Candidate",
    "FoveateError",
    "Plan",
    "Report",
    "Site",
    "Stage",
    "Video",
    "__version__",
    "attach",
    "attention",
    "compare",
    "detach",
    "estimate",
    "fit_images",
    "load_plan",
    "load_video",
    "methods",
    "parse",
    "recipes",
    "save_plan",
]
