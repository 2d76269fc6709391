"""foveate view: pictures of where a model looks, and of what a plan keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foveate.cli import media, options, startup, tables
from foveate.cli.settings import DEFAULTS, ModelSettings, spread
from foveate.errors import InputError
from foveate.files.writing import check_output_folder, make_folder, write_files
from foveate.viz.packages import require


@spread
def view_attention(
    arguments: options.Prompt,
    model: options.Model = None,
    out: options.OutFolder = Path("attention-view"),
    new_tokens: options.NewTokens = 32,
    layers: Annotated[str | None, typer.Option(help="Decoder layers, e.g. 0,1,8..15; all if left out.")] = None,
    as_json: options.AsJson = False,
    video: options.Videos = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
    settings: ModelSettings = DEFAULTS,
) -> None:
    """Measure where the answer's tokens look: shares of system, visual, instruction and output tokens, and heat maps."""
    paths, question = media.split_arguments(arguments, bool(video), model)
    chosen = None if layers is None else _layers(layers)
    check_output_folder("--out", out, inputs=[*paths, *(video or []), model])
    require("matplotlib", "jinja2")
    shown = media.load_all(paths, video, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = startup.load_model(model, settings)
    from foveate.api import attention
    from foveate.cli import attention_files, loading
    from foveate.cli.drawn import with_parts
    from foveate.core.attention import Raters
    from foveate.viz.attention_page import Heading

    inputs = loading.prompt_inputs(loaded, processor, [one.content for one in shown], question)
    console = tables.make_console()
    with console.status("answering and measuring"):
        study = attention(loaded, inputs, new_tokens, chosen)
    answer = processor.tokenizer.decode(study.answers[0], skip_special_tokens=True).strip()
    drawn = with_parts(study.layout.media, shown, inputs, processor)
    numbers = attention_files.numbers(study, drawn, question, answer)
    with console.status("drawing"):
        heading = Heading(question, answer, f"{type(loaded).__name__}, {media.names_of(shown)}")
        files = attention_files.attention_files(study, drawn, heading)
    files["attention.json"] = (json.dumps(numbers) + "\n").encode("utf-8")
    _write(out, files)
    if as_json:
        typer.echo(json.dumps({**numbers, "files": [str(out / name) for name in files]}))
        return
    console.print(f"answer: {answer or '(empty)'}", markup=False)
    for kind in Raters:
        if kind is Raters.INSTRUCTION or study.has_answer(0):
            tables.show(console, attention_files.table(study, kind))
    if not study.has_answer(0):
        console.print("the answer has no token, so only the prompt's last token was measured", style="yellow")
    _tell(console, out, files)


@spread
def view_kept(
    arguments: options.Prompt,
    plan: Annotated[str, typer.Option(help='e.g. "fastv(layer=2, keep=0.5)".')],
    model: options.Model = None,
    out: options.OutFolder = Path("kept-view"),
    video: options.Videos = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
    settings: ModelSettings = DEFAULTS,
) -> None:
    """Draw which visual tokens each stage of a plan keeps of each picture."""
    from foveate.spec import parse

    paths, question = media.split_arguments(arguments, bool(video))

    parsed = parse(plan)
    if not parsed.stages:
        raise InputError(f"--plan {plan}: it has no stage, so it keeps everything; write a method")
    check_output_folder("--out", out, inputs=[*paths, *(video or []), model])
    shown = media.load_all(paths, video, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = startup.load_model(model, settings)
    from foveate.api import attach
    from foveate.cli import loading
    from foveate.cli.drawn import stage_table, traced_parts
    from foveate.viz.kept import kept_film, kept_stages
    from foveate.viz.parts import groups_of, is_film

    inputs = loading.prompt_inputs(loaded, processor, [one.content for one in shown], question)
    console = tables.make_console()
    with attach(loaded, parsed) as attachment:
        loaded.generate(**inputs, do_sample=False, max_new_tokens=1)
        trace = attachment.trace
    drawn = traced_parts(trace, shown, inputs, processor)
    files = {}
    for number, group in enumerate(groups_of(drawn), start=1):
        picture = kept_film(group) if is_film(group) else kept_stages(*group[0])
        files[f"kept-{number}.png"] = loading.png(picture)
    _write(out, files)
    tables.show(console, stage_table(parsed, shown, drawn))
    _tell(console, out, files)


def _layers(text: str) -> list[int]:
    """ "0,1,8..11" -> [0, 1, 8, 9, 10, 11]."""
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:\.\.([0-9]{1,4}))?\s*", part)  # no model has 10,000 layers
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise InputError(f"--layers {text}: write numbers and ranges of layers, e.g. 0,1,8..15")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(chosen))


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    make_folder(out)
    write_files({out / name: content for name, content in files.items()})


def _tell(console: Console, out: Path, files: Mapping[str, bytes]) -> None:
    for name in files:
        console.print(f"wrote {out / name}", markup=False, highlight=False)
