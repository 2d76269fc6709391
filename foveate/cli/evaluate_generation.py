"""foveate eval generation: long answers under plans, as Dynamic-LLaVA's paper measures them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import options, startup, tables
from foveate.cli.settings import DEFAULTS, GREEDY, Decoding, ModelSettings, spread
from foveate.demo.tasks import LONG_TASKS
from foveate.errors import InputError
from foveate.evaluate.overlap import METEOR_NEEDS, OverlapScore, overlap_score
from foveate.files.paths import check_folder
from foveate.files.writing import check_outputs, write_file

if TYPE_CHECKING:  # a help text needs no torch
    from rich.table import Table

    from foveate.cli.rounds import Messages
    from foveate.evaluate.generation import Row, Sample, Score
    from foveate.evaluate.intervals import Mean

    _Named = tuple[str, Messages]

_PLANS = ("random_gate(layer=2, keep=0.5)", "stride_gate(layer=2, keep=0.5)")
_DEMO_SAMPLES = 50
_PROTOCOL = (
    "perplexity of the reference and its end token by teacher forcing with a KV cache: mean over samples of exp(mean loss), of "
    "several rounds the mean, each after the true rounds before it and on their cache; "
    "differences are plan - plain with a paired 95 % bootstrap over samples"
)
_NOTES = (
    "PPL: mean over samples of exp(mean loss) of the reference, by teacher forcing; changes with paired 95 % intervals; output "
    "tokens: read, and computed after the gate; FLOPs: of the last pass without a cache; Eq. 13: the paper's count of it, "
    "over the output alone; KV cache: without rejected slots, of everything and of the output alone"
)


@spread
def generation(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            callback=options.expanded,
            help='Lines of {"image", "question", "answer"}, or conversations: LLaVA\'s .json, .jsonl with chat messages; '
            "left out: the demo.",
        ),
    ] = None,
    plan: Annotated[
        list[str] | None, typer.Option("--plan", help="May be repeated; the plain model is always the first row.")
    ] = None,
    model: options.Model = None,
    samples: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_SAMPLES, help="At most so many; 50 of the demo, all of a file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(callback=options.expanded, help="Folder that picture paths start from; that of the file.")
    ] = None,
    max_visual_tokens: options.MostVisualTokens = None,
    task: Annotated[str, typer.Option(help=f"Of the demo: {', '.join(LONG_TASKS)}.")] = LONG_TASKS[0],
    generate: Annotated[bool, typer.Option(help="Also let the model answer itself, for the overlap score.")] = True,
    new_tokens: options.NewTokens = 1024,
    step_by_step: Annotated[
        bool, typer.Option("--step-by-step", help="Read answers token by token; the same, slower.")
    ] = False,
    out: options.OutFile = None,
    as_json: options.AsJson = False,
    settings: ModelSettings = DEFAULTS,
    decoding: Decoding = GREEDY,
) -> None:
    """Compare plans on long answers: perplexity, overlap, output tokens, FLOPs without a cache, KV bytes with one."""
    from foveate.spec import parse

    plans = [str(parse(text)) for text in plan or _PLANS]
    if decoding.beams > 1 and any(parse(text).gate is not None for text in plans):
        raise InputError("--beams: what a gate stored is counted for one beam; leave it out, or the gates")
    check_outputs({"--out": out}, inputs=[file, model])
    if task not in LONG_TASKS:
        raise InputError(f"--task {task}: write one of {', '.join(LONG_TASKS)}")
    if file is None and pictures is not None:
        raise InputError(f"--pictures {pictures}: the demo draws its own; name a FILE")
    if file is None and max_visual_tokens is not None:
        raise InputError("--max-visual-tokens: every picture of the demo has as many tokens; name a FILE")
    with startup.spinner("importing torch and transformers"):
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from foveate.cli.rounds import demo_samples
        from foveate.demo.evaluation import versions
        from foveate.evaluate.generation import Generation, evaluate, summarize

        given = None if file is None else _read_file(file, samples, pictures)
        score = overlap_score() if generate else None
    loaded, processor = startup.load_model(model, settings)
    if given is None:
        chosen = demo_samples(loaded, processor, task, samples or _DEMO_SAMPLES)
    else:
        chosen = _of_file(loaded, processor, given, max_visual_tokens)

    def decode(ids: Any) -> str:
        return str(processor.tokenizer.decode(ids, skip_special_tokens=True))

    rows = 1 + len({text for text in plans if text != "none"})
    with Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        bar = progress.add_task("plain", total=rows * len(chosen))

        def note(name: str, done: int) -> None:
            progress.update(bar, advance=1, description=escape("plain" if name == "none" else name))

        wanted = Generation(decode, score, new_tokens, decoding.options(), decoding.seed) if score else None
        scores = evaluate(loaded, chosen, plans, wanted, step_by_step, note)
    result = {
        "protocol": _PROTOCOL,
        "source": f"demo, held-out {task}" if file is None else str(file),
        "model": type(loaded).__name__ if model is None else model,
        "samples": len(chosen),
        "max_visual_tokens": max_visual_tokens,
        "overlap_score": score.name if score else None,
        "step_by_step": step_by_step,
        "rows": [row.to_json() for row in summarize(scores)],
        "scores": {name: _each(own, chosen) for name, own in scores.items()},
        "versions": versions(),
    }
    if out is not None:
        write_file(out, json.dumps(result, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
        return
    console = tables.make_console()
    tables.show(console, _table(summarize(scores), score, f"{result['source']}, {len(chosen)} samples"))
    console.print(_NOTES if score is None or score.name == "meteor" else f"{_NOTES}; {METEOR_NEEDS}", style="dim")
    if out is not None:
        console.print(f"wrote {out}", markup=False, highlight=False)


def _of_file(model: Any, processor: Any, conversations: Sequence[_Named], max_visual_tokens: int | None) -> list[Sample]:
    from foveate.cli import loading
    from foveate.cli.rounds import answers_of, read_messages
    from foveate.evaluate.generation import Sample

    opened_part = partial(_opened, processor, max_visual_tokens)

    def rounds(messages: Messages) -> Any:
        opened = [{**message, "content": [opened_part(part) for part in message["content"]]} for message in messages]
        return read_messages(model, processor, opened)

    for name, messages in conversations:
        loading.check_words(processor, messages, name)
    return [Sample(name, answers_of(messages), partial(rounds, messages)) for name, messages in conversations]


def _opened(processor: Any, max_visual_tokens: int | None, part: dict[str, Any]) -> dict[str, Any]:
    from foveate.api import fit_images
    from foveate.api.pictures import load_image

    if part["type"] != "image":
        return part
    image = load_image(part["image"])
    return {**part, "image": image if max_visual_tokens is None else fit_images(processor, [image], max_visual_tokens)[0]}


def _read_file(path: Path, most: int | None, pictures: Path | None) -> list[_Named]:
    """The conversations of a file, each with a name; pictures are paths that exist."""
    if pictures is not None:
        check_folder(pictures, "folder of --pictures")
    from foveate.cli.rounds import asked, check_rounds
    from foveate.evaluate.files import read_items
    from foveate.train.data import ConversationFile, holds_conversations

    if not holds_conversations(path):
        named = []
        for item in read_items(path, most, pictures):
            content = [{"type": "image", "image": image} for image in item.images]
            question = {"role": "user", "content": [*content, {"type": "text", "text": item.question}]}
            named.append((item.name, asked([question], item.answer)))
        return named
    file = ConversationFile(path, pictures)
    if file.missing:
        raise InputError(
            f"{path}: {file.missing} rows name pictures that are not in {file.pictures}; name their folder: --pictures"
        )
    found = [(file.name(number), file.read(number)) for number in range(min(len(file), most or len(file)))]
    for name, messages in found:
        check_rounds(messages, f"{path.name}, {name}")
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            part["image"] = file.pictures / part["image"]
    return found


def _each(scores: Sequence[Score], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{"name": sample.name, **asdict(score)} for sample, score in zip(samples, scores, strict=True)]


def _table(rows: Sequence[Row], overlap: OverlapScore | None, title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("plan", overflow="fold", min_width=26)
    headings = ["PPL", "change\n[95 %]"]
    headings += [{"meteor": "METEOR", "rouge_l": "ROUGE-L"}[overlap.name], "change\n[95 %]"] if overlap else []
    for heading in (*headings, "output\ntokens", "FLOPs, last\nuncached pass", "Eq. 13", "KV cache,\nof output"):
        table.add_column(heading, justify="right")
    for number, row in enumerate(rows):
        cells = [f"{row.perplexity.value:.3f}", _change(row.perplexity_difference) if number else ""]
        if row.overlap is not None and row.overlap_difference is not None:
            cells += [f"{row.overlap.value:.3f}", _change(row.overlap_difference) if number else ""]
        total, computed = row.output_tokens
        cells.append(f"{total:.0f} -> {computed:.0f}" if computed != total else f"{total:.0f}")
        cells.append(_with_share(row.last_pass_flops, row.last_pass_flops_share, tables.human_flops, number > 0))
        cells.append(_with_share(row.output_flops, row.output_flops_share, tables.human_flops, number > 0))
        both = ((row.kv_bytes, row.kv_share), (row.output_kv_bytes, row.output_kv_share))
        cells.append("\n".join(_with_share(count, share, tables.human_bytes, number > 0) for count, share in both))
        table.add_row(escape(row.plan) if number else "plain", *cells)
    return table


def _change(mean: Mean) -> str:
    interval = "" if mean.low is None or mean.high is None else f"\n[{mean.low:+.3f},\n{mean.high:+.3f}]"
    return f"{mean.value:+.3f}{interval}"


def _with_share(value: float | None, share: float | None, shown: Any, with_share: bool) -> str:
    if value is None:
        return "not counted"
    return f"{shown(value)}\n{100 * share:.1f} %" if with_share and share is not None else str(shown(value))
