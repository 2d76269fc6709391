"""foveate: a faster, smaller vision-language model by sparsifying its context. Importing it changes nothing."""

from typing import TYPE_CHECKING

from foveate.core.lazy import exports
from foveate.errors import FoveateError
from foveate.version import __version__

if TYPE_CHECKING:
    from foveate import methods
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
        load_video,
    )
    from foveate.core.budget import Budget
    from foveate.core.plan import Stage
    from foveate.core.site import Site
    from foveate.spec import Plan
else:
    # torch and transformers take seconds to import; they wait until something is used.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Answer": "foveate.api",
            "Attachment": "foveate.api",
            "Budget": "foveate.core.budget",
            "Candidate": "foveate.api",
            "Plan": "foveate.spec",
            "Report": "foveate.api",
            "Site": "foveate.core.site",
            "Stage": "foveate.core.plan",
            "Video": "foveate.api",
            "attach": "foveate.api",
            "attention": "foveate.api",
            "compare": "foveate.api",
            "detach": "foveate.api",
            "estimate": "foveate.api",
            "load_video": "foveate.api",
            "methods": "foveate.methods",
        },
    )

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
    "load_video",
    "methods",
]
