"""foveate demo: two tables, two pictures and a video, offline, in about a minute."""

from __future__ import annotations

import json
import platform
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foveate.cli import options, startup, tables
from foveate.files.writing import check_output_folder, check_outputs, make_folder, write_file

if TYPE_CHECKING:  # a help text needs no torch
    import torch
    from PIL import Image

    from foveate.api import Answer
    from foveate.cost.estimate import CostEstimate
    from foveate.demo.loading import ExamplePicture

# The embedded model is small: at half of its eight decoder layers its attention says most.
LAYER = 4
PLANS = {
    "plain": "none",
    "FastV keep .5": f"fastv(layer={LAYER}, keep=0.5)",
    "FastV keep .25": f"fastv(layer={LAYER}, keep=0.25)",
    "random keep .25": f"random(layer={LAYER}, keep=0.25)",
}
SPEED_PLANS = ("fastv(layer=2, keep=0.5)", "fastv(layer=2, keep=0.25)", "fastv(layer=2, keep=0.1)")
_PHOTO = Path(__file__).parent / "assets" / "cat.jpg"
_ANSWER_TOKENS = 24


def demo(
    out: options.OutFolder = Path("demo-output"),
    repeats: Annotated[int, typer.Option(min=1, max=options.MOST_REPEATS, help="Timings per row; medians are shown.")] = 3,
    results: Annotated[
        Path | None, typer.Option(callback=options.expanded, help="Also write the timings to this JSON file.")
    ] = None,
) -> None:
    """Show FastV answering questions with half of the visual tokens, and what that saves."""
    check_output_folder("--out", out)
    check_outputs({"--results": results})
    console = tables.make_console()
    model, processor = startup.load_model(None)
    _answers(console, model, processor)
    _speed(console, repeats, results)
    make_folder(out)
    _video(console, model, processor, out)
    for name, picture in _overlays(model, processor).items():
        write_file(out / name, partial(picture.save, format="PNG"))
        console.print(f"wrote {out / name}")
    console.print(
        "the demo model has never seen a photograph: that picture shows the mechanics, not understanding", style="dim"
    )


def _answers(console: Console, model: Any, processor: Any) -> None:
    """The trained demo model on bundled pictures it has never seen."""
    from rich.markup import escape
    from rich.table import Table

    from foveate.demo.loading import example_pictures

    table = Table(title="1. Answers of the embedded demo model (trained on rendered pictures)", title_justify="left")
    table.add_column("picture")
    table.add_column("question", overflow="fold")
    table.add_column("true answer")
    for name in PLANS:
        table.add_column(name, overflow="fold")
    right = dict.fromkeys(PLANS, 0)
    examples = example_pictures()
    for example in examples:
        texts = [_text(processor, answer) for answer in _ask(model, processor, example)]
        for name, text in zip(PLANS, texts, strict=True):
            right[name] += text == example.answer
        cells = [escape(text) if text == example.answer else f"[bold red]{escape(text)}[/]" for text in texts]
        table.add_row(example.name, example.question, example.answer, *cells)
    table.add_section()
    table.add_row("", "right answers", str(len(examples)), *[str(count) for count in right.values()])
    tables.show(console, table)
    console.print(
        f"plans act before layer {LAYER} of {model.config.text_config.num_hidden_layers}; wrong answers are red; "
        f"the {len(examples)} held-out pictures were chosen where the plain model is right, so that losses show; how often it "
        "is right at all, and under plans, stands in its model card and in benchmarks/results",
        style="dim",
    )


def _ask(model: Any, processor: Any, example: ExamplePicture) -> list[Answer]:
    from foveate.api import compare
    from foveate.cli import loading

    inputs = loading.prompt_inputs(model, processor, [loading.load_image(example.path)], example.question)
    plans = [plan for plan in PLANS.values() if plan != "none"]
    return compare(model, inputs, plans, _ANSWER_TOKENS, warm_up=False)


def _text(processor: Any, answer: Answer) -> str:
    text: str = processor.tokenizer.decode(answer.new_tokens[0], skip_special_tokens=True)
    return text.strip()


def _speed(console: Console, repeats: int, results: Path | None) -> None:
    """A random-weight LLaVA of about 100M parameters: speed does not depend on what the weights say."""
    import torch
    from rich.table import Table

    from foveate.api import compare

    model, inputs = speed_model()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    with console.status(f"timing a random-weight LLaVA of {millions:.0f}M parameters"):
        rows = compare(model, inputs, list(SPEED_PLANS), max_new_tokens=17, repeats=repeats)
    if results is not None:
        _write_results(results, rows, millions, repeats)
    device = "GPU" if next(model.parameters()).is_cuda else f"CPU, {torch.get_num_threads()} threads"
    title = f"2. Speed of a random-weight LLaVA, {millions:.0f}M parameters, {rows[0].visual_tokens} visual tokens ({device})"
    table = Table(title=title, title_justify="left")
    for heading in (
        "plan",
        "visual tokens",
        "TTFT",
        "TTFT ratio\nmeasured",
        "prefill FLOPs\nratio, theory",
        "TPOT",
        "KV cache",
    ):
        table.add_column(heading, justify="left" if heading == "plan" else "right")
    for row in rows:
        theory = 1.0 if row.estimate is None else _prefill_ratio(row.estimate)
        table.add_row(
            row.name,
            f"{row.visual_tokens} -> {row.kept_tokens}",
            tables.milliseconds(row.ttft_ms),
            f"{100 * row.ttft_ms / rows[0].ttft_ms:.0f} %",
            f"{100 * theory:.0f} %",
            tables.milliseconds(row.tpot_ms),
            tables.cache_bytes(row),
        )
    tables.show(console, table)
    console.print(
        f"SDPA with a KV cache in every row, plans take turns, medians of {repeats}; TTFT contains the vision encoder, "
        "choosing tokens and prefill; theory counts the same parts",
        style="dim",
    )


