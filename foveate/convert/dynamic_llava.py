"""The official Dynamic-LLaVA checkpoints as Hugging Face LLaVA models with predictors, and back.

Huang et al., ICLR 2025, arXiv:2412.00876; checkpoints Osilly/Dynamic-LLaVA-7B and -13B. The language model is fine-tuned, so
predictors and model belong together. Nothing that was pickled is ever opened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.convert import names
from foveate.convert.config import check_hub, check_official, llava_config, official_config, predictor_config
from foveate.convert.folders import check_target, converted_folder
from foveate.convert.processor import SENTENCEPIECE, load_tokenizer, save_processor, user_turn
from foveate.convert.stream import Checkpoint, Entry, write_checkpoint
from foveate.engine.base import fingerprint
from foveate.errors import InputError, first_line
from foveate.files.paths import is_file, is_folder, user_path
from foveate.files.reading import read_json
from foveate.predictors import IMAGE, PredictorConfig, find_folder, read_config, save_config

MOST_BYTES = 5 * 10**9
PREDICTORS = "predictors"


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: of the model.
        files: of its weights.
        size_bytes: of its weights, predictors included.
        predictors: what belongs to the predictors.
    """

    folder: Path
    files: tuple[Path, ...]
    size_bytes: int
    predictors: PredictorConfig


def convert_dynamic_llava(source: str, target: Path, *, overwrite: bool = False, most_bytes: int = MOST_BYTES) -> Converted:
    """Make a Hugging Face LLaVA folder from an official checkpoint, with the predictors in `target/predictors`.

    One tensor is in memory at a time. The vocabulary grows to a multiple of 64 for the image token; the new ids can never be
    generated: `suppress_tokens` forbids them, and where that is not read their logit is the mean of all others.

    Args:
        source: folder, or hub id.
        target: folder that appears whole or not at all.
        overwrite: replace a model that is there.
        most_bytes: largest file of weights.

    Raises:
        InputError: one line that says what does not fit.
    """
    folder, target = _folder(source), user_path(target)
    config = _read_json(folder / "config.json")
    check_official(config, source)
    checkpoint = Checkpoint(folder)
    weights, predictors = _split(checkpoint, source)
    held = {key.split(".")[0] for key in predictors}
    if IMAGE not in held:
        raise InputError(f"{source} holds no {IMAGE}: it is not a Dynamic-LLaVA checkpoint")
    hub = llava_config(config, checkpoint.entries)
    rows, vocabulary = hub.text_config.vocab_size, hub.image_token_index
    described = predictor_config(config, held, folder.name if Path(source).exists() else source, ())
    expected = {str(names.official_name(name)): _with_rows(name, shape, vocabulary) for name, shape in _shapes(hub).items()}
    expected |= {f"model.{key}": shape for key, shape in _predictor_shapes(described).items()}
    _check_shapes({old: checkpoint.entries[old].shape for old in (*weights.values(), *predictors.values())}, expected, source)
    entries = [_renamed(checkpoint.entries[old], name, name, rows) for name, old in weights.items()]
    judges = [replace(checkpoint.entries[old], name=name) for name, old in predictors.items()]
    size = sum(entry.size_bytes for entry in entries + judges)
    place = (target, [folder], overwrite, size)
    check_target(*place)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != vocabulary:
        raise InputError(f"the tokenizer of {source} has {len(tokenizer)} tokens, its model {vocabulary}: copy the right one")

    def weight(name: str) -> Tensor:
        return _padded(checkpoint.read(weights[name]), name, rows)

    last = names.hub_name(f"model.layers.{described.layers - 1}.self_attn.q_proj.weight")
    marks = tuple(mark for name in (names.EMBEDDING, str(last)) for mark in fingerprint(weight(name)))
    described = replace(described, fingerprint=marks, turn=user_turn(tokenizer))
    with converted_folder(*place) as partial:
        written = write_checkpoint(partial, entries, weight, most_bytes)
        (partial / PREDICTORS).mkdir()
        write_checkpoint(partial / PREDICTORS, judges, lambda name: checkpoint.read(predictors[name]), None, PREDICTORS)
        save_config(partial / PREDICTORS, described)
        hub.dtype = _dtype(checkpoint)
        hub.save_pretrained(partial)
        _generation_config(hub).save_pretrained(partial)
        vision = hub.vision_config
        save_processor(tokenizer, partial, vision.image_size, vision.patch_size, config.get("image_aspect_ratio") == "pad")
        if (folder / SENTENCEPIECE).is_file():
            shutil.copyfile(folder / SENTENCEPIECE, partial / SENTENCEPIECE)
    return Converted(target, tuple(target / file.name for file in written), size, described)


