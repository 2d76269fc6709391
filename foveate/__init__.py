"""foveate: a faster, smaller vision-language model by sparsifying its context. Importing it changes nothing."""

from foveate.version import __version__

__all__ = ["__version__"]
