"""Models and configs from folders and hub ids: safetensors only, no code of theirs unless asked for, whole and finite."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveate.api.pictures import first_line
from foveate.errors import FoveateError, InputError, UnknownName, UnsupportedModel
from foveate.families import Family, family_for
from foveate.files.paths import check_folder, is_file, is_folder, kind, refused, shown, user_path
from foveate.files.reading import read_json

INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Numbers in configs: far beyond any model, and small enough to build one in no time.
_MOST_LAYERS, _MOST = 1_000, 10_000_000
_LAYERS = re.compile(r"(num_.*layers|n_layers?|depth|num_hidden_layers)")
_SIZES = re.compile(r"(hidden_size|intermediate_size|embed_dim|head_dim|patch_size|image_size|vocab_size|num_.*heads)")
_SPARE = 4  # parameters a byte of weights may stand for, at two bits each


def load_config(name: str, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config of a folder or a hub id.

    Args:
        name: of the folder or hub id.
        trust_remote_code: run Python code that lies beside it, where it asks for that.

    Raises:
        UnknownName: if there is no such folder.
        InputError: one line that says why it cannot be read or describes no model.
    """
    from transformers import AutoConfig

    source = _source(name)
    with _refusals(f"cannot read the config of '{shown(name)}'"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        _check_numbers(name, config.to_dict())
    return config


def load_pretrained(name: str, auto_class: Any = None, trust_remote_code: bool = False, **options: Any) -> tuple[Any, Any]:
    """Return (model, processor) of a folder or a hub id, in evaluation mode.

    Args:
        name: of the folder or hub id.
        auto_class: of transformers; that of the model's family by default.
        trust_remote_code: run Python code that lies beside the weights, where they ask for that.
        options: of `from_pretrained`: dtype, device_map and the like.

    Raises:
        UnknownName: if there is no such folder.
        InputError: one line for weights that are pickled, missing, misshapen or not finite, and for files that cannot be read.
    """
    import transformers

    source = _source(name)
    if is_folder(source):
        _check_weights(Path(source))
    config = load_config(name, trust_remote_code)
    family = _family(config)
    text_only = family is not None and family.is_text_only
    auto_class = auto_class or getattr(transformers, (family or Family).auto_class)
    with _refusals(f"cannot load a model and its processor from '{shown(name)}'"):
        if text_only:
            processor = TextProcessor(transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code))
        else:
            processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
            if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
                raise InputError(
                    f"'{shown(name)}' has no processor for pictures and text beside its weights: copy its files there"
                )
        if is_folder(source) and not trust_remote_code:
            _check_extent(Path(source), config, auto_class)
        model, found = auto_class.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(f"'{shown(name)}' lacks {_some(missing)}: random weights would answer; get the whole checkpoint")
    if found["mismatched_keys"]:
        raise InputError(f"'{shown(name)}': {_some(sorted(map(str, found['mismatched_keys'])))} do not fit the config")
    _check_finite(name, model)
    return model.eval(), processor


