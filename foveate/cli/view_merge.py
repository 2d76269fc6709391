"""foveate view merge: which token went where, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import media, options, startup, tables
from foveate.cli.settings import DEFAULTS, ModelSettings, spread
from foveate.errors import InputError
from foveate.files.writing import Content, check_outputs, write_files
from foveate.viz.packages import require

# Merges in the encoder and in front of a decoder layer; both exist in every model with an encoder of four layers.
_QUESTION = "describe the image in detail."
_PLAN = "partition(site=vision, layer=2, keep=0.6) | partition(layer=2, keep=0.5)"


@spread
def view_merge(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE|VIDEO...", callback=options.expanded, help="Pictures, video files and folders of frames."
        ),
    ] = None,
    question: Annotated[str, typer.Option(help="What is asked; stages in the LLM rank by it.")] = _QUESTION,
    plan: Annotated[str, typer.Option(help="Any plan.")] = _PLAN,
    model: options.Model = None,
    html: options.Html = None,
    png: options.Png = None,
    video: options.Videos = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
    settings: ModelSettings = DEFAULTS,
) -> None:
    """Draw for every stage what survived, what was dropped, and which region each survivor stands for: a page with a slider."""
    from foveate.spec import parse

    parsed = parse(plan)
    if not parsed.stages:
        raise InputError(f"--plan {plan}: it has no stage, so there is nothing to draw; write a method")
    html = html if html is not None or png is not None else Path("merge.html")
    check_outputs({"--html": html, "--png": png}, inputs=[*(images or []), *(video or []), model])
    if html is not None:
        require("jinja2")
    if not images and not video:
        raise InputError("no picture: write one or more picture or video files")
    shown = media.load_all(images or [], video, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = startup.load_model(model, settings)
    from foveate.api import attach
    from foveate.cli import loading
    from foveate.cli.drawn import stage_table, traced_parts
    from foveate.viz.merge_page import MergeHeading, merge_page
    from foveate.viz.merge_picture import merge_film, merge_stages
    from foveate.viz.overlay import stack
    from foveate.viz.parts import groups_of, is_film

    inputs = loading.prompt_inputs(loaded, processor, [one.content for one in shown], question)
    with attach(loaded, parsed) as attachment:
        loaded.generate(**inputs, do_sample=False, max_new_tokens=1)
        trace = attachment.trace
    drawn = traced_parts(trace, shown, inputs, processor)
    written: dict[Path, Content] = {}
    if html is not None:
        heading_texts = MergeHeading(str(parsed), question, f"{type(loaded).__name__}, {media.names_of(shown)}")
        written[html] = merge_page(drawn, heading_texts).encode("utf-8")
    if png is not None:
        written[png] = loading.png(
            stack([merge_film(group) if is_film(group) else merge_stages(*group[0]) for group in groups_of(drawn)])
        )
    write_files(written)
    console = tables.make_console()
    tables.show(console, stage_table(parsed, shown, drawn))
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)
