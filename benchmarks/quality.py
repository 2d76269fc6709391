"""Quality curves: accuracy of the embedded demo model against kept visual tokens, for FastV over layer x keep and its controls.

    python -m benchmarks.quality run --questions 200 --out benchmarks/results/NAME.json
    python -m benchmarks.quality page benchmarks/results/NAME.json --out docs/quality.md

`run` can be stopped and repeated: rows that the file holds already are not measured again. Exact match of the greedy answer on
held-out pictures, decided by one teacher-forced pass through the pruned model: greedy decoding gives the answer exactly if each
of its tokens is the most likely one. Every question is a prompt of its own, so each is pruned by its own last token.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import DynamicCache

import foveate
from benchmarks._results import write_results
from benchmarks._study import graded, resumed, study_command
from foveate.api.measuring import CACHE
from foveate.api.pictures import downsampled
from foveate.demo.evaluation import held_out_samples, versions
from foveate.demo.loading import load_demo
from foveate.demo.packing import IGNORED, PackedBatch, Packer
from foveate.demo.questions import Question
from foveate.demo.samples import Sample

BATCH, SEED, RANDOM_SEEDS = 32, 1, 5
LAYERS, KEEPS = (1, 2, 3, 4, 6), (0.75, 0.5, 0.25, 0.1, 0.05)
CURVE_LAYERS = (2, 4)  # where every method is measured; FastV and random are measured at every layer
BIAS_KEEP, BIAS_QUESTIONS = 0.25, 40  # questions per task


@dataclass(frozen=True)
class Row:
    """One point: a method with its layer and keep ratio, as a plan or as fewer pixels for the plain model."""

    method: str
    layer: int | None
    keep: float
    plan: str

    @property
    def name(self) -> str:
        where = "" if self.layer is None else f" layer {self.layer}"
        return f"{self.method}{where} keep {self.keep}"


def rows() -> Iterator[Row]:
    """Every point of the study, those of the curves first."""
    yield Row("plain", None, 1.0, "none")
    for layer, keep in itertools.product(CURVE_LAYERS, KEEPS):
        for method, options in {
            "fastv": "", "random": "", "uniform": "", "fastv rope=off": ", rope=off", "fastv windowed": ", topk=window:4",
        }.items():  # fmt: skip
            yield Row(method, layer, keep, f"{method.split()[0]}(layer={layer}, keep={keep}{options})")
    for layer in CURVE_LAYERS:
        yield Row("pool", layer, 0.25, f"pool(layer={layer})")
    for keep in (0.5, 0.25, 0.1):
        yield Row("downsampled picture", None, keep, "none")
    for layer, keep in itertools.product([layer for layer in LAYERS if layer not in CURVE_LAYERS], KEEPS):
        for method in ("fastv", "random"):
            yield Row(method, layer, keep, f"{method}(layer={layer}, keep={keep})")


class Smaller:
    """A sample whose pictures have lost pixels."""

    def __init__(self, sample: Sample, keep: float) -> None:
        self.pictures, self.questions = sample.pictures, sample.questions
        pictures = [Image.fromarray(pixels) for pixels in sample.pixels()]
        # Brought back to its size, as the demo model reads no other.
        self._pixels = np.stack(
            [np.asarray(downsampled(one, keep).resize(one.size, Image.Resampling.BICUBIC)) for one in pictures]
        )

    def pixels(self, side: int) -> npt.NDArray[np.uint8]:
        assert side == self._pixels.shape[1]
        return self._pixels


@dataclass
class Prompts:
    """Questions in batches of equal prompt length: no padding in front of or inside a prompt, so one length serves a batch."""

    tasks: list[str]
    batches: list[tuple[list[int], int, PackedBatch]]  # indices into `tasks`, prompt length, the rows

    @classmethod
    def of(cls, processor: Any, asked: Sequence[tuple[Any, Question]]) -> Prompts:
        packer = Packer(processor)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (sample, question) in enumerate(asked):
            alone = packer.pack([_asking(sample, question)])
            groups[len(sample.pictures), int(alone.is_graded[0].nonzero()[0, 0])].append(i)
        batches = []
        for (pictures, length), members in sorted(groups.items()):
            size = max(1, BATCH // pictures)
            for start in range(0, len(members), size):
                chosen = members[start : start + size]
                batches.append((chosen, length, packer.pack([_asking(*asked[i]) for i in chosen])))
        return cls([question.task for _, question in asked], batches)

    def right(self, model: Any, row: Row) -> npt.NDArray[np.bool_]:
        """Which questions are answered exactly under a row's plan."""
        right = np.zeros(len(self.tasks), dtype=bool)
        for number, (members, length, batch) in enumerate(self.batches):
            plan = seeded(row.plan, number)
            with foveate.attach(model, plan) if plan != "none" else nullcontext() as attachment:
                right[members] = exact(model, batch, length, attachment)
        return right


