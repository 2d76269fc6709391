"""foveate eval: accuracy with intervals and blind baselines."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import evaluate_generation, options, startup, tables
from foveate.files.writing import check_outputs, write_file

app = typer.Typer(help="Measure accuracy.", no_args_is_help=True)
app.command("generation")(evaluate_generation.generation)


@app.command("demo")
def demo(
    model: Annotated[
        Path | None, typer.Option(callback=options.expanded, help="Folder of a demo training; the shipped model if left out.")
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, max=options.MOST_SAMPLES, help="Questions per task, each about another picture.")
    ] = 1000,
    out: options.OutFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a demo model on held-out pictures: the table of its model card. Takes minutes with the default size."""
    check_outputs({"--out": out}, inputs=[model])
    with startup.spinner("loading the demo model"):
        from foveate.demo.evaluation import DemoEvaluationConfig, evaluate_demo
        from foveate.demo.loading import load_demo

        loaded, processor = load_demo(model)
    console = tables.make_console()
    with nullcontext() if as_json else console.status("answering"):
        results = evaluate_demo(
            loaded, processor, DemoEvaluationConfig(questions_per_task=questions, majority_pictures=20 * questions)
        )
    if out is not None:
        write_file(out, json.dumps(results, indent=2) + "\n")
    if as_json:
        console.print_json(json.dumps(results))
        return
    from rich.table import Table

    table = Table(title="Exact match of the greedy answer on held-out pictures", title_justify="left")
    for heading in (
        "task",
        "questions",
        "accuracy",
        "95 % interval",
        "blind:\nmajority",
        "blind:\nblank picture",
        "gain",
        "half of the\nanswer hidden",
    ):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in results["tasks"]:
        table.add_row(
            row["task"],
            f"{row['questions']:,}",
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['majority_blind']:.3f}",
            f"{row['blank_blind']:.3f}",
            f"{100 * row['gain']:+.1f}",
            "" if row["half_output"] is None else f"{row['half_output']:.3f}",
        )
    tables.show(console, table)
    captions = results["captions"]
    console.print(
        f"{captions['captions']} captions by generate(): sentence F1 {captions['sentence_f1']:.3f}, "
        f"entirely right {captions['exact']:.3f}; gain is in points over the better blind answer",
        style="dim",
        soft_wrap=True,
    )
