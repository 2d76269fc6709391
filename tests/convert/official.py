"""A small checkpoint with the names and the layout of the official ones, written out by hand."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaTokenizer

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:'?!\n"
VOCABULARY = 3 + 256 + len(LETTERS) - 1
SIZES: dict[str, Any] = dict(
    hidden=32, layers=5, heads=4, mlp=64, vocabulary=VOCABULARY, clip=64, clip_layers=3, clip_mlp=128, patch=4, side=6,
    judge=16, judge_heads=2, judge_mlp=32,
)  # fmt: skip
SEVEN: dict[str, Any] = dict(
    hidden=4096, layers=32, heads=32, mlp=11008, vocabulary=32000, clip=1024, clip_layers=24, clip_mlp=4096, patch=14, side=24,
    judge=512, judge_heads=8, judge_mlp=2048,
)  # fmt: skip
THIRTEEN: dict[str, Any] = {**SEVEN, "hidden": 5120, "layers": 40, "heads": 40, "mlp": 13824}
TOWER = "model.vision_tower.vision_tower.vision_model."


def table(size: dict[str, Any] = SIZES, instruct: bool = False) -> dict[str, tuple[int, ...]]:
    """{official name: shape}."""
    h, mlp, c, cmlp, j = (size[key] for key in ("hidden", "mlp", "clip", "clip_mlp", "judge"))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size["vocabulary"], h),
        "model.norm.weight": (h,),
        "lm_head.weight": (size["vocabulary"], h),
        **linear("model.mm_projector.0", h, c),
        **linear("model.mm_projector.2", h, h),
        f"{TOWER}embeddings.class_embedding": (c,),
        f"{TOWER}embeddings.patch_embedding.weight": (c, 3, size["patch"], size["patch"]),
        f"{TOWER}embeddings.position_embedding.weight": (size["side"] ** 2 + 1, c),
        **norm(f"{TOWER}pre_layrnorm", c),
        **norm(f"{TOWER}post_layernorm", c),
    }
    for n in range(size["layers"]):
        one = f"model.layers.{n}"
        shapes |= {f"{one}.self_attn.{part}_proj.weight": (h, h) for part in "qkvo"}
        shapes |= {f"{one}.mlp.{part}_proj.weight": (mlp, h) for part in ("gate", "up")}
        shapes |= {f"{one}.mlp.down_proj.weight": (h, mlp)}
        shapes |= {f"{one}.{part}_layernorm.weight": (h,) for part in ("input", "post_attention")}
    for n in range(size["clip_layers"]):
        one = f"{TOWER}encoder.layers.{n}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{one}.self_attn.{part}", c, c)
        shapes |= linear(f"{one}.mlp.fc1", cmlp, c) | linear(f"{one}.mlp.fc2", c, cmlp)
        shapes |= norm(f"{one}.layer_norm1", c) | norm(f"{one}.layer_norm2", c)
    image = "model.image_score_predictor"
    shapes |= norm(f"{image}.down_mlp.0", h) | linear(f"{image}.down_mlp.1", j, h)
    for n in range(2):
        one = f"{image}.transformer.{n}"
        shapes |= norm(f"{one}.norm1", j) | norm(f"{one}.norm2", j)
        shapes |= {f"{one}.attn.qkv.weight": (3 * j, j)} | linear(f"{one}.attn.proj", j, j)
        shapes |= linear(f"{one}.mlp.fc1", size["judge_mlp"], j) | linear(f"{one}.mlp.fc2", j, size["judge_mlp"])
    for place, (out, into) in zip((0, 2, 4), ((j // 2, j), (j // 4, j // 2), (2, j // 4)), strict=True):
        shapes |= linear(f"{image}.output_mlp.{place}", out, into)
    for name in ("output_text", *(("instruct",) if instruct else ())):
        text = f"model.{name}_score_predictor.output_mlp"
        shapes |= norm(f"{text}.0", h)
        for place, (out, into) in zip((1, 3, 5, 7), ((j, h), (j // 2, j), (j // 4, j // 2), (2, j // 4)), strict=True):
            shapes |= linear(f"{text}.{place}", out, into)
    return shapes


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def config(size: dict[str, Any] = SIZES, instruct: bool = False, **changes: Any) -> dict[str, Any]:
    """As on the hub: the fields of LLaVA 1.5, and `sparse_config` with keys that no version reads any more."""
    sparse = dict(
        use_vision_predictor=True, vision_keep_rate=0.4, use_text_predictor=True, use_output_text_predictor=True,
        output_text_keep_rate=0.5, output_text_len_for_training=50, use_instruct_predictor=instruct, instruct_keep_rate=0.7,
        instruct_len_for_training=25, sparse_layer=2, d_model=size["judge"], nhead=size["judge_heads"],
        dim_feedforward=size["judge_mlp"], num_layers=2, mask_loss_weight=100.0, maskclip=None,
        maskclip_distill_token_rate=0.2, maskclip_distill_loss_weight=1.0, similar_postive_num=5,
    )  # fmt: skip
    return {
        "_name_or_path": "liuhaotian/llava-v1.5-7b", "architectures": ["DynamicLlavaLlamaForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu", "hidden_size": size["hidden"], "image_aspect_ratio": "pad", "initializer_range": 0.02,
        "intermediate_size": size["mlp"], "max_length": 4096, "max_position_embeddings": 4096, "mm_hidden_size": size["clip"],
        "mm_patch_merge_type": "flat", "mm_projector_lr": None, "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": None,
        "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava_llama",
        "num_attention_heads": size["heads"], "num_hidden_layers": size["layers"], "num_key_value_heads": size["heads"],
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "sparse_config": sparse, "tie_word_embeddings": False, "tokenizer_padding_side": "right", "torch_dtype": "bfloat16",
        "transformers_version": "4.37.2", "use_cache": True, "use_mm_proj": True, "vocab_size": size["vocabulary"], **changes,
    }  # fmt: skip


def weights(instruct: bool = False, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=made) * (0.02 if len(shape) == 1 else 0.2) + (len(shape) == 1)).to(dtype)
        for name, shape in table(instruct=instruct).items()
    }


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "somebody unpickled me"))


def save_tokenizer(folder: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *LETTERS.replace(" ", "\u2581").replace("\n", "")]
    LlamaTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], legacy=False).save_pretrained(folder)


def write(folder: Path, tensors: dict[str, Tensor], text: dict[str, Any], shards: int = 3) -> Path:
    """A folder as the hub has it, pickled training arguments included."""
    folder.mkdir(parents=True, exist_ok=True)
    names, where = list(tensors), {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        own = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(text))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb(folder / "bomb")))
    save_tokenizer(folder)
    return folder
