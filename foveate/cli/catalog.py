"""foveate methods, foveate models: capability tables, probed and never guessed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Annotated

import typer
from rich.table import Table

from foveate import recipes
from foveate.api.capabilities import FamilyCapability, family_capabilities, method_capabilities, refused_models
from foveate.cli import options, tables

_CACHE_NOTE = (
    "static: a pruned layer reserves fewer slots, in steps of 256, and its decode steps compile; under SDPA, eager or flex. "
    "quantized: what a stage drops is never stored; what is stored cannot be forgotten slot by slot. effect=mask: dynamic only."
)


def methods(as_json: options.AsJson = False) -> None:
    """List the methods: what they do, where they act, their options."""
    rows = method_capabilities()
    console = tables.make_console()
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in rows]))
        return
    table = Table(show_lines=True)
    for heading in ("method", "what it does", "sites", "effect", "options"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        effect = row.effect + (", can mask" if row.masks else "")
        what = f"{row.summary}\n[dim]{row.paper}{'; looks at attention' if row.observes else ''}[/]"
        table.add_row(f"[bold]{row.name}[/]", what, ", ".join(row.sites), effect, row.options or "none")
    console.print(table)
    console.print('Every method also takes keep, layer or site, scope, effect: "fastv(layer=2, keep=0.5)".', style="dim")
    console.print(_recipes())


def _recipes() -> Table:
    """What expands to several stages."""
    table = Table(show_lines=True)
    for heading in ("recipe", "what it does", "options"):
        table.add_column(heading, overflow="fold")
    for name in recipes.names():
        recipe = recipes.get(name)
        what = "\n".join([(recipe.__doc__ or "").splitlines()[0], *(f"[dim]{note}[/]" for note in recipe.notes)])
        table.add_row(f"[bold]{name}[/]", what, ", ".join(field.name for field in fields(recipe)))
    return table


def models(
    as_json: options.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As in the README.")] = False,
) -> None:
    """List the model families: what was tried on a tiny random model of each, here and now."""
    console = tables.make_console()
    rows: list[FamilyCapability] = []
    with console.status("building tiny random models and trying them") as status:
        for row in family_capabilities():
            rows.append(row)
            status.update(f"building tiny random models and trying them: {len(rows)} families, {row.title} done")
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in [*rows, *refused_models()]]))
        return
    if markdown:
        typer.echo(markdown_table(rows))
        return
    table = Table(show_lines=True)
    for heading in ("family", "model_type", "sites that work", "backends that ran", "caches", "video", "not served"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        reasons: dict[str, list[str]] = {}
        for site, reason in row.refused.items():
            reasons.setdefault(reason, []).append(site)
        refused = "\n".join(f"{', '.join(sites)}: {reason}" for reason, sites in reasons.items())
        table.add_row(
            f"[bold]{row.title}[/]\n[dim]{row.notes}[/]",
            ", ".join(row.model_types),
            ", ".join(row.sites),
            ", ".join(row.backends),
            ", ".join(row.caches),
            "yes" if row.video else "no",
            refused,
        )
    console.print(table)
    console.print(_CACHE_NOTE, style="dim")
    console.print(_not_served())


def _not_served() -> Table:
    """The model types that no family file can serve, by reason."""
    by_reason: dict[str, list[str]] = {}
    for row in refused_models():
        by_reason.setdefault(row.not_served, []).append(row.name)
    table = Table(show_lines=True)
    for heading in ("not served", "why"):
        table.add_column(heading, overflow="fold")
    for reason, names in by_reason.items():
        table.add_row(", ".join(names), reason)
    return table


def markdown_table(rows: Iterable[FamilyCapability]) -> str:
    """The family table of the README."""
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
