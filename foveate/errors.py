"""Every error foveate raises on purpose.

Each says what was given, what is allowed and what to do. Each also inherits the built-in error a caller would expect, so
`except ValueError` keeps working for people who never heard of foveate.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# Of a message, and of a name that is compared with known ones: what was given may be megabytes of anything.
_MOST_CHARACTERS, _MOST_OF_A_NAME = 1_000, 100


class FoveateWarning(UserWarning):
    """Something that goes on without a part of what was asked; the command line prints it as one line."""


class FoveateError(Exception):
    """Base of all errors that foveate raises on purpose. Its message is one line: what was given is cut and escaped."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


class SpecError(FoveateError, ValueError):
    """A spec string or a plan file that cannot be read."""


class BudgetError(FoveateError, ValueError):
    """A budget that cannot be met: keep nothing, keep more than there is, not a number."""


class PlanError(FoveateError, ValueError):
    """A plan that this model cannot run: a layer beyond the model, a site the method does not serve."""


class UnknownName(FoveateError, KeyError):
    """A method, recipe, family or preset that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class UnsupportedModel(FoveateError, TypeError):
    """A model that no family file describes."""


class UnsupportedCombination(FoveateError, NotImplementedError):
    """A feature that cannot work together with the attached plan; the message names the reason."""


class AttachError(FoveateError, RuntimeError):
    """Attach or detach in the wrong state: attached twice, compiled already, not attached."""


class InputError(FoveateError, ValueError):
    """Images, text or tensors that do not fit together."""


class MissingPackage(FoveateError, ImportError):
    """A package of an optional extra that is not installed."""


class PluginError(FoveateError, TypeError):
    """A method, recipe or family of another package that cannot be used; the message names the package."""


class MethodError(FoveateError, RuntimeError):
    """A method broke its contract: unsorted, repeated or out-of-range indices, changed inputs."""


def one_line(text: str) -> str:
    """A text without line ends and control characters, its middle left out beyond 1,000 characters."""
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text if text.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def first_line(error: BaseException) -> str:
    """The first line that somebody else's exception says, or its name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'? Known: a, b, c."` for an unknown name, best guess first."""
    names = sorted(known)
    spelt = {plain(one): one for one in names}
    close = get_close_matches(plain(name[:_MOST_OF_A_NAME]), spelt, n=1, cutoff=0.5)
    guess = f" Did you mean '{spelt[close[0]]}'?" if close else ""
    return f"{guess} Known: {', '.join(names) or 'none'}."


def plain(name: str) -> str:
    """A name without what people vary: capitals, hyphens, blanks."""
    return name.lower().replace("-", "_").replace(" ", "_")
