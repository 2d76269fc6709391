"""What cannot be converted is refused in one line, with exit code 2 and nothing written."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from foveate.convert import restore_dynamic_llava
from foveate.errors import InputError
from foveate.predictors import IMAGE
from tests.convert import official
from tests.convert.official import TOWER, VOCABULARY


def changed(**changes: Any) -> dict[str, Any]:
    return {**official.config(), **changes}


REFUSED = {
    "TokenPacker": changed(mm_projector_type="tokenpacker"),
    "mm_projector_type='linear'": changed(mm_projector_type="linear"),
    "no sparse_config": changed(sparse_config=None),
    "model_type 'qwen2_vl'": changed(model_type="qwen2_vl"),
    "Hugging Face LLaVA model already": changed(model_type="llava"),
    "mm_use_im_start_end=True": changed(mm_use_im_start_end=True),
    "mm_vision_select_feature='cls_patch'": changed(mm_vision_select_feature="cls_patch"),
    "image_aspect_ratio='anyres'": changed(image_aspect_ratio="anyres"),
    "rope_scaling=": changed(rope_scaling={"type": "linear", "factor": 2.0}),
    "tie_word_embeddings=True": changed(tie_word_embeddings=True),
    "mm_vision_tower='google/siglip": changed(mm_vision_tower="google/siglip-so400m-patch14-320"),
    "lm_head.weight is [318, 32] and should be [318, 48]": changed(hidden_size=48),
    "is missing and should be": changed(num_hidden_layers=6),
    "should not be there": changed(num_hidden_layers=4),
    "image_score_predictor.down_mlp.1.bias is [16]": changed(
        sparse_config={**official.config()["sparse_config"], "d_model": 32}
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_other_checkpoints_are_refused_in_one_line(command, tmp_path, plain, words):
    source = tmp_path / "src"
    source.mkdir()
    for path in plain.iterdir():
        (source / path.name).symlink_to(path)
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps(REFUSED[words]))
    refused(command, words, source, tmp_path / "dst")


def refused(command: Any, words: str, *arguments: Any) -> None:
    code, _, error = command("convert", "dynamic-llava", *map(str, arguments))
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.full
def test_broken_folders_are_refused_in_one_line(command, tmp_path, plain):
    source, target = official.write(tmp_path / "src", official.weights(), official.config()), tmp_path / "dst"
    shard = source / "model-00002-of-00003.safetensors"
    kept = shard.read_bytes()
    refused(command, "write e.g. 5GB", source, target, "--max-shard-size", "many")
    refused(command, "belongs to --reverse", source, target, "--predictors", "x")
    refused(command, "official checkpoint already", source, target, "--reverse")
    refused(command, "no folder at '/nowhere'", "/nowhere", target)
    shard.unlink()
    refused(command, "lacks weights of model-00002-of-00003.safetensors", source, target)
    shard.write_bytes(kept[:1000])
    refused(command, "download it again", source, target)
    (source / "model-00009-of-00009.safetensors").write_bytes(kept)
    shard.write_bytes(kept)
    refused(command, "keep one checkpoint per folder", source, target)
    (source / "model-00009-of-00009.safetensors").unlink()
    (source / "tokenizer.json").unlink()
    refused(command, "neither tokenizer.json nor tokenizer.model", source, target)
    (source / "tokenizer.model").write_bytes(b"x")
    (source / "config.json").write_text("{")
    refused(command, "is not JSON", source, target)
    for path in source.glob("*.safetensors"):
        path.unlink()
    (source / "config.json").write_text(json.dumps(official.config()))
    refused(command, "pickled files such as training_args.bin, which can run code", source, target)
    assert not target.exists() and not (source / "bomb").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_sentencepiece_model_without_its_packages_names_them(command, monkeypatch, tmp_path, package):
    from foveate.convert import processor

    source = official.write(tmp_path / "src", official.weights(), official.config())
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    monkeypatch.setattr(processor, "_installed", lambda name: name != package)
    refused(command, "pip install sentencepiece protobuf", source, tmp_path / "dst")


def test_the_tokenizer_must_be_the_model_s(command, tmp_path):
    tokens = VOCABULARY - 1
    weights = official.weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:tokens].clone()
    source = official.write(tmp_path / "src", weights, official.config(vocab_size=tokens))
    refused(command, f"has {VOCABULARY} tokens, its model {tokens}", source, tmp_path / "dst")


def test_integers_and_a_missing_tower_are_refused(command, tmp_path):
    weights = official.weights()
    source = official.write(
        tmp_path / "a", {**weights, "lm_head.weight": weights["lm_head.weight"].to(torch.int8)}, official.config()
    )
    refused(command, "lm_head.weight is stored as I8", source, tmp_path / "dst")
    without = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWER)}
    refused(command, "vision encoder", official.write(tmp_path / "b", without, official.config()), tmp_path / "dst")
    blind = {name: tensor for name, tensor in weights.items() if IMAGE not in name}
    refused(command, f"holds no {IMAGE}", official.write(tmp_path / "c", blind, official.config()), tmp_path / "dst")
    more = {**weights, "model.image_newline": torch.zeros(32)}
    refused(command, "holds model.image_newline", official.write(tmp_path / "d", more, official.config()), tmp_path / "dst")


def test_models_that_the_official_code_cannot_hold_are_refused(command, tmp_path, made):
    predictors = str(made.folder / "predictors")
    (tmp_path / "demo").mkdir()
    refused(command, "holds no predictors.json", made.folder, tmp_path / "dst", "--reverse", "--predictors", str(tmp_path))
    text = json.loads((made.folder / "config.json").read_text())
    for words, changes in {
        "within its vocabulary": {"image_token_index": 5},
        "qwen2_vl": {"model_type": "qwen2_vl"},
        "projector or encoder": {"projector_hidden_act": "relu"},
    }.items():
        (tmp_path / "demo" / "config.json").write_text(json.dumps({**text, **changes}))
        refused(command, words, tmp_path / "demo", tmp_path / "dst", "--reverse", "--predictors", predictors)


def test_a_hub_id_that_cannot_be_reached_is_one_line(command, tmp_path, monkeypatch):
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    refused(command, "hub id that can be reached", "Osilly/Dynamic-LLaVA-7B", tmp_path / "dst")
    assert asked and not any("bin" in pattern or pattern == "*" for pattern in asked)


def test_wrong_sizes_of_predictors_for_the_model_are_refused(tmp_path, made):
    path = tmp_path / "predictors"
    path.mkdir()
    for name in ("predictors.safetensors", "predictors.json"):
        (path / name).write_bytes((made.folder / "predictors" / name).read_bytes())
    text = json.loads((path / "predictors.json").read_text())
    (path / "predictors.json").write_text(json.dumps({**text, "layers": 7}))
    with pytest.raises(InputError, match=r"were trained for src: give --predictors"):
        restore_dynamic_llava(str(made.folder), tmp_path / "back", predictors=str(path))
