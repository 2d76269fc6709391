"""Smoke runs: raw files are whole, pages show every run and name what was not measured."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import _models as models
from benchmarks import decode, prefill, table, vision_encoder
from benchmarks._results import free_name
from benchmarks._timing import Clock, Parts, turns
from foveate.api import estimate
from foveate.engine.check import check_plan
from foveate.families import family_for
from foveate.spec import parse

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw file of each benchmark."""
    folder, threads = tmp_path_factory.mktemp("raw"), torch.get_num_threads()
    paths = {"prefill": folder / "a-prefill.json", "decode": folder / "b-decode.json"}
    common = ["run", "--smoke", "--tokens", "16", "--rounds", "2", "--most-rounds", "2"]
    prefill.main([*common, "--out", str(paths["prefill"])])
    decode.main([*common, "--batch", "2", "--new-tokens", "5", "--models", "smoke-llava", "--out", str(paths["decode"])])
    torch.set_num_threads(threads)
    return paths


@pytest.mark.full
def test_a_prefill_file_holds_every_time_and_theory(raw):
    result = json.loads(raw["prefill"].read_text())
    assert result["complete"] and result["smoke"] and result["machine"]["threads"] == 1
    assert [cell["model"] for cell in result["cells"]] == list(models.SMOKE_MODELS)
    for cell in result["cells"]:
        assert [row["plan"] for row in cell["rows"]] == ["none", *(f"fastv(layer=2, keep={k})" for k in (0.75, 0.5, 0.25, 0.1))]
        plain = cell["rows"][0]
        for row in cell["rows"]:
            for times in row["raw_ms"].values():
                assert len(times["wall"]) == len(times["cpu"]) == 2
            one = {name: times["wall"][0] for name, times in row["raw_ms"].items()}
            assert one["encoder"] > 0 and one["choosing"] < one["llm"] and one["encoder"] + one["llm"] < one["ttft"]
            assert (one["choosing"] > 0) == (row["plan"] != "none")
            assert row["peak_bytes"] > row["kv_bytes"] > 0
            assert (row["kv_bytes"] < plain["kv_bytes"]) == (row["plan"] != "none")


@pytest.mark.full
def test_theory_is_the_estimate_of_the_very_prompt(raw):
    cells = {cell["model"]: cell for cell in json.loads(raw["prefill"].read_text())["cells"]}
    config = models.SCALED["smoke-llava"](4)
    cost = estimate(config, "fastv(layer=2, keep=0.5)", [(56, 56)], text_tokens=64, max_new_tokens=1, dtype="fp32")
    row = cells["smoke-llava"]["rows"][2]
    assert row["theory"]["llm"] == pytest.approx(cost.llm_prefill_flops.ratio.plan)
    assert row["theory"]["llm_causal"] > row["theory"]["llm"]  # half of the squares is less of a saving
    for cell in cells.values():
        for plain, row in zip([cell["rows"][0]] * 5, cell["rows"], strict=True):
            config = models.prompt_for(cell["model"], 16).config
            size = (112, 112) if "qwen" in cell["model"] else (56, 56)
            cost = estimate(config, row["plan"], [size], text_tokens=64, max_new_tokens=1, dtype="fp32")
            assert (plain["kv_bytes"], row["kv_bytes"]) == (cost.kv_bytes.plain, cost.kv_bytes.plan)


def test_causal_theory_against_numbers_by_hand():
    prompt = models.prompt_for("smoke-llava", 16)
    cost = estimate(prompt.config, "fastv(layer=2, keep=0.5)", [(56, 56)], text_tokens=64, max_new_tokens=1, dtype="fp32")
    square = 2 * 2 * 32  # per pair of tokens in one layer: two products of width 32, 2 FLOPs each
    token = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    head = 2 * 32 * 8000
    plain = 4 * (80 * token + 80 * 80 * square / 2) + head
    plan = 2 * (80 * token + 80 * 80 * square / 2) + 2 * (72 * token + 72 * 72 * square / 2) + head
    assert prefill.causal_ratio(prompt, cost) == pytest.approx(plan / plain)


