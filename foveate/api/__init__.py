"""The public functions: attach a plan, estimate its cost without a model, compare plans on the same inputs, read videos."""

from foveate.api.attach import Attachment, Report, attach, detach
from foveate.api.attention import attention
from foveate.api.compare import Answer, Candidate, compare
from foveate.api.cost import default_plan, estimate, resolve_config
from foveate.api.video import Video, load_video

__all__ = [
    "Answer",
    "Attachment",
    "Candidate",
    "Report",
    "Video",
    "attach",
    "attention",
    "compare",
    "default_plan",
    "detach",
    "estimate",
    "load_video",
    "resolve_config",
]
