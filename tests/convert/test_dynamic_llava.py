"""Official Dynamic-LLaVA checkpoints become Hugging Face models that compute the same, and come back as they were."""

from __future__ import annotations

import json
import shlex
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.utils import logging

import foveate
from foveate.convert import convert_dynamic_llava, restore_dynamic_llava, stream
from foveate.convert.config import llava_config, predictor_config
from foveate.convert.dynamic_llava import _predictor_shapes, _shapes, _split
from foveate.convert.stream import Checkpoint, Entry
from foveate.engine.base import base_model
from foveate.families import family_for
from foveate.predictors import IMAGE, INSTRUCT, TEXT, load_predictor, read_config
from tests.convert import official
from tests.convert.official import SEVEN, SIZES, THIRTEEN, TOWER, VOCABULARY
from tests.marks import one_and_more

PATCHES = SIZES["side"] ** 2


def load(folder: Path) -> Any:
    logging.disable_progress_bar()
    try:
        model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    finally:
        logging.enable_progress_bar()
    assert not any(info.values()), info
    return model.eval()


def tensors(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def by_hand(weights: dict[str, Tensor], ids: Tensor, pixels: Tensor) -> Tensor:
    """Logits of the official parts in a row: CLIP's last layer but one, two linear layers, Llama on spliced embeddings."""
    shared = dict(hidden_size=SIZES["hidden"], intermediate_size=SIZES["mlp"], num_attention_heads=SIZES["heads"])
    llama = LlamaForCausalLM(LlamaConfig(**shared, vocab_size=VOCABULARY, num_hidden_layers=SIZES["layers"], rms_norm_eps=1e-5))
    names = llama.state_dict().keys()
    llama.load_state_dict({name: weights[name] for name in names})
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=SIZES["clip"], intermediate_size=SIZES["clip_mlp"], num_attention_heads=1, patch_size=SIZES["patch"],
            num_hidden_layers=SIZES["clip_layers"], image_size=SIZES["patch"] * SIZES["side"],
        )
    )  # fmt: skip
    tower.load_state_dict({name: weights[TOWER + name.removeprefix("vision_model.")] for name in tower.state_dict()})
    with torch.no_grad():
        seen = tower.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for place in (0, 2):
            seen = F.linear(seen, weights[f"model.mm_projector.{place}.weight"], weights[f"model.mm_projector.{place}.bias"])
            seen = F.gelu(seen) if place == 0 else seen
        is_image = ids == VOCABULARY
        embeddings = llama.model.embed_tokens(ids.masked_fill(is_image, 0))
        embeddings[is_image] = seen.flatten(0, 1)
        return llama.eval()(inputs_embeds=embeddings).logits