@pytest.mark.full
def test_a_decode_file_holds_steps_and_bytes(raw):
    result = json.loads(raw["decode"].read_text())
    (cell,) = result["cells"]
    assert (cell["batch"], result["new_tokens"]) == (2, 5)
    assert set(cell["rows"][1]["raw_ms"]) == {"ttft", "tpot", "first_half", "second_half"}
    # By hand: 4 layers, keys and values of width 32 in fp32; 64 text, 16 or 8 visual and on average 2 generated tokens.
    slot = 2 * 32 * 4
    weights = 4 * (4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 32 * 8000)
    plain, plan = (weights + 2 * slot * sum(82 - gone for gone in (0, 0, lost, lost)) for lost in (0, 8))
    assert cell["rows"][1]["theory"]["tpot"] == pytest.approx(plan / plain)
    assert cell["rows"][1]["kv_bytes"] == 2 * slot * (2 * 84 + 2 * 76)


@pytest.mark.full
def test_a_raw_file_is_never_overwritten(raw, capsys):
    before = raw["prefill"].read_bytes()
    with pytest.raises(SystemExit) as stopped:
        prefill.main(["run", "--smoke", "--tokens", "16", "--out", str(raw["prefill"])])
    assert stopped.value.code == 2 and "never overwritten" in capsys.readouterr().err
    assert raw["prefill"].read_bytes() == before


