"""foveate view text: which tokens of an answer a gate stored, over the answer itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli import media, options, startup, tables
from foveate.cli.settings import DEFAULTS, ModelSettings, spread
from foveate.demo.tasks import ONE_TURN_TASKS as TASKS
from foveate.errors import InputError
from foveate.files.writing import Content, check_outputs, write_files
from foveate.viz.packages import require

if TYPE_CHECKING:  # a help text needs no torch
    from PIL import Image

    from foveate.core.plan import Plan
    from foveate.viz.answer_text import AnswerHeading, AnswerText

_PLAN = "random_gate(layer=2, keep=0.5)"
# Held-out questions of a task that are looked at for the one with the longest answer.
_LOOKED_AT = 12
_STYLES = {True: "bold", False: "bright_black", None: "italic"}


@spread
def view_text(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar=options.PROMPT_METAVAR, help=f"{options.PROMPT_HELP} Left out: --task.")
    ] = None,
    plan: Annotated[str, typer.Option(help="Any plan with a gate.")] = _PLAN,
    task: Annotated[str | None, typer.Option(help=f"A rendered picture and a question: {', '.join(TASKS)}.")] = None,
    model: options.Model = None,
    new_tokens: Annotated[int, options.longest_answer(2)] = 256,
    html: options.Html = None,
    png: options.Png = None,
    as_json: options.AsJson = False,
    video: options.Videos = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = media.MAX_FRAMES,
    start: options.Start = 0.0,
    end: options.End = None,
    settings: ModelSettings = DEFAULTS,
) -> None:
    """Show which tokens of an answer the layers after a gate stored: those strong, rejected ones pale."""
    from foveate.spec import parse

    parsed = parse(plan)
    if parsed.gate is None:
        raise InputError(f"--plan {plan}: no stage gates decoding, so there is nothing to show; write e.g. {_PLAN}")
    check_outputs({"--html": html, "--png": png}, inputs=[*(arguments or [])[:-1], *(video or []), model])
    require(*(package for package, path in (("jinja2", html), ("matplotlib", png)) if path is not None))
    prompt = _prompt(arguments or [], task, video, model, media.Sampling(frames, fps, max_frames, start, end))
    loaded, processor = startup.load_model(model, settings)
    from foveate.cli import loading
    from foveate.viz.answer_page import answer_page
    from foveate.viz.answer_plot import answer_plot
    from foveate.viz.answer_text import AnswerHeading, count_line

    inputs = loading.prompt_inputs(loaded, processor, prompt.content, prompt.question)
    console = tables.make_console()
    with console.status("answering"):
        answer, plain, kv_bytes = _answers(loaded, processor.tokenizer, inputs, parsed, new_tokens)
    name = f"{type(loaded).__name__}, {prompt.name}"
    heading = AnswerHeading(prompt.question, str(parsed), name, None if plain == answer.text else plain, kv_bytes)
    counts = count_line(answer, heading, tables.human_bytes)
    written: dict[Path, Content] = {}
    if html is not None:
        written[html] = answer_page(answer, heading, counts, prompt.pictures).encode("utf-8")
    if png is not None:
        written[png] = answer_plot(answer, heading, counts)
    write_files(written)
    if as_json:
        typer.echo(json.dumps(_numbers(answer, heading, prompt) | {"files": [str(path) for path in written]}))
        return
    _tell(console, answer, heading, counts)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)


@dataclass(frozen=True)
class _Prompt:
    question: str
    content: list[Any]
    name: str
    pictures: list[tuple[str, Image.Image]]
    answer: str | None = None  # the true one, where it is known


def _prompt(
    arguments: list[str], task: str | None, video: list[Path] | None, model: str | None, sampling: media.Sampling
) -> _Prompt:
    if arguments or video:
        if task is not None:
            raise InputError(f"--task {task}: it brings its own picture and question; leave it out, or the others")
        if not arguments:
            raise InputError("no question: write it last, in quotes")
        paths, question = media.split_arguments(arguments, bool(video), model)
        shown = media.load_all(paths, video, sampling)
        pictures = [
            (one.path.name if len(one.frames) == 1 else f"{one.path.name}, frame {number}", frame)
            for one in shown
            for number, frame in enumerate(one.frames, start=1)
        ]
        return _Prompt(question, [one.content for one in shown], media.names_of(shown), pictures)
    if sampling != media.Sampling():
        raise InputError("--frames, --fps, --max-frames, --start and --end are for videos, and there is none")
    task = task or TASKS[0]
    if task not in TASKS:
        raise InputError(f"--task {task}: write one of {', '.join(TASKS)}")
    from PIL import Image

    with startup.spinner("drawing a picture"):
        from foveate.demo.evaluation import held_out_samples

        samples = held_out_samples(_LOOKED_AT, 0, (task,))
    sample = max(samples, key=lambda one: len(one.questions[0].answer))
    picture, (asked,) = Image.fromarray(sample.pixels()[0]), sample.questions
    return _Prompt(asked.text, [picture], f"held-out {task}", [(f"held-out {task}", picture)], asked.answer)


def _answers(
    model: Any, tokenizer: Any, inputs: dict[str, Any], plan: Plan, new_tokens: int
) -> tuple[AnswerText, str, tuple[int, int, int] | None]:
    """The gated answer, the plain model's text, and KV bytes: held, lasting, without the gate."""
    from foveate.api import attach
    from foveate.engine.cache_kinds import lasting_bytes, stored_bytes, ungated_bytes
    from foveate.engine.compat import cache_in
    from foveate.viz.answer_text import AnswerText, pieces_of

    length = inputs["input_ids"].shape[1]
    how = {"do_sample": False, "max_new_tokens": new_tokens}
    with attach(model, plan) as attachment:
        out = model.generate(**inputs, **how, return_dict_in_generate=True)
        judged = attachment.trace.answer_kept
        with attachment.disabled():
            plain = model.generate(**inputs, **how)[0, length:]
    ids = out.sequences[0, length:].tolist()
    fates: list[bool | None] = [None] * len(ids)
    if judged:
        fates[: len(judged[0])] = judged[0].tolist()
    while ids and ids[-1] in tokenizer.all_special_ids:
        ids.pop()

    def decode(some: list[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    first, *others = pieces_of(decode, ids) or ("",)
    answer = AnswerText((first.lstrip(), *others)[: len(ids)], tuple(fates[: len(ids)]))
    assert plan.gate is not None and plan.gate.site.layer is not None
    cache = cache_in(out)
    rejected = answer.judged - answer.stored
    held, lasting, ungated = stored_bytes(cache), lasting_bytes(cache), ungated_bytes(cache, plan.gate.site.layer, rejected)
    known = None if held is None or lasting is None or ungated is None else (held, lasting, ungated)
    return answer, decode(plain.tolist()).lstrip(), known


def _tell(console: Console, answer: AnswerText, heading: AnswerHeading, counts: str) -> None:
    console.print(f"question: {heading.question}", markup=False, style="dim")
    text = Text()
    for kept, run in answer.runs():
        # Logs and pipes have no styles, so there rejected runs stand in brackets.
        text.append(run if console.is_terminal or kept is not False else f"[{run}]", style=_STYLES[kept])
    console.print(text if answer.pieces else "(no answer)")
    console.print(counts, markup=False)
    if not console.is_terminal:
        console.print("[rejected]", markup=False, style="dim")
    if heading.plain is not None:
        console.print(Text("without the plan: ", style="dim").append_text(tables.highlighted(heading.plain, answer.text)))


def _numbers(answer: AnswerText, heading: AnswerHeading, prompt: _Prompt) -> dict[str, Any]:
    """Everything that is shown, for programs."""
    held, lasting, ungated = heading.kv_bytes or (None, None, None)
    return {
        "question": heading.question,
        "plan": heading.plan,
        "answer": answer.text,
        "plain_answer": answer.text if heading.plain is None else heading.plain,
        "true_answer": prompt.answer,
        "tokens": [{"text": text, "stored": kept} for text, kept in zip(answer.pieces, answer.kept, strict=True)],
        "stored": answer.stored,
        "judged": answer.judged,
        "kv_bytes": {"held": held, "lasting": lasting, "without_gate": ungated},
    }
