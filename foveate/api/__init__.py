"""The public functions: attach a plan to a model, estimate its cost without one, compare plans on the same inputs."""

from foveate.api.attach import Attachment, Report, attach, detach
from foveate.api.attention import attention
from foveate.api.compare import Answer, Candidate, compare
from foveate.api.cost import default_plan, estimate, resolve_config

__all__ = [
    "Answer",
    "Attachment",
    "Candidate",
    "Report",
    "attach",
    "attention",
    "compare",
    "default_plan",
    "detach",
    "estimate",
    "resolve_config",
]
