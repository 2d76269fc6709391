"""Trained predictors on disk: a folder with `predictors.safetensors` and `predictors.json`, or a hub id of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.learned import BaseModel
from foveate.errors import InputError
from foveate.predictors.modules import TextPredictor, VisionPredictor

DEMO = "demo"
WEIGHTS, CONFIG, FORMAT = "predictors.safetensors", "predictors.json", 1
# Names as in the published checkpoints.
IMAGE, TEXT, INSTRUCT = "image_score_predictor", "output_text_score_predictor", "instruct_score_predictor"


@dataclass(frozen=True)
class PredictorConfig:
    """What belongs to a set of predictors.

    Attributes:
        base_model, model_type, hidden_size, layers, fingerprint: the model they were trained for (`BaseModel`).
        layer: the decoder layer in front of which they judge.
        keep: share of a picture's tokens that stays.
        text_keep: share of an answer's tokens that is stored, as trained; None without that predictor.
        instruct_keep: share of an instruction's tokens that stays; None without that predictor.
        width, heads, feedforward, blocks: of the predictors.
        provenance: how they came to be, in words and numbers.
    """

    base_model: str
    model_type: str
    hidden_size: int
    layers: int
    fingerprint: tuple[float, ...] = ()
    layer: int = 2
    keep: float = 0.2
    text_keep: float | None = 0.5
    instruct_keep: float | None = None
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    blocks: int = 2
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def modules(self) -> dict[str, nn.Module]:
        """Fresh modules of these shapes, by the names of the checkpoints."""
        made: dict[str, nn.Module] = {
            IMAGE: VisionPredictor(self.hidden_size, self.width, self.heads, self.feedforward, self.blocks)
        }
        if self.text_keep is not None:
            made[TEXT] = TextPredictor(self.hidden_size, self.width)
        if self.instruct_keep is not None:
            made[INSTRUCT] = TextPredictor(self.hidden_size, self.width)
        return made


def save_predictors(folder: str | Path, config: PredictorConfig, modules: Mapping[str, nn.Module]) -> None:
    """Write predictors. The folder is made if need be; both files appear whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS)
    save_config(folder, config)


def save_config(folder: Path, config: PredictorConfig) -> None:
    """Write what belongs to predictors whose weights are in the folder already."""
    text = json.dumps({"format": FORMAT, **asdict(config)}, indent=2) + "\n"
    partial = folder / (CONFIG + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / CONFIG)


def read_config(path: str) -> PredictorConfig:
    """What belongs to the predictors in a folder or under a hub id.

    Raises:
        InputError: one line that says what is missing or wrong.
    """
    if not path:
        raise InputError("trained predictors are needed: write path=folder or path=owner/name")
    file = find_folder(path) / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} holds no {CONFIG}: give a folder or hub id of predictors") from None
    except ValueError:
        raise InputError(f"{file} is not JSON") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise InputError(f"{file}: this version reads predictors of format {FORMAT}")
    known = {one.name for one in fields(PredictorConfig)}
    if set(data) - known or not {"base_model", "model_type", "hidden_size", "layers"} <= set(data):
        raise InputError(f"{file} does not describe predictors: its keys are {', '.join(sorted(data))}")
    data["fingerprint"] = tuple(data.get("fingerprint", ()))
    return PredictorConfig(**data)


def load_predictor(path: str, name: str, base: BaseModel, allow_mismatch: bool) -> nn.Module:
    """One trained predictor, for the model that it was trained for.

    Args:
        name: IMAGE, TEXT or INSTRUCT.
        allow_mismatch: also for another model of the same width.

    Raises:
        InputError: if it is not there, does not fit, or was trained for another model.
    """
    config = read_config(path)
    if config.hidden_size != base.width:
        raise InputError(
            f"the predictors in {path} were trained for {config.base_model} with hidden states of {config.hidden_size}; "
            f"this model has {base.width}: train predictors for it, or load {config.base_model}"
        )
    same = config.model_type == base.model_type and config.layers == base.layers and base.resembles(config.fingerprint)
    if not same and not allow_mismatch:
        raise InputError(
            f"the predictors in {path} were trained for {config.base_model}, whose weights are not those of this model: load "
            f"that one, or write allow_mismatch=on to see what they do here"
        )
    module = config.modules().get(name)
    if module is None:
        raise InputError(f"{path} holds no {name}: it was trained without")
    module.load_state_dict(_tensors(find_folder(path) / WEIGHTS, name, module))
    return module.requires_grad_(False).eval()


def _tensors(file: Path, name: str, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of one predictor, checked against the module's own shapes."""
    expected = module.state_dict()
    try:
        with safe_open(file, framework="pt") as stored:
            held = set(stored.keys())
            found = {key: stored.get_tensor(f"{name}.{key}") for key in expected if f"{name}.{key}" in held}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    wrong = [key for key, value in expected.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise InputError(f"{file}: {name}.{wrong[0]} is missing or has another shape than {CONFIG} says")
    return found


def find_folder(path: str) -> Path:
    """The folder of predictors itself, or a download of the hub id.

    Raises:
        InputError: if the hub id cannot be reached.
    """
    if path == DEMO:  # those of the embedded demo model
        return Path(__file__).parents[1] / "demo" / "assets" / "predictors"
    folder = Path(path)
    if folder.is_dir() or "/" not in path or path.startswith((".", "/", "~")):
        return folder.expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=[WEIGHTS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        raise InputError(f"'{path}' is neither a folder of predictors nor a hub id that can be reached") from None
