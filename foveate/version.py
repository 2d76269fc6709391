"""The version of the package and the versions of transformers it was tested with."""

__version__ = "0.1.0"

# The newest transformers minor that the test suite ran on. A newer one gives one warning, not an error.
NEWEST_TESTED_TRANSFORMERS = (5, 24)
