"""Held-out accuracy of a demo model, beside what is reachable without looking at the picture.

Every task is asked at most once per picture, so the answers of a task are independent and a binomial interval is fair.
"""

from __future__ import annotations

import itertools
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from foveate.demo.blind import majority_answers
from foveate.demo.forced import correct_answers
from foveate.demo.packing import PackedBatch, Packer, picture_side, without_every_other_output
from foveate.demo.pictures import PICTURE_PIXELS
from foveate.demo.questions import Question
from foveate.demo.samples import KIND_OF_TASK, KINDS, TASKS, Sample, make_sample
from foveate.demo.tasks import LONG_TASKS
from foveate.version import __version__

NORMAL_95 = 1.959964
# Samples in a row without a wanted question, after which a task is taken for one that the samples do not hold.
_PATIENCE = 2000


@dataclass(frozen=True)
class DemoEvaluationConfig:
    """Size of the test; the test split shares no picture and no texture with training, whatever the seed."""

    questions_per_task: int = 1000
    captions: int = 200
    seed: int = 0
    training_seed: int = 1
    majority_pictures: int = 20_000
    batch_size: int = 16


@dataclass(frozen=True)
class TaskResult:
    """Exact-match accuracy of one task with its 95 % Wilson interval and the two blind baselines.

    `half_output` is the accuracy when every other token of the answer is hidden from the later ones, for long answers.
    """

    task: str
    questions: int
    accuracy: float
    low: float
    high: float
    majority_blind: float
    blank_blind: float
    half_output: float | None = None

    @property
    def gain(self) -> float:
        """Accuracy above the better blind baseline."""
        return self.accuracy - max(self.majority_blind, self.blank_blind)


