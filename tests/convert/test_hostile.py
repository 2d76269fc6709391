"""Official checkpoints that are none: one line, exit code 2, nothing written, at once."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch

from foveate.convert import convert_dynamic_llava, restore_dynamic_llava
from foveate.errors import FoveateError, InputError
from tests.convert import official

NAN, INF, HUGE = float("nan"), float("inf"), 10**18
SPARSE = [
    ("vision_keep_rate", 9, "keep is a share"),
    ("vision_keep_rate", "0.5", "keep is a share"),
    ("output_text_keep_rate", [0.5], "text_keep is a share"),
    ("nhead", 0, "heads is a whole number"),
    ("nhead", 2.0, "heads is a whole number"),
    ("sparse_layer", -7, "layer is a whole number from 1"),
    ("sparse_layer", 999, "layer=999: this model has 5 decoder layers"),
    ("sparse_layer", "2", "layer is a whole number"),
    ("num_layers", -1, "blocks is a whole number"),
    ("num_layers", 10**7, "blocks is a whole number"),
    ("d_model", 10**9, "width is a whole number"),
    ("d_model", None, "width is a whole number"),
    ("dim_feedforward", {}, "feedforward is a whole number"),
]
KEYS = [
    ("num_hidden_layers", 10**6, "num_hidden_layers is a whole number from 1 to 256"),
    ("num_hidden_layers", "5", "num_hidden_layers is a whole number"),
    ("num_hidden_layers", 256, "is missing and should be"),
    ("hidden_size", -32, "hidden_size is a whole number"),
    ("hidden_size", [32], "hidden_size is a whole number"),
    ("num_attention_heads", 0, "num_attention_heads is a whole number"),
    ("num_attention_heads", 7, "do not divide"),
    ("num_key_value_heads", 3, "do not divide"),
    ("vocab_size", 10**12, "vocab_size is a whole number"),
    ("intermediate_size", 1.5, "intermediate_size is a whole number"),
    ("mm_vision_select_layer", 99, "mm_vision_select_layer is 99 in an encoder of 3 layers"),
    ("mm_vision_select_layer", -5, "mm_vision_select_layer is -5"),
    ("mm_vision_select_layer", "-2", "mm_vision_select_layer is a whole number"),
    ("rms_norm_eps", "small", "rms_norm_eps is a finite number"),
    ("rope_theta", 0, "rope_theta is a finite number above 0"),
    ("eos_token_id", [[2]], "eos_token_id is the number of a token"),
    ("hidden_act", "import os", "hidden_act is silu, gelu or relu"),
    ("sparse_config", [], "no sparse_config"),
    ("model_type", ["llava_llama"], "is of model_type"),
    ("mm_vision_tower", {"a": 1}, "mm_vision_tower="),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return official.write(tmp_path_factory.mktemp("whole") / "src", official.weights(), official.config())


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refused(source: Path, words: str) -> None:
    begin = time.process_time()
    with pytest.raises(FoveateError) as caught:
        convert_dynamic_llava(str(source), source.parent / "dst")
    message = str(caught.value)
    assert words in message and message.isprintable() and len(message) < 1_100
    assert [path.name for path in source.parent.iterdir()] == ["src"]
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(("key", "value", "words"), KEYS)
def test_a_config_of_no_llava_is_refused(source, key, value, words):
    (source / "config.json").write_text(json.dumps(official.config(**{key: value})))
    refused(source, words)


@pytest.mark.parametrize(("key", "value", "words"), SPARSE)
def test_a_config_of_no_predictors_is_refused(source, key, value, words):
    text = official.config()
    (source / "config.json").write_text(json.dumps({**text, "sparse_config": {**text["sparse_config"], key: value}}))
    refused(source, words)


@pytest.mark.parametrize("text", ["", "[]", "[" * 10_000, '{"a": NaN}', '{"a": ' + "9" * 5_000 + "}", '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_json_object_is_refused(source, text):
    (source / "config.json").write_text(text)
    refused(source, "config.json")


INDEXES = [
    ({"weight_map": {"x": "../../outside.safetensors"}}, "names ../../outside.safetensors, which is no file beside it"),
    ({"weight_map": {"x": "/etc/passwd"}}, "names /etc/passwd, which is no file beside it"),
    ({"weight_map": {"x": 3}}, "is not an index of weights"),
    ({"weight_map": ["x"]}, "is not an index of weights"),
    ({"weight_map": {"x": "model-00009-of-00009.safetensors"}}, "lacks weights of model-00009"),
    ({}, "is not an index of weights"),
    ([], "is not an index of weights"),
]


@pytest.mark.parametrize(("index", "words"), INDEXES)
def test_an_index_that_names_what_is_not_there_is_refused(source, index, words):
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(source, words)


HEADERS = [
    b"",
    b"\0" * 8,
    struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 90_000_000) + b"{}",
    struct.pack("<Q", 50_000) + b"[" * 50_000,
    struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}  ',
]


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_a_torn_or_impossible_header_is_refused(source, content):
    (source / "model-00002-of-00003.safetensors").write_bytes(content)
    refused(source, "model-00002-of-00003.safetensors")


def test_a_pipe_among_the_weights_is_not_waited_for(source):
    (source / "model-00002-of-00003.safetensors").unlink()
    os.mkfifo(source / "model-00002-of-00003.safetensors")
    refused(source, "is a pipe")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE", "vocab": 3}}'])
def test_a_broken_tokenizer_is_refused(source, text):
    (source / "tokenizer.json").write_text(text)
    refused(source, "tokenizer")


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.image_score_predictor.down_mlp.0.weight"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, value):
    weights = official.weights()
    weights[name] = torch.full_like(weights[name], value)
    source = official.write(tmp_path / "src", weights, official.config())
    refused(source, f"{name} holds numbers that are not finite")


REVERSE = [
    {"text_config": 3},
    {"vision_config": []},
    {"text_config": {"hidden_size": -1}},
    {"image_token_index": "x"},
    {"a": NAN},
]
REVERSE += [{"text_config": {"num_hidden_layers": 10**6}}, {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}]


@pytest.mark.parametrize("changes", REVERSE)
def test_a_broken_config_is_refused_on_the_way_back(whole, tmp_path, changes):
    made = convert_dynamic_llava(str(whole), tmp_path / "dst")
    file = made.folder / "config.json"
    text = json.loads(file.read_text())
    changes = {
        key: {**text[key], **value} if isinstance(value, dict) and key in text else value for key, value in changes.items()
    }
    file.write_text(json.dumps({**text, **changes}))
    begin = time.process_time()
    with pytest.raises(InputError) as caught:
        restore_dynamic_llava(str(made.folder), tmp_path / "back")
    assert str(caught.value).isprintable() and not (tmp_path / "back").exists()
    assert time.process_time() - begin < 10
