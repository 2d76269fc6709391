"""foveate plan: what a plan costs and saves, without weights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.api.video import MOST_FRAMES
from foveate.cli import media, options, tables
from foveate.errors import InputError

if TYPE_CHECKING:  # a help text needs none of them
    from rich.console import Console

    from foveate.api import Video
    from foveate.core.plan import Plan
    from foveate.cost.estimate import CostEstimate
    from foveate.families import Family

GRID_KEEPS = (0.75, 0.5, 0.25, 0.125, 0.1)


def plan(
    spec: Annotated[str | None, typer.Argument(metavar="SPEC", help='e.g. "fastv(layer=2, keep=0.5)".')] = None,
    model: Annotated[str, typer.Option(help="Preset, folder, hub id, or config folder.")] = "llava-1.5-7b",
    trust_remote_code: options.TrustRemoteCode = False,
    images: Annotated[str | None, typer.Option(help="Sizes in pixels, e.g. 1024x768,640x480.")] = None,
    visual_tokens: Annotated[int | None, typer.Option(min=1, max=options.MOST_TOKENS, help="Instead of images.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=MOST_FRAMES, help="Frames of one video of the size --images gives, or of --video.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=0, max=options.MOST_TOKENS, help="Text of the prompt.")] = 64,
    new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--new-tokens", min=0, max=options.MOST_TOKENS, help="Tokens of the answer.")
    ] = 128,
    batch: Annotated[int, typer.Option(min=1, max=options.MOST_TOKENS, help="Prompts at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the KV cache.")] = "bfloat16",
    convention: Annotated[str, typer.Option(help="exact, fastv, dynamic-llava or illava-v1.")] = "exact",
    show_grid: Annotated[bool, typer.Option("--grid", help="LLM prefill FLOPs over layer x keep, as a heat map.")] = False,
    vs: Annotated[str | None, typer.Option(help="A second model without a plan, beside it.")] = None,
    as_json: options.AsJson = False,
    video: Annotated[
        Path | None, typer.Option(callback=options.expanded, help="A video file or a folder of frames, instead of sizes.")
    ] = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
) -> None:
    """Visual tokens, FLOPs and KV bytes of a plan on a model, from its config alone."""
    from foveate.api.cost import default_plan, estimate, media_of, resolve_config
    from foveate.cost.estimate import grid
    from foveate.families import family_for
    from foveate.spec import parse

    config = resolve_config(model, trust_remote_code)
    parsed = default_plan(config) if spec is None else parse(spec)
    sizes = None if images is None else _sizes(images)
    sampling = media.Sampling(frames, fps, max_frames, start, end)
    if video is not None:
        if images is not None or visual_tokens is not None:
            raise InputError("give --video, or --images or --visual-tokens, not both")
        sizes, frames = _of_video(family_for(config), sampling.load(video))
    elif sampling != media.Sampling(frames):
        raise InputError("--fps, --max-frames, --start and --end say which frames of --video to take, and there is none")
    workload: dict[str, Any] = dict(
        images=sizes,
        visual_tokens=visual_tokens,
        frames=frames,
        text_tokens=text_tokens,
        max_new_tokens=new_tokens,
        batch=batch,
        dtype=dtype,
        convention=convention,
    )
    result = estimate(config, parsed, **workload)
    other = None if vs is None else estimate(resolve_config(vs, trust_remote_code), "none", **workload)
    cells = None
    if show_grid:
        family = family_for(config)
        layers = _grid_layers(family.decoder_shape(config).layers)
        shapes = media_of(family, config, sizes, visual_tokens, frames)
        cells = (layers, grid(family.model_shape(config), layers, GRID_KEEPS, shapes, text_tokens, convention))
    console = tables.make_console()
    if as_json:
        out: dict[str, Any] = {"model": model, "plan": str(parsed), **result.to_json()}
        if other is not None:
            out["vs"] = {"model": vs, **other.to_json()}
        if cells is not None:
            out["grid"] = {"layers": cells[0], "keeps": list(GRID_KEEPS), "llm_prefill_flops_ratio": cells[1]}
        console.print_json(json.dumps(out))
        return
    _print_table(console, model, parsed, result, vs, other)
    if cells is not None:
        _print_grid(console, *cells)


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})x([0-9]{1,6})\s*", part)
        if match is None:
            raise InputError(f"--images {text}: write sizes as WIDTHxHEIGHT, e.g. 1024x768,640x480")
        sizes.append((int(match[1]), int(match[2])))
    return sizes


def _of_video(family: Family, video: Video) -> tuple[list[tuple[int, int]], int | None]:
    """The sizes of pictures, and the number of frames where the family has media that are videos."""
    from foveate.families import Family

    size, count = video.frames[0].size, len(video.frames)
    # Where no video is said to exist, frames are pictures, as `foveate run` gives them to such a model.
    takes_none = type(family).media_of_video is Family.media_of_video
    return ([size] * count, None) if takes_none else ([size], count)


def _grid_layers(total: int) -> list[int]:
    return [layer for layer in (0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 40) if layer < total]


def _print_table(
    console: Console, model: str, plan: Plan, result: CostEstimate, vs: str | None, other: CostEstimate | None
) -> None:
    from rich.table import Table

    from foveate.core.site import SiteKind

    table = Table(title=f"{model}: {result.summary()}", title_justify="left")
    table.add_column("")
    for heading in ("plain", str(plan), "ratio"):
        table.add_column(heading, justify="right", overflow="fold")
    if other is not None:
        table.add_column(f"{vs} (plain)", justify="right")
    unit = "FLOPs" if result.unit == "FLOPs" else result.unit.split(",")[0]
    plain, planned = result.visual_tokens_per_layer
    rows: list[tuple[str, str, str, float | None, str]] = [
        (
            "visual tokens, mean of the layers",
            f"{_mean(plain):.1f}",
            f"{_mean(planned):.1f}",
            sum(planned) / sum(plain) if sum(plain) else None,
            "" if other is None else f"{_mean(other.visual_tokens_per_layer[0]):.1f}",
        )
    ]
    if result.encoder_tokens[0]:
        encoded, left = map(_mean, result.encoder_tokens)
        beside = "" if other is None or not other.encoder_tokens[0] else f"{_mean(other.encoder_tokens[0]):.1f}"
        rows.append(("tokens in the vision encoder, mean", f"{encoded:.1f}", f"{left:.1f}", left / encoded, beside))
    for name, key, show in (
        ("vision encoder and projector", "encoder_flops", lambda n: tables.human_flops(n, unit)),
        ("prefill, encoder included", "prefill_flops", lambda n: tables.human_flops(n, unit)),
        ("prefill, LLM only", "llm_prefill_flops", lambda n: tables.human_flops(n, unit)),
        (f"decoding {result.new_tokens} tokens", "decode_flops", lambda n: tables.human_flops(n, unit)),
        ("KV cache at the end", "kv_bytes", tables.human_bytes),
    ):
        value, second = getattr(result, key), None if other is None else getattr(other, key)
        if value is None:
            rows.append((name, "not counted", "not counted", None, ""))
            continue
        shown = "" if second is None else show(second.plain)
        rows.append((name, show(value.plain), show(value.plan), value.ratio.plan, shown))
    for name, plain_text, plan_text, ratio, beside_text in rows:
        cells = [name, plain_text, plan_text, "" if ratio is None else f"{100 * ratio:.1f} %"]
        table.add_row(*cells, *([beside_text] if other is not None else []))
    tables.show(console, table)
    console.print(f"choosing tokens adds {tables.human_flops(result.selection_flops)}", style="dim")
    console.print(f"convention {result.convention}: {result.convention_words}", style="dim")
    hint = tables.detail_hint(result)
    if hint is not None:
        console.print(hint, style="yellow")
    attention = [stage for stage in plan.stages if stage.site.kind is SiteKind.LLM_LAYER and stage.method.needs()]
    if attention:
        console.print("attention rows are computed from q and k; SDPA and flash stay on", style="dim")


def _mean(counts: Sequence[float]) -> float:
    return sum(counts) / len(counts)


def _print_grid(console: Console, layers: list[int], rows: list[list[float]]) -> None:
    from rich.table import Table

    table = Table(title="LLM prefill FLOPs left, by layer of the cut and share kept", title_justify="left")
    table.add_column("layer", justify="right")
    for keep in GRID_KEEPS:
        table.add_column(f"keep {keep:g}", justify="right")
    for layer, row in zip(layers, rows, strict=True):
        table.add_row(str(layer) if layer else "pre_llm", *[_shaded(value) for value in row])
    tables.show(console, table)


def _shaded(ratio: float) -> str:
    """Darker blue = more saved; text stays readable on both."""
    level = round(255 - 150 * (1 - ratio))
    ink = "black" if ratio > 0.45 else "white"
    return f"[{ink} on rgb({level - 60},{level - 20},255)] {100 * ratio:5.1f} % [/]"