def restore_dynamic_llava(
    source: str, target: Path, *, predictors: str = "", overwrite: bool = False, most_bytes: int = MOST_BYTES
) -> Converted:
    """Make a checkpoint that the official code loads from a Hugging Face LLaVA folder and predictors: every number as it is.

    The tokenizer is copied if the folder has its SentencePiece model, which is all that the official code reads.

    Args:
        source: folder or hub id of the model.
        target, overwrite, most_bytes: as in `convert_dynamic_llava`.
        predictors: folder or hub id; `source/predictors` if left out.

    Raises:
        InputError: one line that says what does not fit.
    """
    folder, target = _folder(source), user_path(target)
    config = _hub_config(folder, source)
    try:
        check_hub(config, source)
    except (TypeError, AttributeError, ValueError) as error:  # a number where a config should be, and so on
        if isinstance(error, InputError):
            raise
        raise InputError(f"the config of {source} cannot be read: {first_line(error)}") from None
    judged = predictors or str(folder / PREDICTORS)
    described = read_config(judged)
    if described.selectors or not described.image:
        raise InputError(f"{judged} holds a selector, which the official code cannot read: give predictors of Dynamic-LLaVA")
    checkpoint, judge = Checkpoint(folder), Checkpoint(find_folder(judged), PREDICTORS)
    weights = {names.hub_spelling(name): name for name in checkpoint.entries if not names.is_buffer(name)}
    _check_shapes({name: checkpoint.entries[old].shape for name, old in weights.items()}, _shapes(config), source)
    _check_shapes({name: entry.shape for name, entry in judge.entries.items()}, _predictor_shapes(described), judged)
    if described.hidden_size != config.text_config.hidden_size or described.layers != config.text_config.num_hidden_layers:
        raise InputError(f"the predictors in {judged} were trained for {described.base_model}: give --predictors for {source}")
    vocabulary = config.image_token_index
    official = {str(names.official_name(name)): old for name, old in weights.items()}
    entries = [
        _renamed(checkpoint.entries[old], str(names.official_name(name)), name, vocabulary) for name, old in weights.items()
    ]
    entries += [replace(entry, name=f"model.{name}") for name, entry in judge.entries.items()]
    size = sum(entry.size_bytes for entry in entries)
    place = (target, [folder, find_folder(judged)], overwrite, size)
    check_target(*place)

    def weight(name: str) -> Tensor:
        if name not in official:
            return judge.read(name.removeprefix("model."))
        tensor = checkpoint.read(official[name])
        return tensor[:vocabulary] if names.hub_name(name) in (names.EMBEDDING, names.HEAD) else tensor

    held = {name.split(".")[0] for name in judge.entries}
    with converted_folder(*place) as partial:
        written = write_checkpoint(partial, entries, weight, most_bytes)
        text = official_config(config, described, held, _dtype(checkpoint))
        (partial / "config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        if (folder / SENTENCEPIECE).is_file():
            shutil.copyfile(folder / SENTENCEPIECE, partial / SENTENCEPIECE)
    return Converted(target, tuple(target / file.name for file in written), size, described)


def _folder(source: str) -> Path:
    """The folder itself, or a download of the hub id without any pickled file."""
    folder = user_path(source)
    if is_folder(folder):
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(f"no folder at '{source}': give the folder of a checkpoint, or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.jinja", SENTENCEPIECE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        raise InputError(f"'{source}' is neither a folder nor a hub id that can be reached") from None


def _read_json(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise InputError(f"{path.parent} has no {path.name}: give the folder of a checkpoint")
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a config: download it again")
    return found


def _hub_config(folder: Path, source: str) -> Any:
    from transformers import AutoConfig

    if _read_json(folder / "config.json").get("model_type") in ("llava_llama", "dynamic_llava_llama"):
        raise InputError(f"{source} is an official checkpoint already: leave --reverse out to convert it")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its config classes meet
        raise InputError(f"the config of {source} cannot be read: {first_line(error)}") from None


def _split(checkpoint: Checkpoint, source: str) -> tuple[dict[str, str], dict[str, str]]:
    """{hub name: official name} of the model, {key: official name} of the predictors."""
    weights, predictors = {}, {}
    for official in checkpoint.entries:
        key, hub = names.predictor_key(official), names.hub_name(official)
        if key is not None:
            predictors[key] = official
        elif hub is not None:
            weights[hub] = official
        elif not names.is_buffer(official):
            raise InputError(
                f"{source} holds {official}, which LLaVA 1.5 does not have: only checkpoints laid out like it are converted"
            )
    return {hub: old for hub, old in weights.items() if not names.is_buffer(old)}, predictors


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by their names on the hub, from a model without weights."""
    from transformers import LlavaForConditionalGeneration

    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
    except Exception as error:  # transformers raises whatever a config of impossible sizes leads to
        raise InputError(f"no LLaVA can be made by its config: {first_line(error)}") from None
    return {names.hub_spelling(name): tuple(weight.shape) for name, weight in model.named_parameters()}


def _predictor_shapes(config: PredictorConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        modules = config.modules()
    return {
        f"{name}.{key}": tuple(weight.shape) for name, module in modules.items() for key, weight in module.state_dict().items()
    }


def _check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            there = f"is {list(found[name])}" if name in found else "is missing"
            wanted = f"should be {list(expected[name])}" if name in expected else "should not be there"
            raise InputError(f"{source}: {name} {there} and {wanted} by its config: download it again")


def _with_rows(hub: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (rows, *shape[1:]) if hub in (names.EMBEDDING, names.HEAD) else shape


def _renamed(entry: Entry, name: str, hub: str, rows: int) -> Entry:
    return Entry(name, entry.dtype, _with_rows(hub, entry.shape, rows))


def _padded(tensor: Tensor, name: str, rows: int) -> Tensor:
    """Embeddings and head with rows for ids past the vocabulary: zeros, and the mean of all rows."""
    if name not in (names.EMBEDDING, names.HEAD):
        return tensor
    filler = tensor.mean(0, dtype=torch.float32).to(tensor.dtype) if name == names.HEAD else tensor.new_zeros(tensor.shape[1])
    return torch.cat([tensor, filler.expand(rows - len(tensor), -1)])


def _dtype(checkpoint: Checkpoint) -> str:
    """The number format of most weights."""
    words = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    kinds = [entry.dtype for entry in checkpoint.entries.values()]
    return words[max(words, key=kinds.count)]


def _generation_config(config: Any) -> Any:
    from transformers import GenerationConfig

    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id if text.pad_token_id is not None else 0,
        suppress_tokens=list(range(config.image_token_index, text.vocab_size)),
    )
