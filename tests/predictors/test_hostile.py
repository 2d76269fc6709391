"""Predictors that are none: refused in one line, before anything of the size that they claim is made."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.engine.base import base_model
from foveate.errors import InputError
from foveate.families import family_for
from foveate.predictors.files import CONFIG, IMAGE, TEXT, WEIGHTS, load_predictor, read_config
from tests import tiny
from tests.trained import random_predictors

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def base():
    model = tiny.tiny_model("llava")
    return base_model(model, family_for(model.config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_predictors(tmp_path, tiny.tiny_model("llava"))
    return tmp_path


def refused(folder: Path, base: Any, words: str, name: str = IMAGE) -> None:
    with pytest.raises(InputError) as caught:
        load_predictor(str(folder), name, base, False)
    message = str(caught.value)
    assert words in message and message.isprintable() and len(message) < 1_100


def changed(folder: Path, **values: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


FIELDS = [
    ("blocks", -1, "blocks is a whole number from 0 to 64, not -1"),
    ("blocks", 10**7, "not 10000000"),
    ("blocks", 2.0, "blocks is a whole number"),
    ("blocks", True, "not True"),
    ("blocks", None, "not None"),
    ("width", 10**9, "width is a whole number from 4 to 16,384"),
    ("width", 18, "width 18 must be a multiple of heads 2 and of 4"),
    ("heads", 0, "heads is a whole number"),
    ("feedforward", "32", "feedforward is a whole number"),
    ("hidden_size", [32], "hidden_size is a whole number from 1 to 131,072, not a list"),
    ("layers", 10**6, "layers is a whole number"),
    ("layer", 0, "layer is a whole number from 1"),
    ("layer", -7, "layer is a whole number"),
    ("layer", 999, "layer=999: this model has"),
    ("keep", 9, "keep is a share above 0 and up to 1, not 9"),
    ("keep", None, "keep is a share"),
    ("keep", "0.5", "keep is a share"),
    ("keep", True, "keep is a share"),
    ("text_keep", 0, "text_keep is a share"),
    ("instruct_keep", -0.5, "instruct_keep is a share"),
    ("fingerprint", "abc", "fingerprint is a list of finite numbers"),
    ("fingerprint", ["a"], "fingerprint is a list of finite numbers"),
    ("fingerprint", [1e300] * 16, "fingerprint is a list of finite numbers"),
    ("turn", "USER:", "turn is a list of at most 64 token ids"),
    ("turn", [1.5], "turn is a list of at most 64 token ids"),
    ("turn", [-1], "turn is a list of at most 64 token ids"),
    ("turn", [1] * 65, "turn is a list of at most 64 token ids"),
    ("fingerprint", [], "whose weights are not those of this model"),
    ("fingerprint", [0.5] * 16, "whose weights are not those of this model"),
    ("base_model", 3, "base_model is a text, not int"),
    ("model_type", ["llava"], "model_type is a text, not list"),
    ("provenance", [], "provenance is an object, not list"),
    ("format", True, "this version reads predictors of format 1"),
]


@pytest.mark.parametrize(("name", "value", "words"), FIELDS)
def test_a_field_that_no_predictors_have_is_refused(folder, base, name, value, words):
    changed(folder, **{name: value})
    refused(folder, base, words)


@pytest.mark.parametrize(
    "text",
    # the last is larger than any config
    [
        "",
        "[" * 10_000,
        "{" * 10_000,
        "[]",
        "3",
        '{"format": 1, "format": 1}',
        '{"format": ' + "9" * 5_000 + "}",
        '{"a": NaN}',
        '{"a": "' + "x" * 5 * 2**20 + '"}',
    ],
    ids=range(9),
)
def test_a_config_that_is_no_json_object_is_refused(folder, base, text):
    (folder / CONFIG).write_text(text)
    refused(folder, base, CONFIG)


TENSORS = [
    (lambda tensor: torch.full_like(tensor, NAN), "numbers that are not finite"),
    (lambda tensor: torch.full_like(tensor, INF), "numbers that are not finite"),
    (lambda tensor: tensor.to(torch.int32), "is stored as I32; predictors are floating point numbers"),
    (lambda tensor: tensor.bool(), "is stored as BOOL"),
    (lambda tensor: tensor[None].contiguous(), "another shape than predictors.json says"),
    (lambda tensor: tensor[:0].contiguous(), "another shape than predictors.json says"),
]


@pytest.mark.parametrize(("change", "words"), TENSORS)
def test_a_tensor_that_no_predictor_has_is_refused(folder, base, change, words):
    tensors = load_file(folder / WEIGHTS)
    key = f"{IMAGE}.down_mlp.1.weight"
    save_file({**tensors, key: change(tensors[key])}, folder / WEIGHTS)
    refused(folder, base, words)


@pytest.mark.parametrize("name", [IMAGE, TEXT])
def test_a_tensor_too_many_or_too_few_is_refused(folder, base, name):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, f"{IMAGE}.extra": torch.zeros(2)}, folder / WEIGHTS)
    refused(folder, base, "extra should not be there", name)
    del tensors[f"{TEXT}.output_mlp.0.bias"]
    save_file(tensors, folder / WEIGHTS)
    refused(folder, base, "output_mlp.0.bias is missing", name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 50_000) + b"[" * 50_000,
    ],
    ids=range(7),
)
def test_a_file_that_is_no_safetensors_is_refused(folder, base, content):
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, base, WEIGHTS)


def test_a_torn_file_is_refused(folder, base):
    whole = (folder / WEIGHTS).read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:length])
        refused(folder, base, "cannot be read")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_pipe_is_not_waited_for(folder, base, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, base, name)


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "~nosuchuser/x", "./" + "y/" * 3_000])
def test_a_path_that_no_system_has_is_refused(path):
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).isprintable()


def test_what_a_file_claims_is_not_made_before_it_is_found_there(folder, base):
    changed(folder, blocks=64, width=2**14, heads=2, feedforward=2**17)
    begin = time.process_time()
    refused(folder, base, "another shape")  # made, they would be terabytes
    assert time.process_time() - begin < 2