def wilson_interval(right: int, asked: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, `asked` >= 1."""
    share, z = right / asked, NORMAL_95
    centre = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked)) / (1 + z * z / asked)
    return max(0.0, centre - half), min(1.0, centre + half)


def held_out_samples(questions_per_task: int, seed: int, tasks: Sequence[str] = TASKS) -> list[Sample]:
    """Return test samples that hold `questions_per_task` questions of each task, at most one per task and sample.

    Questions with long answers are among the `questions` of the samples too. Raises ValueError for a task of which
    `_PATIENCE` samples in a row hold no question.
    """
    samples: list[Sample] = []
    for kind in KINDS:
        missing = {task: questions_per_task for task in tasks if KIND_OF_TASK[task] == kind}
        index = last = 0
        while any(missing.values()):
            if index - last > _PATIENCE:
                lacking = ", ".join(task for task, count in missing.items() if count)
                raise ValueError(f"no question of {lacking} in {_PATIENCE} samples")
            sample = make_sample("test", seed, index, kind=kind)
            first = {question.task: question for question in reversed((*sample.questions, *sample.long_questions))}
            wanted = [question for task, question in first.items() if missing.get(task)]
            for question in wanted:
                missing[question.task] -= 1
            if wanted:
                last = index
                samples.append(replace(sample, questions=tuple(wanted), long_questions=()))
            index += 1
    return samples


def evaluate_demo(model: Any, processor: Any, config: DemoEvaluationConfig | None = None) -> dict[str, Any]:
    """Return the results as a JSON-ready dictionary: a row per task, captions, settings and versions."""
    settings = config or DemoEvaluationConfig()
    samples = held_out_samples(settings.questions_per_task, settings.seed)
    tasks = _task_results(model.eval(), processor, samples, settings)
    return {
        "tasks": [asdict(result) | {"gain": result.gain} for result in tasks],
        "captions": caption_scores(model, processor, settings) if settings.captions else {},
        "pictures": len(samples),
        "config": asdict(settings),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import transformers

    return {
        "foveate": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _task_results(model: Any, processor: Any, samples: Sequence[Sample], config: DemoEvaluationConfig) -> list[TaskResult]:
    guesser = majority_answers(config.training_seed, config.majority_pictures)
    questions = [question for sample in samples for question in sample.questions]
    packer = Packer(processor)
    by_model = _count_right(questions, _correct(model, packer, samples, config.batch_size))
    by_blank = _count_right(questions, _correct(model, packer, samples, config.batch_size, blank=True))
    long = [replace(sample, questions=tuple(q for q in sample.questions if q.task in LONG_TASKS)) for sample in samples]
    long = [sample for sample in long if sample.questions]
    by_half = _count_right(
        [question for sample in long for question in sample.questions],
        _correct(model, packer, long, config.batch_size, change=without_every_other_output),
    )
    by_guess = _count_right(questions, [guesser.answer(question) == question.answer for question in questions])
    results = []
    for task in TASKS:
        asked = sum(question.task == task for question in questions)
        low, high = wilson_interval(by_model[task], asked)
        counts = (by_model[task], by_guess[task], by_blank[task])
        accuracy, majority, blank = (count / asked for count in counts)
        half = by_half[task] / asked if task in LONG_TASKS else None
        results.append(TaskResult(task, asked, accuracy, low, high, majority, blank, half))
    return results


def _correct(
    model: Any,
    packer: Packer,
    samples: Sequence[Sample],
    batch_size: int,
    *,
    blank: bool = False,
    change: Callable[[PackedBatch], PackedBatch] = lambda batch: batch,
) -> list[bool]:
    correct: list[bool] = []
    for pictures, group in itertools.groupby(samples, key=lambda sample: len(sample.pictures)):
        alike = list(group)
        size = max(1, batch_size // pictures)
        for start in range(0, len(alike), size):
            for row in correct_answers(model, change(packer.pack(alike[start : start + size])), blank=blank):
                correct += row
    return correct


def _count_right(questions: Sequence[Question], correct: Sequence[bool]) -> Mapping[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for question, is_correct in zip(questions, correct, strict=True):
        counts[question.task] += is_correct
    return counts


def conversation(sample: Sample, question: Question, side: int = PICTURE_PIXELS) -> list[dict[str, Any]]:
    """Return the chat messages that ask a question about a sample, with the right answers of its earlier turns.

    Its pictures are drawn with `side` x `side` pixels.
    """
    from PIL import Image

    pictures = [{"type": "image", "image": Image.fromarray(pixels)} for pixels in sample.pixels(side)]
    messages: list[dict[str, Any]] = []
    for text, answer in question.earlier:
        messages.append({"role": "user", "content": [{"type": "text", "text": text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    messages.append({"role": "user", "content": [{"type": "text", "text": question.text}]})
    messages[0]["content"] = [*pictures, *messages[0]["content"]]
    return messages


def generate_answers(model: Any, processor: Any, asked: Sequence[tuple[Sample, Question]], new_tokens: int) -> list[str]:
    """Return the greedy answers of `model.generate`, one question per conversation."""
    inputs = processor.apply_chat_template(
        [conversation(sample, question, picture_side(processor)) for sample, question in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def caption_scores(model: Any, processor: Any, config: DemoEvaluationConfig) -> dict[str, float]:
    """Return the F1 of caption sentences (an object or a bar each) and the share of captions that are exactly right."""
    samples = [make_sample("test", config.seed, index) for index in range(config.captions)]
    lengths = [len(processor.tokenizer(sample.caption.answer)["input_ids"]) for sample in samples]
    found = written = wanted = exact = 0
    for start in range(0, len(samples), config.batch_size):
        chosen = samples[start : start + config.batch_size]
        answers = generate_answers(model, processor, [(sample, sample.caption) for sample in chosen], 160)
        for sample, answer in zip(chosen, answers, strict=True):
            left, right = _sentences(answer), _sentences(sample.caption.answer)
            found += sum(min(left.count(sentence), right.count(sentence)) for sentence in set(left))
            written, wanted = written + len(left), wanted + len(right)
            exact += answer == sample.caption.answer
    return {
        "captions": len(samples),
        "mean_tokens": sum(lengths) / len(lengths),
        "longest_tokens": max(lengths),
        "sentence_f1": 2 * found / (written + wanted),
        "exact": exact / len(samples),
    }


def _sentences(caption: str) -> list[str]:
    """Return the sentences after the opening one, which only counts."""
    return [part.strip() for part in caption.split(".")[1:] if part.strip()]
