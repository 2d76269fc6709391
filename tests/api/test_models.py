"""Model folders are read whole, as safetensors and without code of theirs, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.api import resolve_config
from foveate.api.models import load_pretrained
from foveate.demo.loading import MODEL_FOLDER, load_demo
from foveate.errors import FoveateError, InputError, UnsupportedModel
from tests.marks import one_and_more


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MODEL_FOLDER, tmp_path / "model")
    return tmp_path / "model"


def edited(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        for place, value in changes.items():
            *path, key = place.split("__")
            inner = config
            for name in path:
                inner = inner[name]
            inner[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def weights(change):
    def rewrite(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def indexed(listed):
    def change(folder):
        os.rename(folder / "model.safetensors", folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))

    return change


def piped(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def some_key(tensors):
    return sorted(tensors)[0]


BROKEN = {
    "pickle": (pickled, "pickle"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights"),
    "empty weights": (written("model.safetensors", b""), "model"),
    "torn weights": (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "model"),
    "a tensor is missing": (weights(lambda tensors: tensors.pop(some_key(tensors))), "random weights"),
    "another shape": (weights(lambda tensors: tensors.update({some_key(tensors): torch.zeros(3, 5)})), "model"),
    "NaN": (weights(lambda tensors: tensors[some_key(tensors)].view(-1)[:1].fill_(float("nan"))), "NaN"),
    "infinity": (weights(lambda tensors: tensors[some_key(tensors)].view(-1)[:1].fill_(float("inf"))), "NaN or infinity"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config"),
    "config is no JSON": (written("config.json", b"{"), "not JSON"),
    "config is a list": (written("config.json", b"[]"), "config"),
    "config is deep": (written("config.json", b"[" * 10_000), "deep"),
    "config is a pipe": (piped("config.json"), "a pipe"),
    "config of nothing": (written("config.json", b"{}"), "config"),
    "unknown type": (edited(model_type="nonsense"), "config"),
    "type is a number": (edited(model_type=5), "config"),
    "a million layers": (edited(text_config__num_hidden_layers=1_000_000), "num_hidden_layers=1000000"),
    "negative layers": (edited(text_config__num_hidden_layers=-3), "num_hidden_layers=-3"),
    "negative width": (edited(text_config__hidden_size=-64), "config"),
    "no heads": (edited(text_config__num_attention_heads=0), "config"),
    "a huge width": (edited(text_config__hidden_size=10**18), "config"),
    "a huge model": (edited(text_config__intermediate_size=9_000_000), "parameters"),
    "width is text": (edited(text_config__hidden_size="wide"), "config"),
    "no patches": (edited(vision_config__patch_size=0), "patch_size=0"),
    "text config is text": (edited(text_config="text"), "config"),
    "tokenizer is no JSON": (written("tokenizer.json", b"{"), "processor"),
    "tokenizer is gone": (lambda folder: (folder / "tokenizer.json").unlink(), "processor"),
    "tokenizer is deep": (written("tokenizer_config.json", b"[" * 100_000), "processor"),
    "processor is gone": (lambda folder: (folder / "processor_config.json").unlink(), "processor"),
    "processor is a list": (written("processor_config.json", b"[]"), "processor"),
    "index without a map": (indexed({}), "weight_map"),
    "index is a list": (indexed([]), "weight_map"),
    "index names a pickle": (indexed({"weight_map": {"a": "evil.bin"}}), "only safetensors"),
    "index leads away": (indexed({"weight_map": {"a": "../part.safetensors"}}), "only safetensors"),
    "index names nothing": (indexed({"weight_map": {"a": "none.safetensors"}}), "lacks none.safetensors"),
    "pickled adapter": (written("adapter_config.json", b"{}"), "adapter_model.safetensors"),
    "code of its own": (edited(auto_map={"AutoConfig": "evil.Config"}, model_type="evil"), "config"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("load", [lambda folder: load_pretrained(str(folder)), load_demo], ids=["load_pretrained", "load_demo"])
@pytest.mark.parametrize("name", one_and_more(BROKEN, 9))
def test_a_broken_folder_is_one_line(folder, name, load):
    breaks, says = BROKEN[name]
    breaks(folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(FoveateError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert says in str(error.value) or "there are no demo weights" in str(error.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "name", [name for name in BROKEN if "config" in name or BROKEN[name][0].__qualname__.startswith("edited")]
)
def test_a_broken_config_is_one_line_without_weights(folder, name):
    if name == "a huge model":
        return  # a config alone may describe one
    BROKEN[name][0](folder)
    with pytest.raises(FoveateError) as error:
        resolve_config(folder)
    assert "\n" not in str(error.value)


def test_code_of_a_model_runs_only_if_it_is_asked_for(folder, monkeypatch):
    edited(auto_map={"AutoConfig": "own.Config"}, model_type="own")(folder)
    own = f"open({str(folder / 'ran')!r}, 'w').close()\nfrom transformers import LlavaConfig\n"
    (folder / "own.py").write_text(own + "class Config(LlavaConfig):\n    model_type = 'own'\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    with pytest.raises(InputError):
        load_pretrained(str(folder))
    assert not (folder / "ran").exists()
    with pytest.raises(UnsupportedModel):
        resolve_config(folder, trust_remote_code=True)
    assert (folder / "ran").exists()


def test_a_whole_folder_is_read(folder):
    model, processor = load_pretrained(str(folder), dtype=torch.float32)
    shipped, _ = load_demo()
    assert not model.training and processor.tokenizer is not None
    for (name, one), (_, other) in zip(model.named_parameters(), shipped.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "none", "x" * 300, "file/x", "a\0b"):
        with pytest.raises(FoveateError) as error:
            load_pretrained(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_name_that_begins_as_a_local_folder_is_not_sought_in_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(FoveateError, match="no model at 'runs/demo'"):
        load_pretrained("runs/demo")
