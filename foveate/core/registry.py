"""Finding classes by file name: the file `fastv.py` defines the method `fastv`. There is no list to edit.

Other packages add their own through entry points (a *plugin*), whose names are then the names on the command line. Each is
loaded on its own: one that is broken costs one warning that names its package, and its name.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from foveate.errors import FoveateWarning, PluginError, UnknownName, did_you_mean

# Methods and recipes are written in one place, so no name may be both.
_ONE_NAMESPACE = ("foveate.methods", "foveate.recipes")
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_told: set[str] = set()


@dataclass(frozen=True)
class Kind:
    """What a folder of ours holds, and what an entry point of the group with its name must be.

    Attributes:
        package: the folder; its dotted name is the entry-point group.
        base: the class that each file subclasses once.
        word: what one is called in messages.
        check: raises for a plugin's class, given after its name, that could not serve: it makes one and looks at it.
    """

    package: ModuleType
    base: type
    word: str
    check: Callable[[str, Any], None]

    @property
    def group(self) -> str:
        """The entry-point group."""
        return self.package.__name__


def file_names(package: ModuleType) -> list[str]:
    """Names of the public modules of a package, sorted."""
    return list(_file_names(tuple(package.__path__)))


@cache
def _file_names(path: tuple[str, ...]) -> list[str]:
    """Folders are listed once: every attach asks, and every family is asked whether a config is its own."""
    return sorted(info.name for info in pkgutil.iter_modules(path) if not info.name.startswith("_"))


@cache
def entry_point_targets(group: str) -> dict[str, Any]:
    """Entry points of a group by name, not loaded. Reading them costs milliseconds, so each group is read once."""
    found: dict[str, list[EntryPoint]] = {}
    try:
        points: Iterable[EntryPoint] = entry_points(group=group)
    except Exception:  # one package's malformed file hides those of all
        points = _one_by_one(group)
    for point in points:
        found.setdefault(point.name, []).append(point)
    return {name: each[0] if len(each) == 1 else _Contested(each) for name, each in found.items()}


def _one_by_one(group: str) -> Iterator[EntryPoint]:
    seen = set()
    for distribution in distributions():
        name = _name_of(distribution)
        if name in seen:  # of two installations of one package the first on sys.path counts
            continue
        seen.add(name)
        try:
            yield from distribution.entry_points.select(group=group)
        except Exception as error:
            _warn(f"the entry points of the package {name} cannot be read: {_said(error)}")


@dataclass(frozen=True)
class _Contested:
    """A name that several entry points give to different things."""

    points: Sequence[EntryPoint]

    def load(self) -> Any:
        """Raise, naming all of them."""
        raise PluginError(f"registered more than once, by {' and '.join(map(_package, self.points))}; uninstall all but one")


def has(kind: Kind, name: str) -> bool:
    """Whether a file or an entry point has the name; the entry point is not loaded."""
    return name in file_names(kind.package) or name in _points(kind)


def outside(kind: Kind) -> dict[str, type]:
    """The working plugins of a kind by name; each other one is warned about, once."""
    found = {}
    for name in sorted(set(entry_point_targets(kind.group)) & _taken(kind)):
        _warn_of_shadow(kind, name)
    for name, point in sorted(_points(kind).items()):
        try:
            found[name] = _load(kind, name, point)
        except PluginError as error:
            _warn(f"{error}; it is left out")
    return found


def names(kind: Kind) -> list[str]:
    """All names of a kind, ours and those of plugins that work, sorted."""
    return sorted({*file_names(kind.package), *outside(kind)})


def find_class(kind: Kind, name: str) -> type:
    """Return the one public subclass that a file of ours defines, or else what the entry point of that name does.

    Raises:
        UnknownName: if neither a file nor an entry point has the name; the message suggests the nearest.
        PluginError: for an entry point that cannot be used; the message names its package.
    """
    points = _points(kind)
    if name in file_names(kind.package):
        if name in entry_point_targets(kind.group):
            _warn_of_shadow(kind, name)
        return _own_class(kind, name)
    if name in points:
        return _load(kind, name, points[name])
    raise UnknownName(f"unknown {kind.word} '{name}'." + did_you_mean(name, names(kind)))


def class_named(kind: Kind, name: str) -> type | None:
    """The class of ours with this name, None without one: a file is called what its class is, in small letters with `_`.

    Only a file whose name fits is loaded.
    """
    fitting = [file for file in file_names(kind.package) if file.replace("_", "") == name.lower()]
    found = [_own_class(kind, file) for file in fitting]
    return next((cls for cls in found if cls.__name__ == name), None)


def class_names(kind: Kind) -> list[str]:
    """Names of the classes of ours; loads all files."""
    return [_own_class(kind, file).__name__ for file in file_names(kind.package)]


def tell(kind: Kind, name: str, error: BaseException) -> None:
    """Warn once that a plugin failed later than at loading."""
    _warn(f"{_title(kind, name, entry_point_targets(kind.group)[name])}: {_said(error)}; it is left out")


def _own_class(kind: Kind, name: str) -> type:
    module = importlib.import_module(f"{kind.package.__name__}.{name}")
    own = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, kind.base)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public {kind.base.__name__}, found {len(own)}")
    return own[0]


_outcomes: dict[int, tuple[Any, type | PluginError]] = {}


def _load(kind: Kind, name: str, point: Any) -> type:
    """What an entry point names, tried once: it runs another package's code."""
    if id(point) not in _outcomes:
        outcome: type | PluginError
        try:
            outcome = _checked(kind, name, point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in somebody's module ends no command of ours
            outcome = PluginError(f"{_title(kind, name, point)}: {_said(error)}")
        # The entry point is kept beside its outcome, so that no other one gets its id.
        _outcomes[id(point)] = point, outcome
    outcome = _outcomes[id(point)][1]
    if isinstance(outcome, PluginError):
        raise outcome.with_traceback(None)
    return outcome


def _checked(kind: Kind, name: str, point: Any) -> type:
    if not _NAME.fullmatch(name) or name == "none":
        raise TypeError("a name is of small letters, digits and _, and not 'none'")
    others = [group for group in _ONE_NAMESPACE if kind.group in _ONE_NAMESPACE and group != kind.group]
    for rival in (entry_point_targets(group).get(name) for group in others):
        if rival is not None and rival is not point:
            raise TypeError(f"{_package(rival)} registers the same name; uninstall one of them")
    loaded = point.load()
    if not (isinstance(loaded, type) and issubclass(loaded, kind.base)):
        raise TypeError(f"it must name a subclass of {kind.base.__name__}, not {type(loaded).__name__} {loaded!r:.60}")
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
        raise TypeError(f"{loaded.__name__} is abstract: it lacks {missing}")
    kind.check(name, loaded)
    return loaded


def _points(kind: Kind) -> dict[str, Any]:
    """Entry points whose names are not ours."""
    points = entry_point_targets(kind.group)
    return {name: points[name] for name in set(points) - _taken(kind)} if points else {}


def _taken(kind: Kind) -> set[str]:
    """Names of ours that a plugin of this kind cannot have."""
    if kind.group not in _ONE_NAMESPACE:
        return set(file_names(kind.package))
    root = Path(next(iter(kind.package.__path__))).parent
    return set(_file_names(tuple(str(root / group.rpartition(".")[2]) for group in _ONE_NAMESPACE)))


def _warn_of_shadow(kind: Kind, name: str) -> None:
    point = entry_point_targets(kind.group)[name]
    _warn(f"{_title(kind, name, point)}: foveate has that name itself, and its own is used")


def _title(kind: Kind, name: str, point: Any) -> str:
    return f"plugin {_package(point)}, {kind.word} '{name}' (entry point '{name}' of {kind.group})"


def _package(point: Any) -> str:
    """The distribution that an entry point belongs to."""
    if isinstance(point, _Contested):
        return " and ".join(map(_package, point.points))
    return _name_of(getattr(point, "dist", None))


def _name_of(distribution: Any) -> str:
    """Its name in somebody's metadata, which may be anything."""
    try:
        return str(distribution.metadata["Name"])
    except Exception:
        return "of an unknown package"


def _said(error: BaseException) -> str:
    """An error on one line, whatever its own words do."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    if isinstance(error, (PluginError, TypeError)) and text:
        return text[:300]
    return f"{type(error).__name__}{': ' if text else ''}{text[:300]}"


def _warn(text: str) -> None:
    text = " ".join(text.split())
    if text not in _told:
        _told.add(text)
        warnings.warn(text, FoveateWarning, stacklevel=3)
