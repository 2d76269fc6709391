"""foveate run: answers, comparisons, and one clear line for everything that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image


def test_run_streams_an_answer_and_prints_one_table(command, model_folder, picture):
    code, out, _ = command("run", picture, "what is this?", "--model", model_folder, "--new-tokens", "5")
    assert code == 0
    assert "fastv(layer=2, keep=0.5)" in out.replace("\n", " ")
    assert "144 -> 72" in out


def test_compare_puts_plain_and_controls_beside_the_plan(command, model_folder, picture):
    plan = "fastv(layer=3, keep=0.25)"
    code, out, _ = command(
        "run", picture, "what is this?", "--model", model_folder, "--plan", plan, "--compare", "--new-tokens", "4", "--json"
    )
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["plan"] for row in rows] == [
        "none",
        "fastv(layer=3, keep=0.25)",
        "random(layer=3, keep=0.25)",
        "uniform(layer=3, keep=0.25)",
        "none",
    ]
    assert rows[-1]["name"].startswith("downsample")
    assert rows[0]["visual_tokens"] == rows[0]["kept_tokens"] == 144
    assert rows[1]["kept_tokens"] == 36
    assert rows[0]["loyalty"] == 1.0
    assert rows[1]["kv_bytes"] < rows[0]["kv_bytes"]
    assert rows[1]["llm_prefill_flops_ratio"] < 1
    assert all(row["ttft_ms"] > 0 for row in rows)


def test_a_budget_of_visual_tokens_that_no_size_meets_is_refused(command, model_folder, picture):
    asked = ("run", picture, "what?", "--model", model_folder, "--new-tokens", "2", "--max-visual-tokens")
    code, _, err = command(*asked, "143")
    assert code == 2
    assert "makes at least 144 visual tokens" in " ".join(err.split())
    assert command(*asked, "144")[0] == 0


@pytest.mark.full
@pytest.mark.pairs
@pytest.mark.parametrize("compared", [[], ["--compare"]])
@pytest.mark.parametrize(("keep", "warned"), [("0.25", True), ("0.5", False)])
def test_a_plan_that_halves_the_encoder_is_told_what_it_loses(command, model_folder, picture, keep, warned, compared):
    plan = f"partition(site=vision, layer=2, keep={keep})"
    code, out, _ = command("run", picture, "what?", "--model", model_folder, "--plan", plan, "--new-tokens", "2", *compared)
    assert code == 0
    assert ("dense text and charts lose most" in " ".join(out.split())) is warned


@pytest.mark.full
def test_a_gate_s_row_says_what_lasts_and_what_is_still_held(command, model_folder, picture):
    options = (
        picture,
        "what is this?",
        "--model",
        model_folder,
        "--plan",
        "stride_gate(layer=2, keep=0.5)",
        "--new-tokens",
        "9",
    )
    code, out, _ = command("run", *options, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and row["kv_bytes"] < row["kv_bytes_held"]
    code, out, _ = command("run", *options)
    assert code == 0 and "held)" in out
    lasting, held = (f"{row[name] / 2**20:.1f} MiB" for name in ("kv_bytes", "kv_bytes_held"))
    assert f" {lasting} " in out and f"({held} held)" in out
    _, out, _ = command("run", *options, "--plan", "fastv(layer=2, keep=0.5)")
    assert "held)" not in out


def test_several_pictures(command, model_folder, picture):
    code, out, _ = command("run", picture, picture, "same?", "--model", model_folder, "--new-tokens", "2", "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["visual_tokens"] == 288


def test_plain_model_by_name(command, model_folder, picture):
    code, out, _ = command("run", picture, "what?", "--model", model_folder, "--plan", "none", "--new-tokens", "2", "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["kept_tokens"] == 144


BAD_PLANS = {
    "fastv(layer=2, keep=0)": "at least 1",
    "fastv(layer=2, keep=1)": "100%",
    "fastv(layer=2, keep=1.5)": "ratio is at most 1",
    "fastv(layer=2, keep=-1)": "more than 0",
    "fastv(layer=2, keep=nan)": "0.5",
    "fastv(layer=2, r=.5)": "write keep=0.5",
    "fastv(layer=0, keep=.5)": "pre_llm",
    "fastv(layer=99, keep=.5)": "8 decoder layers",
    "fatsv(layer=2, keep=.5)": "Did you mean 'fastv'",
}


@pytest.mark.parametrize(("plan", "says"), BAD_PLANS.items())
def test_a_bad_plan_gives_one_line_and_code_2(command, model_folder, picture, plan, says):
    code, out, err = command("run", picture, "what?", "--model", model_folder, "--plan", plan)
    _is_one_line(code, out, err, says)


def _is_one_line(code: int, out: str, err: str, says: str) -> None:
    assert code == 2
    assert says in err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in err + out
    assert "┏" not in out


@pytest.mark.full
def test_bad_pictures_and_questions(command, model_folder, picture, tmp_path):
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(picture).read_bytes()[:60])
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(huge)
    wide = tmp_path / "wide.png"
    Image.new("1", (20_000, 10)).save(wide)
    cases = [
        ((str(tmp_path / "missing.png"), "what?"), "no picture at"),
        ((str(empty), "what?"), "0 bytes"),
        ((str(broken), "what?"), "cannot read"),
        ((str(text), "what?"), "cannot read"),
        ((str(huge), "what?"), "64,000,000 pixels"),
        ((str(wide), "what?"), "20000 x 10"),
        ((picture, ""), "question is empty"),
        ((picture, "   "), "question is empty"),
        ((picture,), "no question"),
        ((str(tmp_path / "missing.png"),), "no question"),
        (("what?",), "no picture"),
    ]
    for arguments, says in cases:
        code, out, err = command("run", *arguments, "--model", model_folder)
        _is_one_line(code, out, err, says)


def test_a_missing_model_gives_one_line(command, picture, tmp_path):
    for name in ("nothing", str(tmp_path / "nothing")):
        code, out, err = command("run", picture, "what?", "--model", name)
        _is_one_line(code, out, err, "no model at")
    code, out, err = command("run", picture, "what?", "--model", str(tmp_path))
    _is_one_line(code, out, err, "holds no weights")


def test_a_wrong_option_gives_one_line(command, picture):
    code, out, err = command("run", picture, "what?", "--plam", "none")
    _is_one_line(code, out, err, "--plam")


def test_square_brackets_in_a_question_are_text(command, model_folder, picture):
    code, out, _ = command("run", picture, "is it [/b] or [bold]?", "--model", model_folder, "--new-tokens", "2")
    assert code == 0
    assert "is it [/b] or [bold]?" in out
