"""foveate run: pictures or videos and a question -> an answer and what it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import media, options, startup, tables
from foveate.cli.settings import DEFAULTS, GREEDY, Decoding, ModelSettings, spread

if TYPE_CHECKING:  # a help text needs no torch
    from PIL import Image

    from foveate.api import Answer, Candidate, Video
    from foveate.core.plan import Plan, Stage


@spread
def run(
    arguments: options.Prompt,
    model: options.Model = None,
    plan: Annotated[str | None, typer.Option(help='e.g. "fastv(layer=2, keep=0.5)", or "none".')] = None,
    compare_plans: Annotated[
        bool, typer.Option("--compare", help="Beside it: the plain model, random, uniform and a downsampled picture.")
    ] = False,
    max_visual_tokens: options.MostVisualTokens = None,
    new_tokens: options.NewTokens = 64,
    repeats: Annotated[
        int, typer.Option(min=1, max=options.MOST_REPEATS, help="Time each row this often and report medians.")
    ] = 1,
    as_json: options.AsJson = False,
    video: options.Videos = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
    settings: ModelSettings = DEFAULTS,
    decoding: Decoding = GREEDY,
) -> None:
    """Answer a question about pictures and videos under a plan, and print one table of what it took."""
    from foveate.spec import parse

    paths, question = media.split_arguments(arguments, bool(video), model)
    shown = media.load_all(paths, video, media.Sampling(frames, fps, max_frames, start, end))
    contents = [one.content for one in shown]
    parsed = None if plan is None else parse(plan)
    loaded, processor = startup.load_model(model, settings)
    from foveate.api import Candidate, Video, compare, default_plan, fit_images
    from foveate.cli import loading

    if max_visual_tokens is not None:
        # Frames of a video are counted by other rules: --frames and --fps say how many there are.
        contents = [one if isinstance(one, Video) else fit_images(processor, [one], max_visual_tokens)[0] for one in contents]
    parsed = parsed or default_plan(loaded.config)
    inputs = loading.prompt_inputs(loaded, processor, contents, question)
    console = tables.make_console()
    how: dict[str, Any] = decoding.options() | {"seed": decoding.seed}
    if compare_plans:
        rows = [Candidate(str(parsed), parsed), *_controls(parsed, loaded, processor, contents, question)]
    else:
        rows = [Candidate(str(parsed), parsed)]
        if not as_json and decoding.beams == 1:  # a beam is known at its end
            how["streamer"] = _streamer(processor)
    answers = compare(loaded, inputs, rows, new_tokens, repeats, with_plain=compare_plans, warm_up=compare_plans, **how)
    texts = [_text(processor, answer) for answer in answers]
    if as_json:
        rows_json = [tables.answer_json(answer, text) for answer, text in zip(answers, texts, strict=True)]
        pictures = [str(one.path) for one in shown if not isinstance(one.content, Video)]
        videos = [{"path": str(one.path), "seconds": one.content.seconds} for one in shown if isinstance(one.content, Video)]
        console.print_json(json.dumps({"question": question, "pictures": pictures, "videos": videos, "rows": rows_json}))
        return
    from rich.markup import escape

    title = f"{question} ({media.names_of(shown)})"
    tables.show(console, tables.answer_table(answers, texts, escape(title)))
    hint = tables.detail_hint(answers[1 if compare_plans else 0].estimate)
    if hint is not None:
        console.print(hint, style="yellow")
    console.print(tables.memory_note(loaded.device.type), style="dim")
    if not compare_plans:
        console.print("Times are of a first call, warm-up included; --compare measures side by side.", style="dim")


def _controls(
    plan: Plan, model: Any, processor: Any, contents: Sequence[Image.Image | Video], question: str
) -> list[Candidate]:
    """Random, uniform and downsampling with the budget of the plan's last stage; for a gate, gates that know nothing."""
    from foveate.api import Candidate, Video
    from foveate.api.fitting import fit_share
    from foveate.cli import loading
    from foveate.core.plan import Plan
    from foveate.core.site import SiteKind

    if not plan.stages:
        return []
    last = plan.stages[-1]
    rows = []
    if last.budget is not None:
        gates = last.site.kind is SiteKind.DECODE
        for name in ("random_gate", "stride_gate") if gates else ("random", "uniform"):
            other = Plan((*plan.stages[:-1], _with_method(last, name)))
            if str(other) != str(plan):
                rows.append(Candidate(str(other), other))
        if last.budget.ratio is not None and len(plan.stages) == 1 and not gates:
            keep = float(last.budget.ratio)
            fitted = [None if isinstance(one, Video) else fit_share(processor, one, keep) for one in contents]
            smaller: list[Image.Image | Video]
            name, smaller = f"downsample the picture to {keep:g} of its tokens", [one for one in fitted if one is not None]
            if len(smaller) < len(contents):
                name = f"downsample the picture to {keep:g} of its pixels"
                smaller = [_fewer_pixels(one, keep) for one in contents]
            rows.append(Candidate(name, Plan(), loading.prompt_inputs(model, processor, smaller, question)))
    return rows


def _fewer_pixels(content: Image.Image | Video, keep: float) -> Image.Image | Video:
    from foveate.api import Video
    from foveate.api.pictures import downsampled

    if isinstance(content, Video):
        return Video([downsampled(frame, keep) for frame in content.frames], content.seconds)
    return downsampled(content, keep)


def _with_method(stage: Stage, name: str) -> Stage:
    from foveate import methods
    from foveate.core.plan import Stage

    return Stage(stage.site, methods.get(name)(), stage.budget, stage.scope, stage.role, stage.effect)


def _streamer(processor: Any) -> Any:
    from transformers import TextStreamer

    return TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _text(processor: Any, answer: Answer) -> str:
    text: str = processor.tokenizer.decode(answer.new_tokens[0], skip_special_tokens=True)
    return text.strip()
