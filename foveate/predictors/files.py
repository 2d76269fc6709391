"""Trained predictors on disk: a folder with `predictors.safetensors` and `predictors.json`, or a hub id of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from foveate.core.learned import BaseModel
from foveate.errors import InputError
from foveate.files.paths import is_file, is_folder, user_path
from foveate.files.reading import open_regular, read_json
from foveate.files.writing import make_folder, write_file, write_files
from foveate.predictors.bounds import SELECTORS, check_config
from foveate.predictors.modules import TextPredictor, VisionPredictor
from foveate.predictors.scorer import Scorer

DEMO = "demo"
WEIGHTS, CONFIG, FORMAT = "predictors.safetensors", "predictors.json", 1
_MOST_BYTES = 4 * 2**20  # of the config
_FLOATS = ("F64", "F32", "F16", "BF16")
# Names as in the published checkpoints.
IMAGE, TEXT, INSTRUCT = "image_score_predictor", "output_text_score_predictor", "instruct_score_predictor"
# Scorers in front of the language model: of a picture alone, and of a picture for a question.
SELECTOR, QUESTION_SELECTOR = SELECTORS


@dataclass(frozen=True)
class PredictorConfig:
    """What belongs to a set of predictors.

    Attributes:
        base_model, model_type, hidden_size, layers, fingerprint: the model they were trained for (`BaseModel`).
        layer: the decoder layer in front of which they judge; 0 where there are selectors alone.
        keep: share of a picture's tokens that stays.
        text_keep: share of an answer's tokens that is stored, as trained; None without that predictor.
        instruct_keep: share of an instruction's tokens that stays; None without that predictor.
        turn: token ids with which a user's turn begins behind an answer; () where nobody said.
        width, heads, feedforward, blocks: of the predictors.
        provenance: how they came to be, in words and numbers.
        image: whether there is a predictor for pictures in front of that layer.
        selectors: the scorers in front of the language model, by name.

    Raises:
        InputError: one line that names a field of another type, or beyond what predictors can be.
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
    turn: tuple[int, ...] = ()
    width: int = 512
    heads: int = 8
    feedforward: int = 2048
    blocks: int = 2
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    image: bool = True
    selectors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)

    def modules(self) -> dict[str, nn.Module]:
        """Fresh modules of these shapes, by the names of the checkpoints."""
        sizes = self.hidden_size, self.width, self.heads, self.feedforward, self.blocks
        made: dict[str, nn.Module] = {IMAGE: VisionPredictor(*sizes)} if self.image else {}
        if self.text_keep is not None:
            made[TEXT] = TextPredictor(self.hidden_size, self.width)
        if self.instruct_keep is not None:
            made[INSTRUCT] = TextPredictor(self.hidden_size, self.width)
        return made | {name: Scorer(*sizes, question=name == QUESTION_SELECTOR) for name in self.selectors}


def save_predictors(folder: str | Path, config: PredictorConfig, modules: Mapping[str, nn.Module]) -> None:
    """Write predictors. The folder is made if need be; both files appear whole or not at all."""
    folder = Path(folder)
    make_folder(folder)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    write_files({folder / WEIGHTS: save(tensors, metadata={"format": "pt"}), folder / CONFIG: _config_text(config)})


def save_config(folder: Path, config: PredictorConfig) -> None:
    """Write what belongs to predictors whose weights are in the folder already."""
    write_file(folder / CONFIG, _config_text(config))


def _config_text(config: PredictorConfig) -> str:
    return json.dumps({"format": FORMAT, **asdict(config)}, indent=2) + "\n"


def read_config(path: str) -> PredictorConfig:
    """What belongs to the predictors in a folder or under a hub id.

    Raises:
        InputError: one line that says what is missing or wrong.
    """
    if not path:
        raise InputError("trained predictors are needed: write path=folder or path=owner/name")
    file = find_folder(path) / CONFIG
    if not is_file(file):
        raise InputError(f"{path} holds no {CONFIG}: give a folder or hub id of predictors")
    data = read_json(file, _MOST_BYTES)
    if not isinstance(data, dict) or type(data.get("format")) is not int or data.pop("format") != FORMAT:
        raise InputError(f"{file}: this version reads predictors of format {FORMAT}")
    known = {one.name for one in fields(PredictorConfig)}
    if set(data) - known or not {"base_model", "model_type", "hidden_size", "layers"} <= set(data):
        raise InputError(f"{file} does not describe predictors: its keys are {', '.join(sorted(data))}")
    for name in ("fingerprint", "selectors", "turn"):
        if isinstance(data.get(name), list):
            data[name] = tuple(data[name])
    try:
        return PredictorConfig(**data)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def load_predictor(path: str, name: str, base: BaseModel, allow_mismatch: bool) -> nn.Module:
    """One trained predictor, for the model that it was trained for.

    Args:
        name: IMAGE, TEXT, INSTRUCT, SELECTOR or QUESTION_SELECTOR.
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
    modules = _described(path, config, name)
    module = modules[name]
    module.load_state_dict(_tensors(find_folder(path) / WEIGHTS, name, modules), assign=True)
    return module.requires_grad_(False).eval()


def described_predictor(path: str, name: str) -> nn.Module:
    """One trained predictor without its weights: its shapes, on the meta device.

    Raises:
        InputError: if it is not there.
    """
    return _described(path, read_config(path), name)[name]


def _described(path: str, config: PredictorConfig, name: str) -> dict[str, nn.Module]:
    """All predictors of a folder that holds `name`; no memory is taken before the file is found to hold what it should."""
    with torch.device("meta"):
        modules = config.modules()
    if name not in modules:
        raise InputError(f"{path} holds no {name}: it was trained without; it holds {', '.join(modules) or 'nothing'}")
    return modules


def _tensors(file: Path, name: str, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of one predictor in float32; the whole file is checked against the modules' own shapes."""
    shapes = {
        f"{one}.{key}": list(value.shape) for one, module in modules.items() for key, value in module.state_dict().items()
    }
    open_regular(file, what="file of predictors").close()
    try:
        with safe_open(file, framework="pt") as stored:
            for key in sorted({*shapes, *stored.keys()}):
                _check_tensor(file, stored, key, shapes.get(key))
            found = {key: stored.get_tensor(key).float() for key in shapes if key.startswith(f"{name}.")}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    for key, value in found.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{file}: {key} holds numbers that are not finite: train the predictors again, or copy them again")
    return {key.removeprefix(f"{name}."): value for key, value in found.items()}


def _check_tensor(file: Path, stored: Any, key: str, shape: list[int] | None) -> None:
    if shape is None:
        raise InputError(f"{file}: {key} should not be there by {CONFIG}: copy both files together")
    if key not in stored.keys() or stored.get_slice(key).get_shape() != shape:  # noqa: SIM118 (not a dict)
        raise InputError(f"{file}: {key} is missing or has another shape than {CONFIG} says")
    if (kind := stored.get_slice(key).get_dtype()) not in _FLOATS:
        raise InputError(f"{file}: {key} is stored as {kind}; predictors are floating point numbers of 16, 32 or 64 bits")


def find_folder(path: str) -> Path:
    """The folder of predictors itself, or a download of the hub id.

    Raises:
        InputError: if the hub id cannot be reached.
    """
    if path == DEMO:  # those of the embedded demo model
        return Path(__file__).parents[1] / "demo" / "assets" / "predictors"
    folder = user_path(path)
    if is_folder(folder) or "/" not in path or path.startswith((".", "/", "~")):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=[WEIGHTS, CONFIG]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        raise InputError(f"'{path}' is neither a folder of predictors nor a hub id that can be reached") from None
