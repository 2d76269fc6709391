"""Tables and numbers as people read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:  # a help text needs no torch
    from foveate.api import Answer
    from foveate.cost.estimate import CostEstimate

# Tables in logs and pipes are not squeezed into the 80 columns that an unknown width stands for.
_PIPE_WIDTH = 130
# A column of texts is not made narrower.
_TEXT_WIDTH = 16
# Below this share of the encoder's tokens a plan gets a warning about detail.
_DETAIL = 0.5


def make_console() -> Console:
    """A console for results: as wide as the terminal, or as COLUMNS says; in a pipe wide enough for tables."""
    asked = os.environ.get("COLUMNS", "")
    wide = int(asked) if asked.isdecimal() and 20 <= int(asked[:6]) <= 10_000 else _PIPE_WIDTH
    return Console(width=None if sys.stdout.isatty() else wide)


def show(console: Console, table: Table) -> None:
    """Print a table, or where it is too wide for the console its rows one below the other: no number is cut or broken."""
    spare = console.width - 3 * len(table.columns) - 1
    for column in table.columns:
        column.overflow, column.width = "fold", _least_width(console, column)
        spare -= column.width
    if spare >= 0:
        for column in sorted(table.columns, key=lambda column: column.justify == "right"):  # texts first
            assert column.width is not None
            wished = max(console.measure(cell).maximum for cell in (column.header, *column.cells))
            more = max(0, min(spare, wished - column.width))
            column.width, spare = column.width + more, spare - more
        console.print(table)
        return
    if table.title is not None:
        console.print(table.title, style="italic")
    for row in zip(*(column.cells for column in table.columns), strict=True):
        lines = Table.grid(padding=(0, 2))
        lines.add_column(style="dim")
        lines.add_column(overflow="fold")
        for column, cell in zip(table.columns, row, strict=True):
            heading = " ".join(str(column.header).split())
            if cell != "":
                lines.add_row(*((heading, cell) if heading else (cell, "")))
        console.print(lines)
        console.print()


def _least_width(console: Console, column: Column) -> int:
    """Numbers stay on their lines, headings are broken between words, and texts not into bits."""
    words = [console.measure(cell).minimum for cell in (column.header, *column.cells)]
    longest = max((console.measure(cell).maximum for cell in column.cells), default=0)
    return max(words[0], longest if column.justify == "right" else min(longest, max(_TEXT_WIDTH, *words)))


def make_table(*headings: str) -> Table:
    """A table of texts, with lines between its rows."""
    table = Table(show_lines=True)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_flops(count: float, unit: str = "FLOPs") -> str:
    """3.2e12 -> "3.20 TFLOPs"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def cache_bytes(answer: Answer) -> str:
    """What lasts in an answer's cache, and what is held until slots that a gate rejected are taken away, where that is more."""
    if answer.kv_bytes is None or answer.kv_bytes_held is None:
        return "quantized:\nnot measured"
    held = "" if answer.kv_bytes_held == answer.kv_bytes else f"\n({human_bytes(answer.kv_bytes_held)} held)"
    return human_bytes(answer.kv_bytes) + held


def peak_memory(answer: Answer) -> str:
    """The peak while answering; what it counts depends on the device."""
    return "not measured" if answer.peak_bytes is None else human_bytes(answer.peak_bytes)


def memory_note(device: str) -> str:
    """What the column counts."""
    what = "what was allocated on the GPU, weights included" if device == "cuda" else "by how much the process grew"
    return f"Peak memory: {what} while answering."


def milliseconds(value: float | None) -> str:
    """ "12.3 ms", or that it was not measured."""
    return "not measured" if value is None else f"{value:.1f} ms"


def highlighted(answer: str, plain: str) -> Text:
    """The answer with the words that differ from the plain model's answer in bold red."""
    words, reference = answer.split(), plain.split()
    text = Text()
    for tag, _, _, start, stop in SequenceMatcher(None, reference, words, autojunk=False).get_opcodes():
        if tag != "delete":
            for word in words[start:stop]:
                text.append(word + " ", style="" if tag == "equal" else "bold red")
    if not words:
        text.append("(no answer)", style="bold red")
    text.rstrip()
    return text


def detail_hint(estimate: CostEstimate | None) -> str | None:
    """What to look out for where the vision encoder loses so much that dense text and charts suffer."""
    if estimate is None or not estimate.encoder_tokens[0]:
        return None
    encoded, left = estimate.encoder_tokens
    if left[-1] >= _DETAIL * encoded[-1]:
        return None
    return (
        "less than half of the encoder's tokens stay: dense text and charts lose most (published for iLLaVA: AI2D -2.8, "
        "MMStar -2.7 points); compare on pictures of yours, or merge in the LLM only"
    )


def answer_table(answers: Sequence[Answer], texts: Sequence[str], title: str) -> Table:
    """One row per answer: plan, answer, visual tokens, FLOPs ratio, KV bytes, TTFT, TPOT."""
    table = Table(title=title, title_justify="left", show_lines=len(answers) > 1)
    table.add_column("plan", overflow="fold", ratio=3)
    table.add_column("answer", overflow="fold", ratio=4)
    for heading in ("visual tokens", "LLM FLOPs\n(theory)", "KV cache\n(measured)", "TTFT", "TPOT", "peak\nmemory"):
        table.add_column(heading, justify="right", overflow="fold")
    for answer, text in zip(answers, texts, strict=True):
        table.add_row(
            escape(answer.name),
            highlighted(text, texts[0]),
            f"{answer.visual_tokens} -> {answer.kept_tokens}",
            "100 %" if answer.prefill_ratio is None else f"{100 * answer.prefill_ratio:.0f} %",
            cache_bytes(answer),
            milliseconds(answer.ttft_ms),
            milliseconds(answer.tpot_ms),
            peak_memory(answer),
        )
    return table


def answer_json(answer: Answer, text: str) -> dict[str, object]:
    """The same row for programs."""
    return {
        "name": answer.name,
        "plan": answer.plan,
        "answer": text,
        "visual_tokens": answer.visual_tokens,
        "kept_tokens": answer.kept_tokens,
        "llm_prefill_flops_ratio": answer.prefill_ratio,
        "kv_bytes": answer.kv_bytes,
        "kv_bytes_held": answer.kv_bytes_held,
        "ttft_ms": answer.ttft_ms,
        "tpot_ms": answer.tpot_ms,
        "loyalty": answer.loyalty,
        "peak_bytes": answer.peak_bytes,
    }
