"""foveate view: pictures of where a model looks, and of what a plan keeps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveate.api import attach, attention
from foveate.cli import loading, media, options, tables
from foveate.cli.drawn import stage_table, traced_parts, with_parts
from foveate.core.attention import KINDS, AttentionStudy, Raters
from foveate.core.layout import Medium
from foveate.errors import InputError
from foveate.spec import Plan
from foveate.viz.attention_page import Heading, attention_page
from foveate.viz.attention_plot import KIND_NAMES, RATER_NAMES, allocation_plot, heat_map, layer_name
from foveate.viz.kept import kept_film, kept_stages
from foveate.viz.packages import require
from foveate.viz.parts import Part, groups_of, is_film


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
) -> None:
    """Measure where the answer's tokens look: shares of system, visual, instruction and output tokens, and heat maps."""
    paths, question = media.split_arguments(arguments, bool(video))
    chosen = None if layers is None else _layers(layers)
    _check_folder(out)
    require("matplotlib", "jinja2")
    shown = media.load_all(paths, video, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = loading.load_model(model)
    inputs = loading.prompt_inputs(loaded, processor, [one.content for one in shown], question)
    console = tables.make_console()
    with console.status("answering and measuring"):
        study = attention(loaded, inputs, new_tokens, chosen)
    answer = processor.tokenizer.decode(study.answers[0], skip_special_tokens=True).strip()
    drawn = with_parts(study.layout.media, shown, inputs, processor)
    numbers = _numbers(study, drawn, question, answer)
    with console.status("drawing"):
        heading = Heading(question, answer, f"{type(loaded).__name__}, {media.names_of(shown)}")
        files = _attention_files(study, drawn, heading)
    files["attention.json"] = (json.dumps(numbers) + "\n").encode("utf-8")
    _write(out, files)
    if as_json:
        typer.echo(json.dumps({**numbers, "files": [str(out / name) for name in files]}))
        return
    console.print(f"answer: {answer or '(empty)'}", markup=False)
    for kind in Raters:
        if kind is Raters.INSTRUCTION or study.has_answer(0):
            console.print(_table(study, kind))
    if not study.has_answer(0):
        console.print("the answer has no token, so only the prompt's last token was measured", style="yellow")
    _tell(console, out, files)


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
) -> None:
    """Draw which visual tokens each stage of a plan keeps of each picture."""
    paths, question = media.split_arguments(arguments, bool(video))
    parsed = Plan.parse(plan)
    if not parsed.stages:
        raise InputError(f"--plan {plan}: it has no stage, so it keeps everything; write a method")
    _check_folder(out)
    shown = media.load_all(paths, video, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = loading.load_model(model)
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
    console.print(stage_table(parsed, shown, drawn))
    _tell(console, out, files)


def _layers(text: str) -> list[int]:
    """ "0,1,8..11" -> [0, 1, 8, 9, 10, 11]."""
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise InputError(f"--layers {text}: write numbers and ranges, e.g. 0,1,8..15")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return chosen


def _check_folder(out: Path) -> None:
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"--out {out}: {place} is a file; name a folder")


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise InputError(f"--out {out}: cannot write there: {error.strerror or error}") from None


def _tell(console: Console, out: Path, files: Mapping[str, bytes]) -> None:
    for name in files:
        console.print(f"wrote {out / name}", markup=False, highlight=False)


def _attention_files(
    study: AttentionStudy, drawn: Sequence[tuple[Medium, Sequence[Part]]], heading: Heading
) -> dict[str, bytes]:
    files = {
        "attention.html": attention_page(study, drawn, heading).encode("utf-8"),
        "allocation.png": allocation_plot(study, heading.question),
    }
    for number, (medium, parts) in enumerate(drawn, start=1):
        for place, part in enumerate(parts, start=1):
            name = f"{number}" if len(parts) == 1 else f"{number}-part-{place}"
            for kind in Raters:
                if kind is Raters.INSTRUCTION or study.has_answer(0):
                    subtitle = f"{heading.question} → {heading.answer}" if kind is Raters.OUTPUT else heading.question
                    files[f"heat-{name}-{kind.value}.png"] = heat_map(study, kind, medium, part, subtitle)
    return files


def _numbers(
    study: AttentionStudy, drawn: Sequence[tuple[Medium, Sequence[Part]]], question: str, answer: str
) -> dict[str, Any]:
    """Everything that was measured, for programs. Shares are of 1; attention of grid tokens in raster order."""
    raters: dict[str, Any] = {}
    for kind in Raters:
        if kind is Raters.OUTPUT and not study.has_answer(0):
            continue
        raters[kind.value] = {
            "shares": _rows(study.shares(kind)[:, 0]),
            "per_token": _rows(study.efficiency(kind)[:, 0]),
            "pictures": [_rows(study.received(kind, medium)) for medium, _ in drawn],
        }
    return {
        "question": question,
        "answer": answer,
        "layers": list(study.layers),
        "windows": list(study.windows),
        "kinds": [KIND_NAMES[kind] for kind in KINDS],
        "token_counts": study.token_counts()[0].tolist(),
        "pictures": [
            {"kind": medium.shape.kind, "grids": [list(grid) for grid in medium.shape.grids], "parts": [p.title for p in parts]}
            for medium, parts in drawn
        ],
        "raters": raters,
    }


def _rows(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else float(f"{value:.7g}") for value in row] for row in values.tolist()]


def _table(study: AttentionStudy, raters: Raters) -> Table:
    counts = study.token_counts()[0].tolist()
    seen = [number for number, count in enumerate(counts) if count and (raters is Raters.OUTPUT or number < len(KINDS) - 1)]
    table = Table(title=f"attention of {RATER_NAMES[raters]}: share, and share per token", title_justify="left")
    table.add_column("layer")
    for number in seen:
        count = f"{counts[number]} token" + ("s" if counts[number] != 1 else "")
        table.add_column(f"{KIND_NAMES[KINDS[number]]}\n{count}", justify="right")
    for number in seen:
        table.add_column(f"one {KIND_NAMES[KINDS[number]]}\ntoken", justify="right", style="cyan")
    shares, efficiency = study.shares(raters)[:, 0], study.efficiency(raters)[:, 0]
    for number, _ in enumerate(study.layers):
        cells = [f"{100 * float(shares[number, kind]):.1f} %" for kind in seen]
        cells += [f"{100 * float(efficiency[number, kind]):.3g} %" for kind in seen]
        table.add_row(layer_name(study, number).removeprefix("layer "), *cells)
    return table
