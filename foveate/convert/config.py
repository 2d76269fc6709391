"""Configs of one model: of the official `llava_llama` checkpoints, of Hugging Face LLaVA, and of the predictors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.convert.names import TOWER
from foveate.convert.stream import Entry
from foveate.errors import InputError
from foveate.predictors import IMAGE, INSTRUCT, TEXT, PredictorConfig

OFFICIAL_TYPE = "llava_llama"
_ROWS = 64  # the vocabulary grows to a multiple of this, as in the hub's LLaVA checkpoints
_HEAD_WIDTH = 64  # of every CLIP encoder that OpenAI published
_COPIED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_MOST = {
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 256,
    "num_attention_heads": 4_096,
    "num_key_value_heads": 4_096,
    "max_position_embeddings": 2**30,
    "vocab_size": 2**24,
}
_REAL = {"initializer_range": 0, "rms_norm_eps": 0, "rope_theta": 0}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_official(config: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint that is not Dynamic-LLaVA on LLaVA 1.5.

    Raises:
        InputError: one line that says what it is instead.
    """
    kind, projector = config.get("model_type"), config.get("mm_projector_type")
    if kind == "llava":
        raise InputError(f"{name} is a Hugging Face LLaVA model already: load it as it is (--reverse goes the other way)")
    if kind not in (OFFICIAL_TYPE, "dynamic_llava_llama"):
        raise InputError(
            f"{name} is of model_type '{kind}'; Dynamic-LLaVA checkpoints are '{OFFICIAL_TYPE}': give one of those"
        )
    if not isinstance(config.get("sparse_config"), Mapping):
        raise InputError(f"{name} has no sparse_config, so no predictors: for plain LLaVA load llava-hf/llava-1.5-7b-hf")
    if projector == "tokenpacker":
        raise InputError(
            f"{name} has a TokenPacker projector, which Hugging Face LLaVA does not know: convert the variant with mlp2x_gelu"
        )
    wrong = {
        "mm_projector_type": projector != "mlp2x_gelu",
        "mm_use_im_start_end": config.get("mm_use_im_start_end", False),
        "mm_use_im_patch_token": config.get("mm_use_im_patch_token", False),
        "mm_vision_select_feature": config.get("mm_vision_select_feature", "patch") != "patch",
        "image_aspect_ratio": config.get("image_aspect_ratio", "square") not in ("square", "pad", None),
        "rope_scaling": config.get("rope_scaling") is not None,
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "mm_vision_tower": "clip-vit" not in str(config.get("mm_vision_tower")),
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(f"{name} has {key}={config.get(key)!r}; only checkpoints laid out like LLaVA 1.5 are converted")
    missing = [key for key in (*_COPIED[:4], "vocab_size") if key not in config]
    if missing:
        raise InputError(f"the config of {name} does not say {', '.join(missing)}: download it again")
    check_numbers(config, name)


def check_numbers(config: Mapping[str, Any], name: str) -> None:
    """Refuse sizes of a language model that none has, before anything is made of them.

    Raises:
        InputError: one line that names the key.
    """
    for key, most in _MOST.items():
        value = config.get(key, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"the config of {name}: {key} is a whole number from 1 to {most:,}, not {_shown(value)}")
    for key, least in _REAL.items():
        value = config.get(key)
        if value is not None and not (type(value) in (int, float) and least < value < 1e12):
            raise InputError(f"the config of {name}: {key} is a finite number above {least}, not {_shown(value)}")
    for key in _IDS:
        value = config.get(key)
        if value is not None and not (type(value) is int and -1 <= value < _MOST["vocab_size"]):
            raise InputError(f"the config of {name}: {key} is the number of a token, not {_shown(value)}")
    if type(config.get("mm_vision_select_layer", -2)) is not int:
        raise InputError(f"the config of {name}: mm_vision_select_layer is a whole number")
    if config.get("hidden_act", "silu") not in ("silu", "gelu", "relu"):
        raise InputError(f"the config of {name}: hidden_act is silu, gelu or relu, not {_shown(config['hidden_act'])}")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads or heads % config.get("num_key_value_heads", heads):
        raise InputError(f"the config of {name}: {heads} attention heads do not divide a width of {width}, or their keys")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, float, bool)) or value is None else type(value).__name__


