"""The page of the quality curves, from one raw file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._quality_plots import STYLES, Study, differs, plot_curves, plot_grid, plot_rows
from benchmarks._study import beside, difference, table
from foveate.evaluate.intervals import interval

PAGE = """# What pruning costs: quality curves of the demo model

Exact match of the greedy answer of the [embedded demo model](../foveate/demo/assets/model/README.md), {questions} held-out
questions ({per_task} of each of {tasks} tasks), every question in a prompt of its own, {visual} visual tokens a picture,
{layers} decoder layers. Plain model: **{plain:.3f}**. Differences are in points against the plain model on the same questions,
in brackets the 95 % interval of the paired bootstrap over questions. Random draws one of five seeds per batch. Raw file with
every single answer: `{raw}`. Made by `python -m benchmarks.quality`.

This is a small model on rendered pictures. It shows how methods differ, not what a 7B model loses on photographs: with {visual}
tokens for up to ten objects there is less to throw away than in a photo.

## Accuracy against kept tokens

![Accuracy against the share of visual tokens kept, one panel per layer](pictures/quality-curves.png)

{curves}

## FastV over layer and keep

Left: accuracy. Right: FastV minus random at the same layer and count, in points; a dot marks intervals that contain zero.

![Accuracy of FastV over layer and keep, and its difference to random](pictures/quality-grid.png)

{against_random}

## By task

Accuracy at keep 0.25. A star marks where FastV and random differ beyond their paired 95 % interval.

{by_task}

{per_task_losses}

## Which rows of the picture survive

FastV ranks by the attention of the last prompt token, {bias_prompts} prompts with one picture, keep {bias_keep}. Without a bias
every row of the picture would keep the same share, {bias_keep}; objects stand anywhere in the pictures.

![Share of each picture row that FastV keeps, by layer, with and without rope](pictures/quality-rows.png)

{bias}
"""


def write_page(report: dict[str, Any], raw: Path, out: Path) -> None:
    """Write the Markdown page and its three plots beside it in `pictures/`."""
    study = Study(report)
    pictures = out.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    plot_curves(study, pictures / "quality-curves.png")
    plot_grid(study, pictures / "quality-grid.png")
    plot_rows(study, pictures / "quality-rows.png")
    bias = report["position_bias"]
    page = PAGE.format(
        questions=f"{len(study.tasks):,}", per_task=report["questions_per_task"], tasks=len(set(study.tasks)),
        visual=report["visual_tokens"], layers=report["layers"], plain=study.plain.mean(), raw=raw.as_posix(),
        curves=_curve_table(study), against_random=_against_random(study), by_task=_task_table(study),
        per_task_losses=_task_sentences(study), bias_prompts=bias[0]["prompts"], bias_keep=bias[0]["keep"],
        bias=_bias_table(bias),
    )  # fmt: skip
    out.write_text(page, encoding="utf-8")


def _curve_table(study: Study) -> str:
    parts = []
    for layer in study.curve_layers:
        lines = []
        for method, (_, _, label) in STYLES.items():
            own = None if method == "downsampled picture" else layer
            cells = [study.get(method, own, keep) for keep in study.keeps]
            texts = ["not measured" if c is None else beside(c, study.plain) for c in cells]
            lines.append([label, *texts])
        parts.append(f"Plans before layer {layer}:\n\n" + table(["method", *(f"keep {keep}" for keep in study.keeps)], lines))
    return "\n\n".join(parts)


def _against_random(study: Study) -> str:
    lines, unclear = [], []
    for layer in study.layers:
        cells = []
        for keep in study.keeps:
            fastv, random = study.get("fastv", layer, keep), study.get("random", layer, keep)
            if fastv is None or random is None:
                cells.append("not measured")
                continue
            cells.append(difference(fastv, random))
            if interval(100.0 * (fastv - random))[0] <= 0:
                unclear.append(f"layer {layer} keep {keep}")
        lines.append([str(layer), *cells])
    said = (
        f"FastV does **not** beat random (its interval reaches zero or below) at: {', '.join(unclear)}."
        if unclear
        else "FastV beats random at every measured point."
    )
    return table(["FastV - random, layer", *(f"keep {keep}" for keep in study.keeps)], lines) + "\n\n" + said


def _task_table(study: Study, keep: float = 0.25) -> str:
    methods = [m for m in STYLES if m != "downsampled picture"]
    heading = ["task", "plain", *(f"{STYLES[m][2]}, layer {layer}" for layer in study.curve_layers for m in methods)]
    lines = []
    for task in dict.fromkeys(study.tasks):
        own = study.tasks == task
        cells = [f"{study.plain[own].mean():.2f}"]
        for layer in study.curve_layers:
            random = study.get("random", layer, keep)
            for method in methods:
                right = study.get(method, layer, keep)
                text = "not measured" if right is None else f"{right[own].mean():.2f}"
                if method == "fastv" and right is not None and random is not None and differs(right[own], random[own]):
                    text += " *"
                cells.append(text)
        lines.append([task, *cells])
    return table(heading, lines)


def _task_sentences(study: Study) -> str:
    said = []
    for layer in study.curve_layers:
        worse, level = [], []
        for task in dict.fromkeys(study.tasks):
            own = study.tasks == task
            gaps = [
                (f[own] - r[own]).mean()
                for keep in (0.5, 0.25, 0.1)
                if (f := study.get("fastv", layer, keep)) is not None and (r := study.get("random", layer, keep)) is not None
            ]
            (worse if max(gaps) < 0 else level if min(gaps) < 0 else []).append(str(task))
        said.append(
            f"Before layer {layer}, at keep 0.5, 0.25 and 0.1: FastV is below random in all three on "
            f"{', '.join(worse) or 'no task'}; "
            f"in some of them on {', '.join(level) or 'no task'}."
        )
    return "\n".join(said)


def _bias_table(bias: Sequence[dict[str, Any]]) -> str:
    lines = []
    for entry in bias:
        rows = np.array(entry["kept_share_of_each_row"])
        thirds = [part.mean() for part in np.array_split(rows, 3)]
        centre = float((rows * (np.arange(len(rows)) + 0.5)).sum() / rows.sum() / len(rows))
        lines.append(
            [str(entry["layer"]), "on" if entry["rope"] else "off", *(f"{t:.2f}" for t in thirds), f"{100 * centre:.0f} %"]
        )
    return table(
        ["layer", "rope in the score", "top third", "middle third", "bottom third", "mean height of kept tokens (0 % = top)"],
        lines,
    )
