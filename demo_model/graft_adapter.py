"""The adapter of a grafted model: the weights that train, put into it, saved, and read again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_model.checkpoint import checkpoint_readable
from foveate.errors import InputError
from foveate.files.reading import open_regular, read_json
from foveate.files.writing import write_file

LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER, ABOUT, CHECKPOINT = "adapter.safetensors", "graft.json", "graft.pt"


@dataclass(frozen=True)
class GraftConfig:
    """Settings of a run.

    Attributes:
        steps: of the whole schedule; `minutes` may stop a call before.
        batch_size: pictures in a step.
        rank: of the LoRA weights; their scale is twice the rank.
        projector_rate, lora_rate: highest learning rates, after a warm-up of 3 % of the steps; then they fall as a cosine.
        held_out: pictures of the validation.
        save_every: steps between two checkpoints.
        workers: processes that draw pictures.
        seed: of weights and pictures.
    """

    steps: int = 3000
    batch_size: int = 32
    rank: int = 16
    projector_rate: float = 1e-3
    lora_rate: float = 2e-4
    held_out: int = 256
    save_every: int = 250
    workers: int = 0
    seed: int = 1


def grafted(model: Any, config: GraftConfig) -> dict[str, torch.nn.Parameter]:
    """Put LoRA weights into a model's decoder in place, freeze the rest but the projector; returns what trains, by name."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    torch.manual_seed(config.seed)
    lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=list(LORA_LAYERS))
    inject_adapter_in_model(lora, model.model.language_model)
    model.model.multi_modal_projector.requires_grad_(True)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def with_adapter(model: Any, folder: Path) -> Any:
    """An InternVL of the pretrained parts with a released adapter in it; the model is changed in place.

    Raises:
        InputError: if the folder holds no adapter, or one for other weights.
    """
    from safetensors.torch import load_file

    about = read_json(folder / ABOUT)
    with checkpoint_readable(folder):
        fill(grafted(model, GraftConfig(**about["config"])), load_file(folder / ADAPTER))
    return model


def save(out: Path, config: GraftConfig, step: int, trained: Any, optimizer: Any, schedule: Any) -> None:
    """Replace the run's checkpoint, whole or not at all."""
    held = {
        "config": asdict(config), "step": step, "weights": {name: weight.detach().cpu() for name, weight in trained.items()},
        "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
    }  # fmt: skip
    write_file(out / CHECKPOINT, lambda file: torch.save(held, file))


def read(run: Path) -> dict[str, Any]:
    """A run's checkpoint.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path = run / CHECKPOINT
    open_regular(path, what="checkpoint").close()
    with checkpoint_readable(path):
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        GraftConfig(**found["config"])
        return found


def resume(out: Path, config: GraftConfig, trained: Any, optimizer: Any, schedule: Any) -> int:
    """Put a run's checkpoint into what trains; returns the step it is at, 0 without one.

    Raises:
        InputError: if it is damaged, or of a run with other settings.
    """
    if not (out / CHECKPOINT).exists():
        return 0
    found = read(out)
    changed = {key: value for key, value in asdict(config).items() if found["config"][key] != value and key != "workers"}
    if changed:
        raise InputError(f"{out} holds a run with another {', '.join(changed)}: choose another --out")
    with checkpoint_readable(out / CHECKPOINT):
        fill(trained, found["weights"])
        optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
    return int(found["step"])


def fill(trained: dict[str, torch.nn.Parameter], weights: dict[str, Tensor]) -> None:
    """Copy weights over those that train.

    Raises:
        InputError: if they are those of another model.
    """
    if trained.keys() != weights.keys():
        raise InputError("the adapter's weights are not those of this model")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])
