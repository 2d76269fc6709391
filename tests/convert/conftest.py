"""The runner for the command line, for tests of conversions too."""

from tests.cli.conftest import command

__all__ = ["command"]
