"""GGUF and ONNX weights as folders of unmodified Hugging Face models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A module of the ONNX file, and what InternVLVisionModel calls it. Both are ViTs with a class token and a LayerScale.
_NAMES = {
    "embeddings.patch_embeddings.projection": "embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.projection_layer",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm": "layernorm",
}
_VISION = dict(
    hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6, attention_bias=True, image_size=518,
    patch_size=14, use_mean_pooling=False,
)  # fmt: skip


def convert_language(weights: Path, folder: Path) -> None:
    """A GGUF file as a model in float32 and its tokenizer. It takes transformers and gguf 40 seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain ones now; what they came from would forbid to save them.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def convert_vision(weights: Path, folder: Path) -> None:
    """The encoder of an ONNX file as an InternVLVisionModel of 37 x 37 patches; every place gets its weight."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    model = InternVLVisionModel(InternVLVisionConfig(**_VISION))
    model.load_state_dict(dict(_vision_weights(weights)))
    model.save_pretrained(folder)


def _vision_weights(path: Path) -> list[tuple[str, Tensor]]:
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    tensors = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    # The exporter folded the class token's position and the table of the others into constants without a name.
    (first,) = (value for name, value in tensors.items() if name.startswith("onnx::") and value.shape == (1, 1, 384))
    (others,) = (value for name, value in tensors.items() if name.startswith("onnx::") and value.shape == (1, 37 * 37, 384))
    found = [
        ("embeddings.cls_token", tensors["backbone.embeddings.cls_token"]),
        ("embeddings.position_embeddings", torch.cat([first, others], dim=1)),
    ]
    for name, value in tensors.items():
        if name.startswith("backbone.") and not name.endswith("cls_token"):
            found.append((_renamed(name.removeprefix("backbone.")), value))
    for node in graph.node:  # matrices too have lost their names, not their places
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul"):
            place = node.name.strip("/").removeprefix("backbone/").removesuffix("/MatMul").replace("/", ".")
            found.append((_renamed(f"{place}.weight"), tensors[node.input[1]].T.contiguous()))
    return found


def _renamed(name: str) -> str:
    place, _, kind = name.rpartition(".")
    parts = place.split(".")
    layer = ".".join(parts[:3]) + "." if parts[:2] == ["encoder", "layer"] else ""
    module = place.removeprefix(layer)
    if module.startswith("layer_scale"):
        return f"{layer}lambda_{module[-1]}"
    return f"{layer}{_NAMES[module]}.{kind}"