def llava_config(official: Mapping[str, Any], entries: Mapping[str, Entry]) -> Any:
    """The `LlavaConfig`; sizes of the vision encoder are read off its tensors, which the official config leaves to a hub id.

    The image token is the first id after the official vocabulary.

    Raises:
        InputError: if the encoder's tensors are missing.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vocabulary = int(official["vocab_size"])
    text = LlamaConfig(
        **{key: official[key] for key in _COPIED if official.get(key) is not None},
        vocab_size=(vocabulary // _ROWS + 1) * _ROWS,
        rope_parameters={"rope_type": "default", "rope_theta": float(official.get("rope_theta", 10_000.0))},
        tie_word_embeddings=False,
    )
    sizes = _vision(entries)
    vision, selected = CLIPVisionConfig(**sizes), official.get("mm_vision_select_layer", -2)
    if not -sizes["num_hidden_layers"] - 1 <= selected <= sizes["num_hidden_layers"]:
        raise InputError(f"mm_vision_select_layer is {selected} in an encoder of {sizes['num_hidden_layers']} layers")
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=vocabulary,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=selected,
        vision_feature_select_strategy="default",
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    return config


def _vision(entries: Mapping[str, Entry]) -> dict[str, int]:
    patches, places = f"{TOWER}embeddings.patch_embedding.weight", f"{TOWER}embeddings.position_embedding.weight"
    first = f"{TOWER}encoder.layers.0.mlp.fc1.weight"
    for name, axes in ((patches, 4), (places, 2), (first, 2)):
        if name not in entries:
            raise InputError(f"{name} is missing: convert a checkpoint that was saved with its vision encoder")
        if len(entries[name].shape) != axes or not all(entries[name].shape):
            raise InputError(f"{name} is {list(entries[name].shape)}, no weight of a vision encoder: download it again")
    (width, _, _, patch), (rows, _) = entries[patches].shape, entries[places].shape
    layers = {
        name.removeprefix(f"{TOWER}encoder.layers.").split(".")[0] for name in entries if f"{TOWER}encoder.layers." in name
    }
    return dict(
        hidden_size=width,
        intermediate_size=entries[first].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        patch_size=patch,
        image_size=round((rows - 1) ** 0.5) * patch,
        projection_dim=768,
    )


def predictor_config(official: Mapping[str, Any], held: set[str], name: str, fingerprint: tuple[float, ...]) -> PredictorConfig:
    """What belongs to the predictors. Which there are is what the checkpoint holds; unknown keys of `sparse_config` are kept as
    provenance only.

    Args:
        held: names of the predictors whose tensors are there.
        name: of the checkpoint.

    Raises:
        InputError: if it describes none.
    """
    sparse = official["sparse_config"]
    try:
        return PredictorConfig(
            base_model=name,
            model_type="llava",
            hidden_size=official["hidden_size"],
            layers=official["num_hidden_layers"],
            fingerprint=fingerprint,
            layer=sparse.get("sparse_layer", 2),
            keep=sparse.get("vision_keep_rate", 0.2),
            text_keep=sparse.get("output_text_keep_rate", 0.5) if TEXT in held else None,
            instruct_keep=sparse.get("instruct_keep_rate", 0.7) if INSTRUCT in held else None,
            width=sparse.get("d_model", 512),
            heads=sparse.get("nhead", 8),
            feedforward=sparse.get("dim_feedforward", 2048),
            blocks=sparse.get("num_layers", 2),
            provenance={"converted from": name, "official config": dict(official)},
        )
    except InputError as error:
        raise InputError(f"the sparse_config of {name} describes no predictors: {error}") from None


def check_hub(config: Any, name: str) -> None:
    """Refuse a Hugging Face model that the official code could not hold.

    Raises:
        InputError: one line that says why.
    """
    kinds = (
        (config.model_type, config.text_config.model_type, config.vision_config.model_type)
        if hasattr(config, "vision_config")
        else (config.model_type,)
    )
    if kinds != ("llava", "llama", "clip_vision_model"):
        raise InputError(
            f"{name} is {' with '.join(map(str, kinds))}; the official code holds LLaVA of Llama and CLIP: give one"
        )
    check_numbers({**config.text_config.to_dict(), "vocab_size": config.text_config.vocab_size}, name)
    if not 1 <= config.vision_config.num_hidden_layers <= _MOST["num_hidden_layers"]:
        raise InputError(f"{name} has a vision encoder of {config.vision_config.num_hidden_layers} layers: download it again")
    plain = config.projector_hidden_act == "gelu" and config.vision_feature_select_strategy == "default"
    if not plain or config.vision_config.hidden_size // _HEAD_WIDTH != config.vision_config.num_attention_heads:
        raise InputError(f"{name} differs from LLaVA 1.5 in its projector or encoder, which the official code cannot hold")
    behind = config.text_config.vocab_size - config.image_token_index
    if not 0 < behind <= _ROWS:
        raise InputError(
            f"{name} has its image token, id {config.image_token_index}, within its vocabulary; the official code has none "
            "there: give a model whose image token follows the vocabulary"
        )


def official_config(config: Any, predictors: PredictorConfig, held: set[str], dtype: str) -> dict[str, Any]:
    """The official config of a Hugging Face model with predictors.

    If the predictors were converted, it is the config that they came with, brought up to date.
    """
    text, known = config.text_config, predictors.provenance.get("official config", {})
    vision = config.vision_config
    tower = f"openai/clip-vit-large-patch{vision.patch_size}" + ("-336" if vision.image_size == 336 else "")
    sparse = {
        "use_vision_predictor": IMAGE in held,
        "vision_keep_rate": predictors.keep,
        "use_text_predictor": bool(held & {TEXT, INSTRUCT}),
        "use_output_text_predictor": TEXT in held,
        "use_instruct_predictor": INSTRUCT in held,
        "sparse_layer": predictors.layer,
        "d_model": predictors.width,
        "nhead": predictors.heads,
        "dim_feedforward": predictors.feedforward,
        "num_layers": predictors.blocks,
    }
    if predictors.text_keep is not None:
        sparse["output_text_keep_rate"] = predictors.text_keep
    if predictors.instruct_keep is not None:
        sparse["instruct_keep_rate"] = predictors.instruct_keep
    usual = {
        "image_aspect_ratio": "pad",
        "mm_vision_tower": tower,
        "mm_hidden_size": vision.hidden_size,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "use_mm_proj": True,
        "use_cache": True,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "pretraining_tp": 1,
        "attention_bias": False,
    }
    return {
        **({} if known else usual),
        **known,
        "architectures": ["DynamicLlavaLlamaForCausalLM"],
        "model_type": known.get("model_type", OFFICIAL_TYPE),
        **{key: getattr(text, key) for key in _COPIED if key in known or not known},
        "vocab_size": config.image_token_index,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "torch_dtype": dtype,
        "sparse_config": {**known.get("sparse_config", {}), **sparse},
    }