def test_names_count_on(tmp_path):
    first = free_name("prefill", "cpu", tmp_path)
    first.touch()
    assert first.name.endswith("-prefill-cpu-1.json") and free_name("prefill", "cpu", tmp_path).name.endswith("-cpu-2.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "llava-9b"], "known are"),
        (["--plans", "fastv(layer=2)"], "--plans"),
        (["--smoke", "--plans", "fastv(layer=9, keep=0.5)"], "this model has 4 decoder layers"),
        (["--tokens", "0"], "at least 1"),
        (["--smoke", "--models", "llava-1.5-7b", "--tokens", "100"], "nothing to measure"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        prefill.main(["run", *arguments, "--out", str(tmp_path / "x.json")])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_page_shows_all_runs_and_names_what_is_missing(raw, tmp_path):
    page = tmp_path / "speed.md"
    table.main([str(raw["prefill"]), str(raw["prefill"]), str(raw["decode"]), "--out", str(page)])
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| a-prefill.json |") for line in lines) == 2
    # Both copies, two models, five rows each; one decode run with four.
    assert sum(line.startswith("| a-prefill |") for line in lines) == 20
    assert sum(line.startswith("| b-decode |") for line in lines) == 4
    missing = [line for line in lines if "not measured" in line]
    usual = 2 * 4 + 4 * 3 * 2 + 2 * 2 + 4 * 3 * 2  # CPU and GPU grids of both benchmarks
    assert len(missing) == usual
    widths = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    for before, after, line in zip(widths, widths[1:], [line for line in lines if line.startswith("|")][1:], strict=False):
        assert before == after or line.startswith("| run |"), line


def test_a_page_without_runs_is_all_not_measured(capsys):
    table.main([])
    text = capsys.readouterr().out
    assert "GPU, llava-1.5-13b" in text and text.count("not measured") >= 60


@pytest.mark.full
def test_a_reason_stands_in_its_cell(raw):
    run = json.loads(raw["prefill"].read_text()) | {"file": "x.json", "device": "cuda"}
    run["skipped"] = [{"model": "llava-1.5-7b", "asked_tokens": 8192, "batch": 8, "reason": "no room"}]
    rows = table.model_table("prefill", "cuda", "llava-1.5-7b", [run]).splitlines()
    assert [line for line in rows if "not measured: no room" in line and "| 8 | 8,192 |" in line]


def test_a_file_of_something_else_is_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text('{"rows": []}')
    with pytest.raises(SystemExit) as stopped:
        table.main([str(other)])
    assert stopped.value.code == 2 and "no raw file" in capsys.readouterr().err


@pytest.mark.full
def test_the_plot_is_a_picture(raw, tmp_path):
    table.main([str(raw["prefill"]), "--out", str(tmp_path / "p.md"), "--plot", str(tmp_path / "pictures" / "p.png")])
    assert (tmp_path / "pictures" / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "](pictures/p.png)" in (tmp_path / "p.md").read_text()


@pytest.mark.parametrize("name", [*models.CPU_MODELS, *models.GPU_MODELS])
@pytest.mark.parametrize("tokens", [576, 2880])
def test_prompts_have_the_visual_tokens_that_they_say(name, tokens):
    if (name, tokens) == ("llava-onevision-7b", 576):
        with pytest.raises(models.Impossible, match="730 visual tokens"):
            models.prompt_for(name, tokens)
        return
    prompt = models.prompt_for(name, tokens)
    inputs = models.inputs_for(prompt, 2, CPU, torch.float32)
    placeholder = family_for(prompt.config).placeholder_ids(prompt.config)["image"]
    counts = (inputs["input_ids"] == placeholder).sum(1).tolist()
    assert counts == [prompt.visual_tokens] * 2
    assert inputs["input_ids"].shape[1] == prompt.visual_tokens + models.TEXT_TOKENS
    assert abs(prompt.visual_tokens - tokens) <= 0.05 * tokens
    shapes = family_for(prompt.config).media(prompt.config, inputs, {"image": sum(counts), "video": 0})["image"]
    assert sum(shape.tokens for shape in shapes) == sum(counts)


def test_more_tokens_than_positions_are_impossible():
    with pytest.raises(models.Impossible, match="4096 positions"):
        models.prompt_for("llava-1.5-7b", 8192)


@pytest.mark.parametrize("name", models.CPU_MODELS)
def test_scaled_models_have_the_parameters_that_their_names_say(name):
    config = models.prompt_for(name, 1024).config
    millions = models.weight_bytes(config, torch.float32) / 4e6
    assert millions == pytest.approx(float(name.rpartition("-")[2].removesuffix("m")), rel=0.1)


def test_turns_change_direction():
    assert list(turns(["a", "b"], 3)) == [(0, ["a", "b"]), (1, ["b", "a"]), (2, ["a", "b"])]


def test_parts_time_their_modules_and_leave_no_trace():
    class Sleeper(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    module, place = Sleeper(), type("Place", (), {"work": staticmethod(lambda: time.sleep(0.01))})
    before = place.work
    with Parts(Clock(CPU), {"slow": [module]}, {"work": ((place, "work"),)}) as parts:
        module(1), module(1), place.work()
    spent = parts.spent()
    assert spent["slow"].wall >= 40 and spent["work"].wall >= 10 and spent["slow"].cpu < spent["slow"].wall
    assert place.work is before and not module._forward_hooks and not module._forward_pre_hooks


def test_the_profile_puts_what_misses_theory_first():
    plain = {"mm": (10.0, 4), "copy": (1.0, 2)}
    plan = {"mm": (5.0, 4), "copy": (1.0, 2), "gather": (0.25, 1)}
    lines = prefill.profile_table(plain, plan, 0.5, lines=3).splitlines()
    assert lines[4].startswith("| all | 11.00 | 6.25 | 0.568 | +0.75 |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[5:]] == ["copy", "gather", "mm"]
    assert "| gather | 0.00 | 0.25 | new | +0.25 | 0 | 1 |" in lines


@pytest.mark.full
def test_the_vision_encoder_runs_and_its_page_says_what_the_file_says(tmp_path):
    out, page = tmp_path / "v.json", tmp_path / "v.md"
    vision_encoder.main(["run", "--smoke", "--rounds", "2", "--most-rounds", "2", "--out", str(out)])
    run = json.loads(out.read_text())
    (cell,) = run["cells"]
    plain, plan = cell["rows"]
    assert plan["theory"]["encoder"] < 1 and plan["summary"]["choosing"]["median_ms"] > 0
    assert plain["summary"]["choosing"]["median_ms"] == 0
    vision_encoder.main(["page", str(out), "--out", str(page)])
    text = page.read_text()
    assert f"{100 * plan['theory']['encoder']:.1f} %" in text and f"{100 * plan['summary']['encoder']['ratio']:.1f} % [" in text
    assert "GPU cells: not measured." in text


@pytest.mark.parametrize("name", ["siglip-so400m", "qwen2.5-vl-encoder"])
def test_encoders_have_the_published_shapes(name):
    config = models.prompt_for(name, vision_encoder.TOKENS[name]).config
    published = {"siglip-so400m": (1152, 4304, 27), "qwen2.5-vl-encoder": (1280, 3420, 32)}[name]
    vision = config.vision_config
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    assert (vision.hidden_size, vision.intermediate_size, depth) == published
    for plan in vision_encoder.PLANS[name]:
        check_plan(parse(plan), family_for(config), config)