class TextProcessor:
    """The tokenizer of a plain language model, asked as processors of pictures and text are.

    Args:
        tokenizer: with a chat template, or without one: then a turn is its bare text, to be continued.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, None

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], *, tokenize: bool = False, **options: Any) -> Any:
        """What the tokenizer makes of turns whose content is a list of texts.

        Raises:
            InputError: for anything that is no text.
        """
        if any(part["type"] != "text" for turn in conversation for part in turn["content"]):
            raise InputError("this is a plain language model, which takes no pictures: ask the question alone")
        turns = [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in conversation]
        if self.tokenizer.chat_template is not None:
            return self.tokenizer.apply_chat_template(turns, tokenize=tokenize, **options)
        text = "\n".join(turn["content"] for turn in turns)
        return self.tokenizer(text, return_tensors=options.get("return_tensors")) if tokenize else text


def _family(config: Any) -> Family | None:
    try:
        return family_for(config)
    except UnsupportedModel:
        return None


@contextmanager
def _refusals(doing: str) -> Iterator[None]:
    """One line of whatever goes wrong in transformers: a broken folder has many ways to be broken."""
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise InputError(f"{doing}: {kind}{first_line(error)}") from None


def _source(name: str) -> str:
    """What transformers gets: a folder that is there, or a hub id."""
    path = user_path(name)
    # A hub id has an owner. What begins as something that is here is a path, and nobody waits for the network.
    is_path = name.count("/") != 1 or name.startswith((".", "/", "~")) or os.path.lexists(name.partition("/")[0])
    if not is_folder(path) and (is_path or os.path.lexists(path)):
        with refused("read the model folder", path):
            if os.path.lexists(path) and not stat.S_ISDIR(os.stat(path).st_mode):
                raise InputError(f"'{shown(name)}' is no folder: give the folder of a model")
            os.lstat(path.parent)  # names that no system can hold
        raise UnknownName(
            f"no model at '{shown(name)}': give a folder, a hub id (owner/name), or leave --model out for the demo model"
        )
    if not is_folder(path):
        return name
    check_folder(path, "model folder")
    with refused("read the model folder", path):
        for entry in path.iterdir():
            mode = os.stat(entry).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise InputError(f"{shown(entry)} is {kind(mode)}: a model's files are regular ones")
    if is_file(path / "config.json"):
        read_json(path / "config.json")
    return str(path)


def _check_weights(folder: Path) -> None:
    """Refuse pickled weights, and an index that names anything but safetensors beside it."""
    names = {entry.name for entry in folder.iterdir()}
    pickled = sorted(name for name in names if name.endswith(_PICKLES) and name.startswith(("pytorch_model", "model")))
    if not any(name.endswith(".safetensors") for name in names):
        if pickled:
            raise InputError(
                f"{shown(folder)} holds its weights as a pickle ({pickled[0]}), which can run code; safetensors are read. "
                "Convert them once if you trust them: in Python, from transformers import AutoModelForImageTextToText as M; "
                "M.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
            )
        raise InputError(f"{shown(folder)} holds no weights (*.safetensors): get the whole checkpoint")
    if "adapter_config.json" in names and "adapter_model.safetensors" not in names:
        raise InputError(f"{shown(folder)} holds an adapter without adapter_model.safetensors: merge it, or save it as such")
    if INDEX in names and "model.safetensors" not in names:
        index = read_json(folder / INDEX)
        listed = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(listed, Mapping) or not listed:
            raise InputError(f"{shown(folder / INDEX)} lists no weights: it needs a 'weight_map'")
        for name in {str(value) for value in listed.values()}:
            if not name.endswith(".safetensors") or name != os.path.basename(name):
                raise InputError(f"{shown(folder / INDEX)} names '{shown(name)}': only safetensors files beside it are read")
            if name not in names:
                raise InputError(f"{shown(folder)} lacks {name}, which its index lists: get the whole checkpoint")


def _check_numbers(name: str, values: Mapping[str, Any], place: str = "") -> None:
    """Refuse sizes that no model has, before transformers builds one of them."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _check_numbers(name, value, f"{place}{key}.")
        elif isinstance(value, int):
            is_layers = _LAYERS.fullmatch(key) is not None
            most = _MOST_LAYERS if is_layers else _MOST
            if (is_layers or _SIZES.fullmatch(key)) and not (0 if is_layers else 1) <= value <= most:
                raise InputError(f"the config of '{shown(name)}' says {place}{key}={value}: models have 1 to {most:,}")


def _check_extent(folder: Path, config: Any, auto_class: Any) -> None:
    """Refuse a config of many more parameters than the files can hold: memory would be filled with random ones."""
    import torch

    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    build = getattr(auto_class, "from_config", None) or auto_class._from_config
    with torch.device("meta"):
        described = sum(parameter.numel() for parameter in build(config).parameters())
    if described > _SPARE * stored:
        raise InputError(
            f"the config of {shown(folder)} describes {described:,} parameters, and its weights have {stored:,} bytes: "
            "get the whole checkpoint"
        )


def _check_finite(name: str, model: Any) -> None:
    import torch

    plain = (torch.float32, torch.float16, torch.bfloat16)
    for key, value in model.named_parameters():
        # One pass without a copy: a sum is finite only if all of its terms are.
        if (
            value.dtype in plain
            and value.device.type != "meta"
            and not bool(value.detach().sum(dtype=torch.float32).isfinite())
        ):
            raise InputError(f"the weights of '{shown(name)}' are broken: {key} holds NaN or infinity")


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
