"""The counts of docs/illava.md: iLLaVA's authors' own way of counting beside what the engine does, for the published presets.

    python -m benchmarks.illava_counts --page docs/illava.md

Nothing is measured: every number follows from shapes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foveate
from foveate.cost.estimate import CostEstimate

_MARKS = re.compile(r"(<!-- counts -->\n).*?(<!-- /counts -->)", re.DOTALL)
_IMAGES = ((384, 384), (640, 480), (672, 672), (1024, 768), (1280, 720), (1920, 1080), (2048, 2048))
_SQUARES = ((224, 224), (448, 448), (896, 896), (1120, 896), (1792, 1792))


@dataclass(frozen=True)
class Case:
    """One row: a preset of the recipe on a model, with the text tokens that the published ratios imply."""

    model: str
    preset: str
    size: tuple[int, int]
    text_tokens: int
    frames: int | None = None

    @property
    def medium(self) -> str:
        """What is shown, for people."""
        width, height = self.size
        return f"{self.frames} frames" if self.frames else f"{width} x {height}"


CASES = (
    *(Case("llava-onevision-7b", "onevision-image", size, 54) for size in _IMAGES),
    Case("llava-onevision-7b", "onevision-video", (640, 360), 54, frames=32),
    *(Case("qwen2-vl-7b", "qwen2-vl-7b", size, 30) for size in _SQUARES),
    Case("qwen3-vl-8b", "qwen3-vl-8b", (1024, 1024), 30),
)
HEADINGS = (
    "model, preset", "picture", "encoder, authors", "encoder, engine", "LLM, authors", "LLM, engine",
    "prefill FLOPs, authors", "prefill FLOPs, engine", "KV cache, authors", "KV cache, engine",
)  # fmt: skip


def table() -> str:
    """The table in Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_row, CASES)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(case: Case) -> tuple[str, ...]:
    plan = f"illava(preset={case.preset})"
    workload: dict[str, Any] = dict(images=[case.size], frames=case.frames, text_tokens=case.text_tokens, max_new_tokens=0)
    theirs = foveate.estimate(case.model, plan, convention="illava-v1", **workload)
    ours = foveate.estimate(case.model, plan, **workload)
    pairs = [cell for pair in zip(_cells(theirs), _cells(ours), strict=True) for cell in pair]
    return f"{case.model}, `{case.preset}`", case.medium, *pairs


def _cells(cost: CostEstimate) -> tuple[str, ...]:
    plain, planned = cost.visual_tokens_per_layer
    return (
        " -> ".join(f"{count:,}" for count in _steps(cost.encoder_tokens[1])),
        " -> ".join(f"{count:,}" for count in (plain[0], *_steps(planned))),
        f"{100 * cost.prefill_flops.ratio.plan:.1f} %",
        f"{100 * cost.kv_bytes.ratio.plan:.1f} %",
    )


def _steps(counts: Sequence[float]) -> Iterator[int]:
    """The first count and every one that differs from the one before it."""
    for layer, count in enumerate(counts):
        if layer == 0 or count != counts[layer - 1]:
            yield int(count)


def with_table(page: str) -> str:
    """The page with the table of today.

    Raises:
        ValueError: for a page without the marks between which the table stands.
    """
    if _MARKS.search(page) is None:
        raise ValueError("the page has no <!-- counts --> ... <!-- /counts -->")
    return _MARKS.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", page)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="Markdown file whose table is replaced; printed if left out")
    options = parser.parse_args(arguments)
    if options.page is None:
        print(table())
        return
    try:
        text = with_table(options.page.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
