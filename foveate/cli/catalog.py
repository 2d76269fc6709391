"""foveate methods, foveate models: capability tables, probed and never guessed, packaged so that they come at once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from foveate.cli import options, startup, tables
from foveate.errors import FoveateWarning

if TYPE_CHECKING:  # a help text needs none of them
    from rich.table import Table

    from foveate.api.capability_table import FamilyCapability, RecipeCapability

_Row = TypeVar("_Row")
_CACHE_NOTE = (
    "static: a pruned layer reserves fewer slots, in steps of 256, and its decode steps compile; under SDPA, eager or flex. "
    "quantized: what a stage drops is never stored; what is stored cannot be forgotten slot by slot. effect=mask: dynamic only."
)


def methods(as_json: options.AsJson = False) -> None:
    """List the methods: what they do, where they act, their options."""
    from foveate import methods, recipes
    from foveate.api.capability_table import packaged

    table = packaged()
    rows = [*table.methods, *_others(methods.outside(), "method", lambda own: _probing().method_capabilities(own))]
    expanding = [*table.recipes, *_others(recipes.outside(), "recipe", lambda own: _probing().recipe_capabilities(own))]
    console = tables.make_console()
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in rows]))
        return
    shown = tables.make_table("method", "what it does", "sites", "effect", "options")
    for row in rows:
        effect = row.effect + (", can mask" if row.masks else "")
        published = f"\npublished: {row.published}" if row.published else ""
        what = f"{row.summary}\n[dim]{row.paper}; looks at {row.looks_at}{published}[/]"
        shown.add_row(f"[bold]{row.name}[/]", what, ", ".join(row.sites), effect, row.options or "none")
    tables.show(console, shown)
    console.print('Every method also takes keep, layer or site, scope, effect: "fastv(layer=2, keep=0.5)".', style="dim")
    tables.show(console, _recipes(expanding))


def _probing() -> Any:
    """What tries methods and models takes seconds to import."""
    from foveate.api import capabilities

    return capabilities


def _others(names: Sequence[str], word: str, probe: Callable[[list[str]], Iterable[_Row]]) -> list[_Row]:
    """The rows of other packages' methods, recipes or families; one that fails while it is tried costs a warning."""
    rows: list[_Row] = []
    for name in names:
        try:
            with startup.spinner(f"trying {name}"):
                rows += probe([name])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"the {word} '{name}' of another package failed when it was tried: {said}", FoveateWarning, stacklevel=2
            )
    return rows


def _recipes(rows: Iterable[RecipeCapability]) -> Table:
    """What expands to several stages."""
    table = tables.make_table("recipe", "what it does", "options")
    for row in rows:
        what = "\n".join([row.summary, *(f"[dim]{note}[/]" for note in row.notes)])
        table.add_row(f"[bold]{row.name}[/]", what, ", ".join(row.options))
    return table


def models(
    as_json: options.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As on the page of supported models.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Try all of them here and now; it takes a minute or two.")] = False,
) -> None:
    """List the model families: what was tried on a tiny random model of each."""
    from foveate import families
    from foveate.api.capability_table import packaged, refused_models

    table = packaged()
    rows, version = list(table.families), table.transformers
    if probe:
        rows, version = _probe_all()
    if markdown:
        typer.echo(markdown_table(rows))
        return
    rows += _others(families.outside(), "family", lambda own: _probing().family_capabilities(own))
    console = tables.make_console()
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in [*rows, *refused_models()]]))
        return
    shown = tables.make_table("family", "model_type", "sites that work", "backends that ran", "caches", "video", "not served")
    for row in rows:
        reasons: dict[str, list[str]] = {}
        for site, reason in row.refused.items():
            reasons.setdefault(reason, []).append(site)
        refused = "\n".join(f"{', '.join(sites)}: {reason}" for reason, sites in reasons.items())
        shown.add_row(
            f"[bold]{row.title}[/]\n[dim]{row.notes}[/]",
            ", ".join(row.model_types),
            ", ".join(row.sites),
            ", ".join(row.backends),
            ", ".join(row.caches),
            "yes" if row.video else "no",
            refused,
        )
    tables.show(console, shown)
    console.print(f"Tried on transformers {version}{'' if probe else '; --probe tries them here and now'}.", style="dim")
    console.print(_CACHE_NOTE, style="dim")
    tables.show(console, _not_served())


def _probe_all() -> tuple[list[FamilyCapability], str]:
    """The rows of our families, measured now, and the version of transformers."""
    rows: list[FamilyCapability] = []
    with startup.spinner("importing torch and transformers") as status:
        import transformers

        from foveate import families
        from foveate.core import registry

        for row in _probing().family_capabilities(registry.file_names(families)):
            rows.append(row)
            status.update(f"building tiny random models and trying them: {len(rows)} families, {row.title} done")
    return rows, transformers.__version__


def _not_served() -> Table:
    """The model types that no family file can serve, by reason."""
    from foveate.api.capability_table import refused_models

    by_reason: dict[str, list[str]] = {}
    for row in refused_models():
        by_reason.setdefault(row.not_served, []).append(row.name)
    table = tables.make_table("not served", "why")
    for reason, names in by_reason.items():
        table.add_row(", ".join(names), reason)
    return table


def markdown_table(rows: Iterable[FamilyCapability]) -> str:
    """The family table of docs/models.md."""
    lines = ["| family | `model_type` | sites | backends | caches | video | notes |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (
            row.title,
            ", ".join(f"`{name}`" for name in row.model_types),
            ", ".join(row.sites),
            ", ".join(row.backends),
            ", ".join(row.caches),
            "yes" if row.video else "no",
            row.notes,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