def _asking(sample: Any, question: Question) -> Any:
    class Asked:
        pictures, pixels, questions = sample.pictures, staticmethod(sample.pixels), (question,)

    return Asked


def seeded(plan: str, number: int) -> str:
    """A plan whose random choices have one of several seeds: a control does not stand or fall with one pattern."""
    return re.sub(r"(random(?:_gate)?\([^)]*)\)", rf"\1, seed={number % RANDOM_SEEDS})", plan)


def exact(model: Any, batch: PackedBatch, length: int, attachment: Any) -> npt.NDArray[np.bool_]:
    """Which rows of a batch are answered exactly, in one pass that equals decoding."""
    return answered(batch, length, answer_logits(model, batch, length, attachment))


@torch.inference_mode()
def answer_logits(model: Any, batch: PackedBatch, length: int, attachment: Any) -> torch.Tensor:
    """The logits [B, A, V] of a batch's answers, from the first answer token on."""
    real = batch.segments >= 0
    # With a cache the prompt's last token ranks, as in generate(); without one the newest output token would.
    inputs = {"input_ids": batch.input_ids, "attention_mask": real.long(), "pixel_values": batch.pixel_values}
    inputs[CACHE] = DynamicCache()
    with attachment.conversation(prompt_length=length) if attachment is not None else nullcontext():
        logits: torch.Tensor = model(**inputs, logits_to_keep=batch.input_ids.shape[1] - length + 1).logits[:, :-1]
    return logits


def answered(batch: PackedBatch, length: int, logits: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Which rows of a batch these logits [B, A, V] answer exactly."""
    labels = batch.labels[:, length:]
    graded = batch.is_graded[:, length:] & (labels != IGNORED)
    wrong = (logits.argmax(-1) != labels) & graded
    right: npt.NDArray[np.bool_] = ~wrong.any(-1).numpy()
    return right


def position_bias(model: Any, processor: Any, asked: Sequence[tuple[Sample, Question]]) -> list[dict[str, Any]]:
    """How often each row of the picture survives, by layer, with and without the rotary embedding in the score."""
    single = [(sample, question) for sample, question in asked if len(sample.pictures) == 1]
    found = []
    for layer, option in itertools.product(LAYERS, ("", ", rope=off")):
        counts, pictures = np.zeros(0), 0
        for members, length, batch in Prompts.of(processor, single).batches:
            with foveate.attach(model, f"fastv(layer={layer}, keep={BIAS_KEEP}{option})") as attachment:
                exact(model, batch, length, attachment)
                for entry in attachment.last.trace.media:
                    _, height, width = entry.medium.shape.grid
                    kept = np.bincount(np.asarray(entry.kept_index) // width, minlength=height) / width
                    counts = counts + kept if len(counts) else kept
            pictures += len(members)
        shares = (counts / pictures).tolist()
        found.append(
            {"layer": layer, "rope": not option, "keep": BIAS_KEEP, "prompts": pictures, "kept_share_of_each_row": shares}
        )
    return found


def run(questions: int, out: Path, folder: Path | None) -> None:
    """Measure every row that the file does not hold yet, and write the file after each."""
    model, processor = load_demo(folder)
    samples = held_out_samples(questions, SEED)
    asked = [(sample, question) for sample in samples for question in sample.questions]
    report: dict[str, Any] = {
        "what": "exact match of greedy answers of the embedded demo model, held-out pictures, one question per prompt",
        "questions_per_task": questions, "seed": SEED, "device": "cpu", "dtype": "float32", "attention": "sdpa",
        "layers": model.config.text_config.num_hidden_layers, "visual_tokens": model.config.image_seq_length,
        "versions": versions(), "rows": [],
    }  # fmt: skip
    report = resumed(out, report, ("questions_per_task", "seed", "layers", "versions"))
    prompts = Prompts.of(processor, asked)
    report["tasks"] = prompts.tasks
    done = {row["name"] for row in report["rows"]}
    for row in rows():
        if row.name in done:
            continue
        used = prompts
        if row.method == "downsampled picture":
            used = Prompts.of(processor, [(Smaller(sample, row.keep), question) for sample, question in asked])
        right = used.right(model, row)
        report["rows"].append({"name": row.name, **asdict(row), **graded(right)})
        write_results(out, report)
        print(f"{row.name:40s} {right.mean():.3f}", flush=True)
    if "position_bias" not in report:
        few = [[i for i, name in enumerate(prompts.tasks) if name == task][:BIAS_QUESTIONS] for task in set(prompts.tasks)]
        report["position_bias"] = position_bias(model, processor, [asked[i] for indices in few for i in indices])
        write_results(out, report)


def main() -> None:
    """Command line."""
    from benchmarks._quality_page import write_page

    study_command(__doc__, 200, "docs/quality.md", run, write_page)


if __name__ == "__main__":
    main()
