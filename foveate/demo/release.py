"""Puts a finished training run into the package: weights, evaluation, model card and example pictures."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.demo.evaluation import DemoEvaluationConfig, evaluate_demo, generate_answers, markdown_table
from foveate.demo.examples import make_examples
from foveate.demo.loading import MODEL_FOLDER, PICTURES_FOLDER, load_demo
from foveate.demo.questions import Question
from foveate.demo.samples import Sample

LONGEST_ANSWER = 8  # tokens

CARD = """# foveate demo model

A tiny vision-language model for trying out visual-token pruning offline. It is an ordinary
`LlavaForConditionalGeneration` of transformers (CLIP vision encoder, two-layer projector, LLaMA decoder) with
{parameters:.2f} million parameters, trained from scratch on pictures that a program draws. It is **not** a general
vision-language model: it knows 8 colours x 7 shapes x 2 sizes on textured backgrounds and simple bar charts,
and a handful of English question patterns. Anything else gets a confident wrong answer.

```python
from foveate.demo.loading import load_demo

model, processor = load_demo()
```

| | |
|---|---|
| picture | 96 x 96 pixels, patches of 8, 144 visual tokens |
| vision encoder | {vision_layers} layers, width {vision_width}, last layer read, class token dropped |
| decoder | {text_layers} layers, width {text_width}, {vocabulary} tokens (byte-level BPE, lower case, single digits) |
| weights | bfloat16, {megabytes:.1f} MB |

## Training

{minutes:.0f} minutes in total on a CPU in {precision}, seed {seed}, with
`python -m foveate.demo.training --out runs/demo --minutes {minutes:.0f} --vision-minutes {vision_minutes:.0f}`.
{vision_minutes:.0f} minutes train the vision encoder alone on patch labels; the rest trains everything on
{joint_pictures:,} pictures with up to {question_limit} questions each and a caption with probability {caption_share}.
From {late:.0%} of that on, most questions about shapes ask where something is, which is learnt last.
Small auxiliary heads on the vision encoder give its class token a gradient; they are not part of the weights.
`training_config.json` holds every setting, `training_log.jsonl` the course of the run.
A second run gives other weights, because the schedule follows the clock. {note}

## Accuracy on held-out pictures

Exact match of the greedy answer. Test pictures and their textures were never seen in training. "Blind: majority"
answers each question string with its most frequent answer in {majority_pictures:,} training pictures; "blind: blank
picture" is the model itself without the picture. The gain is over the better of the two.

{table}
{captions}
`evaluation.json` holds the numbers with settings and versions; `python -m foveate.demo.evaluation` measures them again.

## Limits

- Synthetic data only. Questions must resemble the training patterns:
  {examples}.
- The bundled example pictures are ones that the model answers; the table above is the measure.
- No reading of text, no relations between objects, one picture per conversation.
- 144 visual tokens for up to nine objects leave less redundancy than a large model on photographs has, so pruning costs
  accuracy earlier here than published results suggest.
"""


def release(run: Path, questions_per_task: int = 600, note: str = "") -> None:
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
            f"Captions ({captions['captions']:.0f} pictures): F1 of the sentences {captions['sentence_f1']:.3f}, "
            f"entirely right {captions['exact']:.3f}.\n"
        ),
        examples='"what color is the large star?", "is there a red circle?", "which bar is the tallest?"',
        **training["model"],
        **{key: value for key, value in training.items() if key != "model"},
    )


def main() -> None:
    """Command line of the release."""
    parser = argparse.ArgumentParser(description="Put a finished demo training run into the package.")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--questions", type=int, default=600, help="questions per task of the evaluation")
    parser.add_argument("--note", default="", help="sentence about the run for the model card")
    options = parser.parse_args()
    release(options.run, options.questions, options.note)


if __name__ == "__main__":
    main()
