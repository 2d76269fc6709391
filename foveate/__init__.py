"""foveate: a faster, smaller vision-language model by sparsifying its context. Importing it changes nothing."""

from foveate.api import Attachment, attach
from foveate.spec import Plan
from foveate.version import __version__

__all__ = ["Attachment", "Plan", "__version__", "attach"]
