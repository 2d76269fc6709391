"""foveate: a faster, smaller vision-language model by sparsifying its context. Importing it changes nothing."""

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
from foveate.errors import FoveateError
from foveate.spec import Plan
from foveate.version import __version__

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
