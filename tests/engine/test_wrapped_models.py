"""Models as people hold them: with LoRA adapters of PEFT, and spread over devices and disk by accelerate."""

from __future__ import annotations

import re

import accelerate
import peft
import pytest
import torch

import foveate
from foveate import families
from foveate.errors import AttachError
from tests import tiny
from tests.spies import real, settled_state, state_of

# PEFT asks for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
FASTV = "fastv(layer=2, keep=0.4)"
LOGITS = 2e-4  # fp32 sums in another order, logits of size 10
every_family = pytest.mark.parametrize("family", tiny.ALL_FAMILIES)


def prompts(family: str) -> dict[str, torch.Tensor]:
    maker = tiny.Maker(family)
    return maker.inputs(tiny.ragged_rows(maker, 3))


def with_lora(family: str) -> tuple[peft.PeftModel, torch.nn.Module]:
    """A model with random LoRA adapters, and the same weights merged."""
    models = []
    for _ in range(2):
        model = tiny.tiny_model(family)
        torch.manual_seed(3)
        targets = re.escape(families.get(family).decoder) + r"\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        models.append(peft.get_peft_model(model, config).eval())
    return models[0], models[1].merge_and_unload()


@pytest.mark.pairs
@every_family
def test_a_model_with_adapters_answers_as_the_merged_one(family):
    adapted, merged = with_lora(family)
    inputs = prompts(family)
    plain = tiny.generate(merged, inputs)
    with foveate.attach(merged, FASTV):
        expected = tiny.generate(merged, inputs)
    before = settled_state(adapted, inputs)
    with foveate.attach(adapted, FASTV) as attachment:
        assert attachment.model is adapted.get_base_model()
        assert tiny.greatest_difference(tiny.generate(adapted, inputs), expected) < LOGITS
        with adapted.disable_adapter():
            without = tiny.generate(adapted, inputs)
        with pytest.raises(AttachError, match="already carries"):
            foveate.attach(adapted, FASTV)
    assert tiny.greatest_difference(without, expected) > 100 * LOGITS
    assert tiny.greatest_difference(expected, plain) > 100 * LOGITS
    assert state_of(adapted)["hooks"] == before["hooks"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_adapters_train_under_a_plan(family):
    adapted, _ = with_lora(family)
    inputs = prompts(family)
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] >= 85) | ~real(inputs), -100)
    with foveate.attach(adapted, FASTV):
        adapted(**inputs, labels=labels, use_cache=False).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert trained and all("lora" in name for name in trained)
    # The adapters of every layer learn: those below the cut from all tokens, those above from the survivors.
    assert {name.split(".layers.")[1].split(".")[0] for name in trained if "language_model" in name} >= set("01234")


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")
@pytest.mark.pairs
@every_family
def test_a_model_that_lies_on_disk_answers_as_one_in_memory(family, tmp_path):
    inputs = prompts(family)
    model = tiny.tiny_model(family)
    with foveate.attach(model, FASTV):
        expected = tiny.generate(model, inputs)
    spread = tiny.tiny_model(family)
    # One decoder layer behind the cut on disk, the rest on the CPU: its weights come and go around every call.
    path = next(name for name, module in spread.named_modules() if module is tiny.decoder_of(spread).layers[3])
    parts = {name: "cpu" for name, _ in spread.named_modules() if name and not path.startswith(name)}
    parts = {name: where for name, where in parts.items() if not name.startswith(path)} | {path: "disk"}
    # Parameters of modules that are spread themselves, such as the embedding of a newline token, have places of their own.
    places = tuple(f"{name}." for name in parts)
    parts |= {name: "cpu" for name, _ in spread.named_parameters() if not name.startswith(places)}
    accelerate.dispatch_model(spread, parts, main_device="cpu", offload_dir=str(tmp_path))
    with foveate.attach(spread, FASTV):
        answer = tiny.generate(spread, inputs)
    assert tiny.greatest_difference(answer, expected) < LOGITS