def test_the_model_computes_what_the_official_parts_compute(plain, made):
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 60))
    ids[:, 7 : 7 + PATCHES] = VOCABULARY
    pixels = torch.randn(2, 3, 24, 24)
    model = load(made.folder)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    expected = by_hand(official.weights(dtype=torch.float32), ids, pixels)
    torch.testing.assert_close(logits[..., :VOCABULARY], expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.1
    assert (logits[..., VOCABULARY:].amax(-1) < logits[..., :VOCABULARY].amax(-1)).all(), "ids behind the vocabulary must lose"
    head, table = model.lm_head.weight, model.get_input_embeddings().weight
    assert not table[VOCABULARY:].any()
    for row in head[VOCABULARY:]:  # so that their logit is the mean of all, never the greatest
        torch.testing.assert_close(row, head[:VOCABULARY].mean(0))
    config = model.config
    assert (config.image_token_index, config.text_config.vocab_size, config.image_seq_length) == (VOCABULARY, 320, PATCHES)
    assert model.generation_config.suppress_tokens == list(range(VOCABULARY, 320))
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")


def test_the_predictors_arrive_and_work_on_the_model(plain, made):
    model, path = load(made.folder), str(made.folder / "predictors")
    found = read_config(path)
    assert (found.base_model, found.layer, found.keep, found.text_keep, found.instruct_keep) == ("src", 2, 0.4, 0.5, None)
    base = base_model(model, family_for(model.config))
    assert found.fingerprint == pytest.approx(base.fingerprint) and len(set(found.fingerprint)) > 10
    weights = official.weights(dtype=torch.float32)
    for name in (IMAGE, TEXT):
        module = load_predictor(path, name, base, allow_mismatch=False)
        state = module.state_dict()
        assert {f"model.{name}.{key}" for key in state} == {key for key in weights if key.startswith(f"model.{name}.")}
        assert all(torch.equal(value, weights[f"model.{name}.{key}"]) for key, value in state.items())
    ids = torch.randint(3, VOCABULARY, (1, 50))
    ids[:, 7 : 7 + PATCHES] = VOCABULARY
    with foveate.attach(model, f"dynamic_llava(path='{path}')") as attachment:
        out = model.generate(
            input_ids=ids, pixel_values=torch.randn(1, 3, 24, 24), attention_mask=torch.ones_like(ids), max_new_tokens=5,
            do_sample=False,
        )  # fmt: skip
        assert [len(entry.kept_index) for entry in attachment.trace.media] == [14]
    assert int(out[:, 50:].max()) < VOCABULARY


@pytest.mark.parametrize("instruct", [False, True])
@pytest.mark.parametrize("dtype", one_and_more([torch.bfloat16, torch.float16, torch.float32]))
def test_there_and_back_is_bit_exact(tmp_path, dtype, instruct):
    weights, text = official.weights(instruct, dtype), official.config(instruct=instruct)
    source = official.write(tmp_path / "src", weights, {**text, "torch_dtype": str(dtype).removeprefix("torch.")})
    there = convert_dynamic_llava(str(source), tmp_path / "dst", most_bytes=60_000)
    assert there.predictors.instruct_keep == (0.7 if instruct else None)
    assert load(there.folder).dtype == dtype
    back = restore_dynamic_llava(str(there.folder), tmp_path / "back", most_bytes=60_000)
    found = tensors(back.folder)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor), name
    assert json.loads((back.folder / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    for folder in (there.folder, back.folder):
        largest = max(file.stat().st_size for file in folder.glob("model-*.safetensors"))
        assert largest < 60_000 + 8_000 and len(list(folder.glob("model-*.safetensors"))) > 3


def test_a_model_that_transformers_saved_again_goes_back_too(tmp_path, made):
    model = load(made.folder)
    logging.disable_progress_bar()
    model.save_pretrained(tmp_path / "again")
    logging.enable_progress_bar()
    back = restore_dynamic_llava(str(tmp_path / "again"), tmp_path / "back", predictors=str(made.folder / "predictors"))
    weights = official.weights(dtype=torch.float32)
    found = tensors(back.folder)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.full
def test_predictors_that_were_trained_here_get_an_official_config(tmp_path, made):
    """Nothing of an official config is known then."""
    path = tmp_path / "predictors"
    path.mkdir()
    for name in ("predictors.safetensors", "predictors.json"):
        (path / name).write_bytes((made.folder / "predictors" / name).read_bytes())
    text = json.loads((path / "predictors.json").read_text())
    (path / "predictors.json").write_text(json.dumps({**text, "provenance": {}, "keep": 0.3}))
    back = restore_dynamic_llava(str(made.folder), tmp_path / "back", predictors=str(path))
    written = json.loads((back.folder / "config.json").read_text())
    assert written["sparse_config"]["vision_keep_rate"] == 0.3 and written["vocab_size"] == VOCABULARY
    official.save_tokenizer(back.folder)
    again = convert_dynamic_llava(str(back.folder), tmp_path / "again")
    assert again.predictors.keep == 0.3
    before, after = tensors(made.folder), tensors(again.folder)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_one_tensor_is_in_memory_at_a_time(monkeypatch, tmp_path, plain):
    """A later tensor is asked for only when every earlier one is gone; each is read once, those of the fingerprint twice."""
    alive: list[weakref.ref[Tensor]] = []

    class Spy:
        def __init__(self, path: Path, framework: str) -> None:
            self.file = safe_open(path, framework=framework)

        def __enter__(self) -> Any:
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.opened, name)

        def get_tensor(self, name: str) -> Tensor:
            assert all(reference() is None for reference in alive), f"{name} is read while another is held"
            tensor = self.opened.get_tensor(name)
            alive.append(weakref.ref(tensor))
            return tensor

    monkeypatch.setattr(stream, "safe_open", Spy)
    made = convert_dynamic_llava(str(plain), tmp_path / "dst")
    count = len(official.table())
    assert len(alive) == count + 2
    alive.clear()
    restore_dynamic_llava(str(made.folder), tmp_path / "back")
    assert len(alive) == count


def test_nothing_pickled_is_opened(plain, made):
    assert (plain / "training_args.bin").is_file()
    assert not (plain / "bomb").exists()
    assert not list(made.folder.rglob("*.bin"))


@pytest.mark.parametrize(
    ("size", "parameters", "image", "text"),
    [(SEVEN, 7_073_745_156, 8_572_034, 2_270_338), (THIRTEEN, 13_362_734_340, 9_098_370, 2_796_674)],
)
def test_names_and_shapes_of_7b_and_13b(size, parameters, image, text):
    """Every official name has its place; sizes are those of the published files, 14.15 and 26.73 GB in 16 bit."""
    entries = {name: Entry(name, "F16", shape) for name, shape in official.table(size, instruct=True).items()}
    counts = {
        part: sum(entry.size_bytes // 2 for name, entry in entries.items() if name.startswith(part))
        for part in ("", f"model.{IMAGE}", f"model.{TEXT}", f"model.{INSTRUCT}")
    }
    assert [*counts.values()][1:] == [image, text, text]
    assert counts[""] - text == parameters  # the published ones have no predictor for instructions
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.entries = entries
    weights, predictors = _split(checkpoint, "x")
    assert len(weights) + len(predictors) == len(entries)
    config = llava_config(official.config(size), entries)
    assert config.text_config.vocab_size == 32064 and config.image_token_index == 32000
    vision = config.vision_config
    assert (vision.num_attention_heads, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (16, 24, 336, 14)
    grown = {name: (32064, shape[1]) if shape[0] == 32064 else shape for name, shape in _shapes(config).items()}
    for name, shape in grown.items():
        old = entries[weights[name]].shape
        assert shape == ((32064, old[1]) if old[0] == 32000 else old), name
    assert grown.keys() == weights.keys()
    described = predictor_config(official.config(size), {IMAGE, TEXT, INSTRUCT}, "x", ())
    assert _predictor_shapes(described) == {name: entries[old].shape for name, old in predictors.items()}


def test_buffers_of_older_versions_are_left_out(tmp_path):
    extra = {
        f"{TOWER}embeddings.position_ids": torch.zeros(1, 37),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    source = official.write(tmp_path / "src", {**official.weights(), **extra}, official.config())
    load(convert_dynamic_llava(str(source), tmp_path / "dst").folder)


@pytest.mark.full
def test_the_command_says_how_to_go_on(command, tmp_path, plain):
    code, text, error = command("convert", "dynamic-llava", str(plain), str(tmp_path / "dst"))
    assert code == 0, error
    assert f"foveate.attach(model, \"dynamic_llava(path='{tmp_path / 'dst'}/predictors')\")" in text
    (line,) = [line for line in text.splitlines() if line.startswith("foveate run")]
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20), (200, 30, 30)).save(photo)
    words = [str(photo) if word == "photo.jpg" else word for word in shlex.split(line)[1:]]
    code, text, error = command(*words, "--new-tokens", "4", "--json")
    assert code == 0, error
    assert "dynamic_image" in text
    code, text, error = command("convert", "dynamic-llava", "--reverse", str(tmp_path / "dst"), str(tmp_path / "back"))
    assert code == 0, error
    assert "copy Vicuna's tokenizer.model" in text
