"""foveate plan: JSON keys, grids, comparisons, refusals."""

from __future__ import annotations

import json

import pytest

PROMISED_KEYS = (
    "visual_tokens_per_layer",
    "prefill_flops",
    "prefill_flops_ratio",
    "decode_flops",
    "kv_bytes",
    "kv_bytes_ratio",
)


@pytest.mark.parametrize("model", ["llava-1.5-7b", "llava-1.5-13b", "qwen2.5-vl-7b"])
def test_json_has_the_promised_keys_each_with_plain_and_plan(command, model):
    code, out, _ = command("plan", "fastv(layer=2, keep=0.5)", "--model", model, "--json")
    assert code == 0
    data = json.loads(out)
    for key in PROMISED_KEYS:
        assert set(data[key]) == {"plain", "plan"}
    assert data["prefill_flops"]["plan"] < data["prefill_flops"]["plain"]
    assert data["kv_bytes_ratio"]["plan"] == data["kv_bytes"]["plan"] / data["kv_bytes"]["plain"]


def test_json_says_what_the_vision_encoder_saves(command):
    plan = "partition(site=vision, layer=6, keep=288)"
    _, out, _ = command("plan", plan, "--model", "llava-1.5-7b", "--json")
    data = json.loads(out)
    assert data["encoder_tokens_per_layer"] == {"plain": [577] * 24, "plan": [577] * 6 + [289] * 18}
    assert data["encoder_flops_ratio"]["plan"] == data["encoder_flops"]["plan"] / data["encoder_flops"]["plain"] < 0.7
    assert data["prefill_flops"]["plan"] == data["encoder_flops"]["plan"] + data["llm_prefill_flops"]["plan"]
    assert data["visual_tokens_per_layer"]["plan"] == [288] * 32
    _, out, _ = command("plan", plan, "--model", "llava-1.5-7b")
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "361.0" in rows["tokens in the vision encoder, mean"]
    assert f"{100 * data['encoder_flops_ratio']['plan']:.1f} %" in rows["vision encoder and projector"]


@pytest.mark.parametrize(("keep", "warned"), [("0.45", True), ("0.5", False)])
def test_a_plan_that_halves_the_encoder_is_told_what_it_loses(command, keep, warned):
    _, out, _ = command("plan", f"partition(site=vision, layer=6, keep={keep})", "--model", "llava-1.5-7b")
    assert ("dense text and charts lose most" in " ".join(out.split())) is warned
    _, out, _ = command("plan", f"fastv(layer=2, keep={keep})", "--model", "llava-1.5-7b")
    assert "dense text" not in out


def test_the_counts_of_illava_s_authors(command):
    _, out, _ = command(
        "plan", "illava(preset=onevision-image)", "--model", "llava-onevision-7b", "--convention", "illava-v1", "--json"
    )
    data = json.loads(out)
    assert data["visual_tokens_per_layer"]["plan"] == [2337] * 8 + [1636] * 20
    assert data["encoder_tokens_per_layer"]["plan"] == [7 * n for n in [729] * 6 + [637, 545, 453] + [361] * 17]


def test_the_papers_headline_number(command):
    # FastV, Table 1: 13B, K=2, R=50 %, 36 system and 576 visual tokens: 84.6 G of 154.6 G per layer, 55 %.
    arguments = ("--model", "llava-1.5-13b", "--text-tokens", "36", "--visual-tokens", "576", "--convention", "fastv")
    _, out, _ = command("plan", "fastv(layer=2, keep=0.5)", *arguments, "--json")
    data = json.loads(out)
    assert round(data["prefill_flops"]["plain"] / 1e9, 1) == 154.6
    assert round(data["prefill_flops"]["plan"] / 1e9, 1) == 84.6


def test_the_default_plan_fits_every_preset(command):
    for model in ("llava-1.5-7b", "qwen2.5-vl-7b", "gemma-3-12b"):
        code, out, _ = command("plan", "--model", model, "--json")
        assert code == 0
        assert json.loads(out)["plan"].startswith("fastv(layer=")


def test_tables_grid_and_a_second_model(command):
    code, out, _ = command("plan", "--model", "llava-1.5-7b", "--grid", "--vs", "llava-1.5-13b")
    assert code == 0
    assert "576 -> 288 visual tokens from layer 2" in out
    assert "pre_llm" in out
    assert "llava-1.5-13b" in out
    _, out, _ = command("plan", "--model", "llava-1.5-7b", "--grid", "--vs", "llava-1.5-13b", "--json")
    data = json.loads(out)
    assert data["vs"]["model"] == "llava-1.5-13b"
    row = data["grid"]["llm_prefill_flops_ratio"][data["grid"]["layers"].index(2)]
    assert row == sorted(row, reverse=True)


def test_image_sizes_decide_qwens_tokens(command):
    _, out, _ = command("plan", "none", "--model", "qwen2.5-vl-7b", "--images", "1280x720,56x56", "--json")
    assert json.loads(out)["visual_tokens_per_layer"]["plain"][0] == 1196 + 4
    _, out, _ = command("plan", "none", "--model", "qwen2.5-vl-7b", "--images", "640x360", "--frames", "8", "--json")
    assert json.loads(out)["visual_tokens_per_layer"]["plain"][0] == 4 * 23 * 13


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "lava-1.5-7b"), "Did you mean 'llava-1.5-7b'"),
        (("--images", "10by20"), "WIDTHxHEIGHT"),
        (("--images", "0x20"), "at least 1"),
        (("--images", "20x20", "--visual-tokens", "5"), "not both"),
        (("--convention", "exct"), "exact"),
        (("--dtype", "bf17"), "bf16"),
        (("--frames", "8"), "frame size"),
        (("--frames", "8", "--images", "64x64"), "no video"),
        (("fastv(layer=2, keep=0.5)", "--model", "gemma-3-12b"), "smallest valid layer is 6"),
        (("fastv(layer=40, keep=0.5)",), "32 decoder layers"),
        (("fastv(layer=2",), "expected ')'"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(command, arguments, says):
    code, out, err = command("plan", *arguments)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not out
