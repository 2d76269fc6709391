"""foveate view merge: which token went where, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from foveate.api import attach
from foveate.cli import loading, tables
from foveate.cli.view import with_parts
from foveate.errors import InputError
from foveate.spec import Plan
from foveate.viz.merge_page import MergeHeading, merge_page
from foveate.viz.merge_picture import merge_stages
from foveate.viz.overlay import stack
from foveate.viz.packages import require

# Merges in the encoder and in front of a decoder layer; both exist in every model with an encoder of four layers.
_QUESTION = "describe the image in detail."
_PLAN = "partition(site=vision, layer=2, keep=0.6) | partition(layer=2, keep=0.5)"


def view_merge(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    question: Annotated[
        str, typer.Option(help="What is asked; stages in the LLM rank by it.")
    ] = "describe the image in detail.",
    plan: Annotated[str, typer.Option(help="Any plan.")] = _PLAN,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; the embedded demo model if left out.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page with the slider here.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write all stages as one picture here.")] = None,
) -> None:
    """Draw for every stage what survived, what was dropped, and which region each survivor stands for."""
    parsed = Plan.parse(plan)
    if not parsed.stages:
        raise InputError(f"--plan {plan}: it has no stage, so there is nothing to draw; write a method")
    html = html if html is not None or png is not None else Path("merge.html")
    for name, path in (("html", html), ("png", png)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"--{name} {path}: name a file in a folder that exists")
    if html is not None:
        require("jinja2")
    pictures = [loading.load_image(path) for path in images]
    loaded, processor = loading.load_model(model)
    inputs = loading.prompt_inputs(loaded, processor, pictures, question)
    with attach(loaded, parsed) as attachment:
        loaded.generate(**inputs, do_sample=False, max_new_tokens=1)
        trace = attachment.trace
    media = with_parts([entry.medium for entry in trace.media], images, pictures, inputs, processor)
    drawn = [(entry, parts) for entry, (_, parts) in zip(trace.media, media, strict=True)]
    console = tables.make_console()
    table = Table(title=escape(str(parsed)), title_justify="left")
    for heading in ("picture", "visual tokens", *(escape(text) for text, _ in trace.media[0].stages)):
        table.add_column(heading, overflow="fold", justify="left" if heading == "picture" else "right")
    for entry, path in zip(trace.media, images, strict=True):
        table.add_row(escape(path.name), str(entry.medium.shape.grid_tokens), *(str(len(kept)) for kept in entry.kept))
    files: dict[Path, bytes] = {}
    if html is not None:
        heading_texts = MergeHeading(str(parsed), question, f"{type(loaded).__name__}, {', '.join(p.name for p in images)}")
        files[html] = merge_page(drawn, heading_texts).encode("utf-8")
    if png is not None:
        files[png] = loading.png(stack([merge_stages(entry, parts) for entry, parts in drawn]))
    for path, content in files.items():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    console.print(table)
    for path in files:
        console.print(f"wrote {path}", markup=False, highlight=False)