def _write_results(path: Path, rows: list[Answer], millions: float, repeats: int) -> None:
    import torch

    from foveate.demo.evaluation import versions

    report = {
        "what": "time to first token and per token of a random-weight LLaVA; plans take turns, medians",
        "parameters_millions": round(millions, 1),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "dtype": "float32",
        "attention": "sdpa",
        "versions": versions(),
        "rows": [
            tables.answer_json(row, "") | {"prefill_flops_ratio": 1.0 if row.estimate is None else _prefill_ratio(row.estimate)}
            for row in rows
        ],
    }
    write_file(path, json.dumps(report, indent=2) + "\n")


def _prefill_ratio(estimate: CostEstimate) -> float:
    return estimate.prefill_flops.ratio.plan


def speed_model() -> tuple[Any, dict[str, torch.Tensor]]:
    """A LLaVA with random weights, 32 x 32 visual tokens and a small encoder; and a prompt of 64 text tokens."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=640,
        intermediate_size=1728,
        num_hidden_layers=12,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=4096,
        eos_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=3, num_attention_heads=3, image_size=448, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=32000, image_seq_length=1024)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        ids = torch.randint(3, 30000, (1, 64 + 1024))
        ids[:, 16 : 16 + 1024] = 32000
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 448, 448)}
    return model, inputs


def _video(console: Console, model: Any, processor: Any, out: Path) -> None:
    """A clip that is rendered, written as a video file, read back, asked about, and drawn."""
    if find_spec("av") is None:
        console.print("3. A video: left out, as it needs PyAV: pip install foveate[video]", markup=False)
        return
    import torch

    from foveate.api import attach, compare, load_video
    from foveate.cli import loading, media
    from foveate.cli.drawn import traced_parts
    from foveate.demo.clips import example_clip, write_clip
    from foveate.viz.kept import kept_film

    clip, question = example_clip()
    path, plan = out / "clip.mp4", f"fastv(layer={LAYER}, keep=0.5)"
    write_clip(clip, path)
    shown = [media.Shown(path, load_video(path))]
    inputs = loading.prompt_inputs(model, processor, [one.content for one in shown], question.text)
    plain, pruned = (_text(processor, answer) for answer in compare(model, inputs, [plan], _ANSWER_TOKENS, warm_up=False))
    console.print(f"3. A video: {question.text} plain: {plain} FastV keep .5: {pruned}", markup=False, highlight=False)
    with attach(model, plan) as attachment, torch.inference_mode():
        model(**inputs)
        trace = attachment.trace
    film = kept_film(traced_parts(trace, shown, inputs, processor))
    write_file(out / "kept-clip.png", partial(film.save, format="PNG"))
    console.print(f"wrote {path}\nwrote {out / 'kept-clip.png'}")


def _overlays(model: Any, processor: Any) -> dict[str, Image.Image]:
    """What each plan kept, on a rendered picture and on a photograph."""
    from foveate.cli import loading
    from foveate.demo.loading import example_pictures
    from foveate.viz.overlay import stack

    rendered = example_pictures()[0]
    rows = [_overlay_row(model, processor, loading.load_image(rendered.path), rendered.question)]
    photo = _overlay_row(model, processor, loading.load_image(_PHOTO), "describe the image in detail.")
    return {"kept-rendered.png": stack(rows), "kept-photo.png": photo}


def _overlay_row(model: Any, processor: Any, picture: Image.Image, question: str) -> Image.Image:
    import torch
    from PIL import Image

    from foveate.api import attach
    from foveate.cli import loading
    from foveate.viz.overlay import kept_overlay, strip

    inputs = loading.prompt_inputs(model, processor, [picture], question)
    seen = loading.as_seen(picture, processor.image_processor)
    panels = []
    for name, plan in PLANS.items():
        if plan == "none":
            grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
            panels.append((f"what the model sees: {grid * grid} tokens", seen.resize((336, 336), Image.Resampling.LANCZOS)))
            continue
        with attach(model, plan) as attachment, torch.inference_mode():
            model(**inputs)
            entry = attachment.trace.media[0]
            kept = entry.kept_index.tolist()
            panels.append((f"{name}: {len(kept)} tokens", kept_overlay(seen, entry.medium.shape.grid, kept, 336)))
    return strip(panels)
