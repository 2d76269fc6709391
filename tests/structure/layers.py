"""The import rules of the package, as functions over source text."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Imports point down only; rooms on one line never import each other.
ORDER = (
    ("version", "errors"),
    ("files",),
    ("core",),
    ("ops",),
    ("predictors",),
    ("methods", "families", "cost"),
    ("engine",),
    ("recipes",),
    ("spec",),
    ("api",),
    ("bench", "evaluate", "viz", "train", "convert", "demo"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
ANYWHERE = ("version", "errors")
FACADE = "__init__"
TORCH_ONLY = ("core", "ops", "methods")
# Rooms of the standard library and little else.
STDLIB_AND = {"version": (), "errors": (), "files": ("filelock",)}
NO_TRANSFORMERS = ("core", "ops", "predictors", "methods", "cost", "recipes", "spec")


@dataclass(frozen=True)
class Import:
    module: str
    names: tuple[str, ...]
    line: int
    in_function: bool


def imports(source: str) -> Iterator[Import]:
    """Every import statement, those inside functions too, but not those for type checkers only."""
    yield from _imports(ast.parse(source), False)


def _imports(node: ast.AST, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, in_function)
        elif isinstance(child, ast.ImportFrom):
            prefix = "." * child.level
            yield Import(prefix + (child.module or ""), tuple(alias.name for alias in child.names), child.lineno, in_function)
        else:
            yield from _imports(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def room_of(path: str) -> str:
    """`foveate/core/plan.py` -> core, `foveate/api.py` -> api."""
    return path.split("/")[1].removesuffix(".py")


def _targets(found: Import) -> list[str]:
    """The rooms that an import reaches."""
    parts = found.module.split(".")
    if parts[0] != "foveate":
        return []
    if len(parts) > 1:
        return [parts[1]]
    return [name if name in RANK else FACADE for name in found.names or (FACADE,)]


def import_violations(files: Mapping[str, str]) -> list[str]:
    """One line for each broken rule in {path: source}."""
    out = []
    for path, source in files.items():
        room = room_of(path)
        if room == FACADE:
            continue
        if room not in RANK:
            out.append(f"{path}: room '{room}' has no place in the order")
            continue
        for found in imports(source):
            where = f"{path}:{found.line}"
            if found.module.startswith("."):
                out.append(f"{where}: relative import; write the whole name")
            out += [f"{where}: {room} imports {target}" for target in _targets(found) if not _may_import(room, target)]
            out += _outside(room, found, where)
    return out


def _may_import(room: str, target: str) -> bool:
    if target == FACADE:
        return RANK[room] > RANK["api"]
    return target == room or target in ANYWHERE or RANK.get(target, len(ORDER)) < RANK[room]


def _outside(room: str, found: Import, where: str) -> Iterator[str]:
    top = found.module.partition(".")[0]
    if top in ("foveate", "", *sys.stdlib_module_names):
        return
    if (
        top not in STDLIB_AND.get(room, (top,))
        or (room in TORCH_ONLY and top != "torch")
        or (room in NO_TRANSFORMERS and top == "transformers")
    ):
        yield f"{where}: {room} imports {top}"
    elif room == "families" and top == "transformers" and not found.in_function:
        yield f"{where}: families import transformers inside functions only"


def naming_violations(files: Mapping[str, str], names: list[str]) -> list[str]:
    """Places where the engine names a method: an import, or a string that is not a docstring."""
    word = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)")
    out = []
    for path, source in files.items():
        if room_of(path) != "engine":
            continue
        tree = ast.parse(source)
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                out += [f"{path}:{node.lineno}: names '{hit}'" for hit in word.findall(node.value)]
        for found in imports(source):
            if "methods" in _targets(found):
                out.append(f"{path}:{found.line}: imports a method")
    return out
