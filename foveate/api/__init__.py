"""The public functions: attach a plan, estimate its cost without a model, compare plans on the same inputs, read videos."""

from typing import TYPE_CHECKING

from foveate.core.lazy import exports

if TYPE_CHECKING:
    from foveate.api.attachment import attach, detach
    from foveate.api.comparison import Answer, Candidate, compare
    from foveate.api.cost import default_plan, estimate, resolve_config
    from foveate.api.fitting import fit_images
    from foveate.api.looking import attention
    from foveate.api.video import Video, load_video
    from foveate.engine.attachment import Attachment
    from foveate.engine.report import Report
else:
    # An estimate needs no transformers, and reading a video no torch: each name loads its own file.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Answer": "foveate.api.comparison",
            "Attachment": "foveate.engine.attachment",
            "Candidate": "foveate.api.comparison",
            "Report": "foveate.engine.report",
            "Video": "foveate.api.video",
            "attach": "foveate.api.attachment",
            "attention": "foveate.api.looking",
            "compare": "foveate.api.comparison",
            "default_plan": "foveate.api.cost",
            "detach": "foveate.api.attachment",
            "estimate": "foveate.api.cost",
            "fit_images": "foveate.api.fitting",
            "load_video": "foveate.api.video",
            "resolve_config": "foveate.api.cost",
        },
    )

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
    "fit_images",
    "load_video",
    "resolve_config",
]
