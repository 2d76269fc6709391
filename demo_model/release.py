"""Puts a finished training run into the package: weights, evaluation, model card and example pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from demo_model.examples import make_examples
from foveate.demo.evaluation import DemoEvaluationConfig, evaluate_demo, generate_answers
from foveate.demo.loading import MODEL_FOLDER, PICTURES_FOLDER, load_demo
from foveate.demo.questions import Question
from foveate.demo.samples import Sample

LONGEST_ANSWER = 8  # tokens

CARD = """# foveate demo model

A tiny vision-language model for trying out visual-token pruning offline. It is an ordinary
`LlavaForConditionalGeneration` of transformers (CLIP vision encoder, two-layer projector, LLaMA decoder) with
{parameters:.2f} million parameters, trained from scratch on pictures that a program draws. It is **not** a general
vision-language model: it knows 8 colours x 7 shapes x 2 sizes on textured backgrounds, bar charts, signs with short words,
pairs of pictures and clips of four frames, and a handful of English question patterns. Anything else gets a confident wrong
answer.

```python
from foveate.demo.loading import load_demo

model, processor = load_demo()
```

| | |
|---|---|
| picture | 96 x 96 pixels, patches of 8, 144 visual tokens; up to 4 pictures in a prompt |
| vision encoder | {vision_layers} layers, width {vision_width}, last layer read, class token dropped |
| decoder | {text_layers} layers, width {text_width}, {vocabulary} tokens (byte-level BPE, lower case, single digits) |
| weights | bfloat16, {megabytes:.1f} MB |

## Training

{hours:.1f} hours on a CPU with {threads} threads in {precision}, seed {seed}. `python -m demo_model train --steps {steps}`
repeats it; the same machine, versions and number of threads give the same weights. {vision_steps:,} steps train the vision
encoder alone on patch labels, then {steps:,} steps train everything on {joint_pictures:,} pictures at most ({batch_size} a
step; fewer rows when a row has two pictures, or four frames) with up to {question_limit} questions each and, for
{long_share:.0%} of the single pictures, one more that has a long answer.

What the patches show is known, since a program drew them, and two auxiliary losses use that: linear heads read colour, form and
part of each patch from the vision encoder (and give its class token a gradient), and each projected patch is pulled towards
the embeddings of the words that name what it shows. The heads are not part of the weights. `training_config.json` holds every
setting, `training_log.jsonl` the course of the run.

{note}

## Accuracy on held-out pictures

Exact match of the greedy answer. Test pictures and their textures were never seen in training. "Blind: majority"
answers each question string with its most frequent answer in {majority_pictures:,} training samples of each kind; "blind: blank
picture" is the model itself without the picture. The gain is over the better of the two. "Half of the answer hidden": every
second token that the answer has so far (or that an earlier turn said) is hidden from the later ones, which shows whether a task
needs what was said before: captions, summaries, tallies and lists backwards do. The follow-up, which asks for a word of the
turn before, does not: the model looks it up in the picture again (hiding the turn hardly changes it, a blank picture does), so
it must not be used to judge what dropping output tokens costs.

{table}
{captions}
`foveate eval demo` measures these numbers again; `evaluation.json` holds them with settings and versions.

## Limits

- Synthetic data only. Questions must resemble the training patterns:
  {examples}.
- The bundled example pictures are ones that the model answers; the table above is the measure.
- Words are spelt letter by letter, in capitals of three DejaVu fonts.
- 144 visual tokens for up to ten objects leave less redundancy than a large model on photographs has, so pruning costs
  accuracy earlier here than published results suggest.
"""


def release(run: Path, questions_per_task: int = 1000, note: str = "") -> None:
    """Evaluate the model of a finished run and write everything that ships.

    Args:
        run: the folder that the training wrote.
        questions_per_task: size of the evaluation.
        note: what the settings do not tell about this run, for the model card.
    """
    MODEL_FOLDER.mkdir(parents=True, exist_ok=True)
    for source in sorted((run / "model").iterdir()):
        shutil.copyfile(source, MODEL_FOLDER / source.name)
    model, processor = load_demo()
    training = json.loads((MODEL_FOLDER / "training_config.json").read_text())
    config = DemoEvaluationConfig(questions_per_task=questions_per_task, training_seed=training["seed"])
    results = evaluate_demo(model, processor, config)
    (MODEL_FOLDER / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    (MODEL_FOLDER / "README.md").write_text(_card(model, training, results, note))
    make_examples(PICTURES_FOLDER, answers_correctly(model, processor))


def answers_correctly(model: Any, processor: Any) -> Callable[[Sample, Question], bool]:
    """Return the judge of `make_examples`: does the greedy answer equal the true one?"""

    def is_right(sample: Sample, question: Question) -> bool:
        return generate_answers(model, processor, [(sample, question)], LONGEST_ANSWER) == [question.answer]

    return is_right


def _card(model: Any, training: Mapping[str, Any], results: Mapping[str, Any], note: str) -> str:
    log = [json.loads(line) for line in (MODEL_FOLDER / "training_log.jsonl").read_text().splitlines()]
    captions = results["captions"]
    return CARD.format(
        note=note,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        vocabulary=model.config.text_config.vocab_size,
        megabytes=(MODEL_FOLDER / "model.safetensors").stat().st_size / 1e6,
        joint_pictures=log[-1]["step"] * training["batch_size"],
        majority_pictures=results["config"]["majority_pictures"],
        table=markdown_table(results),
        captions=(
            f"Captions by `generate()` ({captions['captions']:.0f} pictures, {captions['mean_tokens']:.0f} tokens on average, "
            f"{captions['longest_tokens']} at most): F1 of the sentences {captions['sentence_f1']:.3f}, "
            f"entirely right {captions['exact']:.3f}.\n"
        ),
        examples='"what color is the large star?", "is there a red circle?", "which bar is the tallest?"',
        **training["model"],
        **{key: value for key, value in training.items() if key != "model"},
    )


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the table of the model card: accuracy, interval, blind baselines and the gain over the better one."""
    lines = [
        "| task | questions | accuracy | 95 % interval | blind: majority | blind: blank picture | gain "
        "| half of the answer hidden |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["tasks"]:
        lines.append(
            f"| {row['task']} | {row['questions']} | {row['accuracy']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
            f"| {row['majority_blind']:.3f} | {row['blank_blind']:.3f} | {100 * row['gain']:+.1f} points "
            f"| {'' if row['half_output'] is None else format(row['half_output'], '.3f')} |"
        )
    return "\n".join(lines) + "\n"
