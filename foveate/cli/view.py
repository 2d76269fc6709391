"""foveate view: pictures of where a model looks, and of what a plan keeps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from foveate.api import attach, attention
from foveate.cli import loading, tables
from foveate.core.attention import KINDS, AttentionStudy, Raters
from foveate.core.layout import Medium
from foveate.core.shape import MediumShape
from foveate.errors import InputError
from foveate.spec import Plan
from foveate.viz.attention_page import Heading, attention_page
from foveate.viz.attention_plot import KIND_NAMES, RATER_NAMES, allocation_plot, heat_map, layer_name
from foveate.viz.kept import kept_stages
from foveate.viz.packages import require
from foveate.viz.parts import Part, is_tiled, parts_of, tile_pictures

_Arguments = Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Pictures, then the question.")]
_Model = Annotated[str | None, typer.Option(help="Folder or hub id; the embedded demo model if left out.")]
_Out = Annotated[Path, typer.Option(help="Folder for the files.")]


def view_attention(
    arguments: _Arguments,
    model: _Model = None,
    out: _Out = Path("attention-view"),
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    layers: Annotated[str | None, typer.Option(help="Decoder layers, e.g. 0,1,8..15; all if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure where the answer's tokens look: shares of system, visual, instruction and output tokens, and heat maps."""
    paths, question = loading.split_arguments(arguments)
    chosen = None if layers is None else _layers(layers)
    _check_folder(out)
    require("matplotlib", "jinja2")
    pictures = [loading.load_image(path) for path in paths]
    loaded, processor = loading.load_model(model)
    inputs = loading.prompt_inputs(loaded, processor, pictures, question)
    console = tables.make_console()
    with console.status("answering and measuring"):
        study = attention(loaded, inputs, new_tokens, chosen)
    answer = processor.tokenizer.decode(study.answers[0], skip_special_tokens=True).strip()
    media = _with_parts(study.layout.media, paths, pictures, inputs, processor)
    numbers = _numbers(study, media, question, answer)
    with console.status("drawing"):
        heading = Heading(question, answer, f"{type(loaded).__name__}, {', '.join(path.name for path in paths)}")
        files = _attention_files(study, media, heading)
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
    arguments: _Arguments,
    plan: Annotated[str, typer.Option(help='e.g. "fastv(layer=2, keep=0.5)".')],
    model: _Model = None,
    out: _Out = Path("kept-view"),
) -> None:
    """Draw which visual tokens each stage of a plan keeps of each picture."""
    paths, question = loading.split_arguments(arguments)
    parsed = Plan.parse(plan)
    if not parsed.stages:
        raise InputError(f"--plan {plan}: it has no stage, so it keeps everything; write a method")
    _check_folder(out)
    pictures = [loading.load_image(path) for path in paths]
    loaded, processor = loading.load_model(model)
    inputs = loading.prompt_inputs(loaded, processor, pictures, question)
    console = tables.make_console()
    with attach(loaded, parsed) as attachment:
        loaded.generate(**inputs, do_sample=False, max_new_tokens=1)
        trace = attachment.trace
    media = _with_parts([entry.medium for entry in trace.media], paths, pictures, inputs, processor)
    files, table = {}, Table(title=str(parsed), title_justify="left")
    for heading in ("picture", "visual tokens", *(escape(text) for text, _ in trace.media[0].stages)):
        table.add_column(heading, overflow="fold", justify="left" if heading == "picture" else "right")
    for number, (entry, path, (medium, parts)) in enumerate(zip(trace.media, paths, media, strict=True), start=1):
        files[f"kept-{number}.png"] = loading.png(kept_stages(entry, parts))
        table.add_row(escape(path.name), str(medium.shape.grid_tokens), *(str(len(kept)) for kept in entry.kept))
    _write(out, files)
    console.print(table)
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


def _with_parts(
    media: Sequence[Medium], paths: Sequence[Path], pictures: Sequence[Image.Image], inputs: Mapping[str, Any], processor: Any
) -> list[tuple[Medium, list[Part]]]:
    """The media, one for each picture, with what their tokens show."""
    if len(media) != len(pictures):
        raise InputError(f"the processor made {len(media)} media of {len(pictures)} pictures, so they cannot be drawn")
    shapes = [medium.shape for medium in media]
    tiles = _tiles(shapes, inputs, processor)
    out = []
    for medium, path, picture in zip(media, paths, pictures, strict=True):
        shape = medium.shape
        own, tiles = tiles[: len(shape.grids)], tiles[len(shape.grids) :]
        whole = picture if shape.crops else loading.as_seen(picture, processor)
        if not is_tiled(shape):
            out.append((medium, parts_of(shape, path.name, [whole])))
        else:
            out.append((medium, parts_of(shape, path.name, own or [None])))
    return out


def _tiles(shapes: Sequence[MediumShape], inputs: Mapping[str, Any], processor: Any) -> list[Image.Image]:
    """The tiles of all pictures, where families cut them into tiles."""
    pixels, images = inputs.get("pixel_values"), processor.image_processor
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if not any(is_tiled(shape) for shape in shapes) or not isinstance(pixels, Tensor) or not mean or not std:
        return []
    return tile_pictures(pixels, shapes, mean, std)


def _attention_files(
    study: AttentionStudy, media: Sequence[tuple[Medium, Sequence[Part]]], heading: Heading
) -> dict[str, bytes]:
    files = {
        "attention.html": attention_page(study, media, heading).encode("utf-8"),
        "allocation.png": allocation_plot(study, heading.question),
    }
    for number, (medium, parts) in enumerate(media, start=1):
        for place, part in enumerate(parts, start=1):
            name = f"{number}" if len(parts) == 1 else f"{number}-part-{place}"
            for kind in Raters:
                if kind is Raters.INSTRUCTION or study.has_answer(0):
                    subtitle = f"{heading.question} → {heading.answer}" if kind is Raters.OUTPUT else heading.question
                    files[f"heat-{name}-{kind.value}.png"] = heat_map(study, kind, medium, part, subtitle)
    return files


def _numbers(
    study: AttentionStudy, media: Sequence[tuple[Medium, Sequence[Part]]], question: str, answer: str
) -> dict[str, Any]:
    """Everything that was measured, for programs. Shares are of 1; attention of grid tokens in raster order."""
    raters: dict[str, Any] = {}
    for kind in Raters:
        if kind is Raters.OUTPUT and not study.has_answer(0):
            continue
        raters[kind.value] = {
            "shares": _rows(study.shares(kind)[:, 0]),
            "per_token": _rows(study.efficiency(kind)[:, 0]),
            "pictures": [_rows(study.received(kind, medium)) for medium, _ in media],
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
            for medium, parts in media
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
