"""foveate eval generation: files and the demo, tables and JSON, and one clear line for everything that cannot work."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from foveate.cli import loading
from foveate.demo.packing import Packer
from foveate.errors import InputError
from tests.cli.test_run import _is_one_line

GATE = "stride_gate(layer=2, keep=0.5)"


@pytest.fixture
def file(tmp_path, picture):
    path = tmp_path / "data.jsonl"
    line = {"image": "picture.png", "question": "what is it?", "answer": "a large red circle at the top."}
    pair = {"image": ["picture.png", "picture.png"], "question": "same?", "answer": "yes, both are the same."}
    path.write_text("\n".join(map(json.dumps, [line, pair, line])))
    return str(path)


def run(command, model_folder, *arguments):
    return command("eval", "generation", *arguments, "--model", model_folder)


def test_a_file_is_read_under_every_plan(command, model_folder, file, tmp_path):
    out = tmp_path / "scores.json"
    arguments = (file, "--plan", GATE, "--plan", "fastv(layer=2, keep=0.5)", "--new-tokens", "5")
    code, text, _ = run(command, model_folder, *arguments, "--out", str(out))
    assert code == 0
    assert "plain" in text and "3 samples" in text and "PPL" in text and "ROUGE-L" in text
    result = json.loads(out.read_text())
    assert [row["plan"] for row in result["rows"]] == ["none", GATE, "fastv(layer=2, keep=0.5)"]
    assert result["samples"] == 3 and result["overlap_score"] == "rouge_l"
    for row in result["rows"]:
        assert f"{row['perplexity']['mean']:.3f}" in text
        own = result["scores"][row["plan"]]
        assert [one["name"] for one in own] == ["line 1", "line 2", "line 3"]
        assert row["perplexity"]["mean"] == pytest.approx(sum(one["perplexity"] for one in own) / 3)
    code, printed, _ = run(command, model_folder, *arguments, "--json")
    assert code == 0 and json.loads(printed)["rows"] == result["rows"]


def test_token_by_token_gives_the_same_and_nothing_need_be_generated(command, model_folder, file):
    options = (file, "--samples", "2", "--plan", GATE, "--no-generate", "--json")
    results = [json.loads(run(command, model_folder, *options, *more)[1]) for more in ((), ("--step-by-step",))]
    for one, other in zip(results[0]["rows"], results[1]["rows"], strict=True):
        assert one["perplexity"]["mean"] == pytest.approx(other["perplexity"]["mean"], rel=1e-4)
        assert one["overlap"] is None and one["kv_bytes"] == other["kv_bytes"]
    assert results[0]["overlap_score"] is None and results[0]["samples"] == 2


def test_the_demo_model_knows_its_captions(command):
    code, text, _ = command("eval", "generation", "--samples", "3", "--plan", GATE, "--no-generate", "--json")
    assert code == 0
    result = json.loads(text)
    plain, gated = result["rows"]
    assert 1 < plain["perplexity"]["mean"] < 1.5  # a wrong prompt or answer would be in the hundreds
    assert gated["output_tokens"][1] < 0.6 * gated["output_tokens"][0]
    assert result["source"] == "demo, held-out caption"


def test_an_answer_is_read_as_it_was_trained():
    model, processor = loading.load_model(None)
    picture = Image.new("RGB", (96, 96))
    inputs, ids = loading.answered_prompt(model, processor, [picture], "what do you see?", "a sign.")
    packer = Packer(processor.tokenizer)
    assert ids.tolist() == [*packer._encode("a sign."), packer.end_id]
    plain = loading.prompt_inputs(model, processor, [picture], "what do you see?")
    assert all(torch.equal(inputs[name], plain[name]) for name in plain)


def test_templates_without_an_end_get_one_and_with_more_behind_it_are_cut():
    model, processor = loading.load_model(None)
    picture, template = Image.new("RGB", (96, 96)), processor.chat_template
    _, expected = loading.answered_prompt(model, processor, [picture], "what?", "a sign.")
    for change in ("", "{{ '<|end|>' }}{{ ' and more' }}"):
        processor.chat_template = template.replace("{{ '<|end|>' }}", change)
        _, ids = loading.answered_prompt(model, processor, [picture], "what?", "a sign.")
        assert torch.equal(ids, expected)
    processor.chat_template = template.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}{{ 'x' }}")
    with pytest.raises(InputError, match="does not continue a prompt"):
        loading.answered_prompt(model, processor, [picture], "what?", "a sign.")
    processor.chat_template = template.replace("{{ '<|end|>' }}", "")
    processor.tokenizer.eos_token = None
    mute = SimpleNamespace(device=model.device, dtype=model.dtype, generation_config=SimpleNamespace(eos_token_id=None))
    with pytest.raises(InputError, match="names an end token"):
        loading.answered_prompt(mute, processor, [picture], "what?", "a sign.")


def test_bad_input_gives_one_line_and_writes_nothing(command, model_folder, file, tmp_path):
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.json"
    bad.write_text('{"image": "picture.png", "question": "q"}\n')
    cases = [
        ((str(tmp_path / "none.jsonl"),), "cannot read"),
        ((str(bad),), "line 1: answer must be text"),
        ((file, "--plan", "fastv(layer=2)"), "keep"),
        ((file, "--plan", "random_gate(layer=99, keep=0.5)"), "decoder layers"),
        ((file, "--task", "poem"), "--task poem"),
        ((file, "--out", str(tmp_path)), "name a file"),
        ((file, "--samples", "0"), "--samples"),
    ]
    for arguments, says in cases:
        more = () if "--out" in arguments else ("--out", str(out))
        code, text, err = run(command, model_folder, *arguments, *more)
        _is_one_line(code, text, err, says)
        assert not out.exists()
