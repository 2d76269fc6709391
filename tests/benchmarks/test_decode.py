"""Gated decoding in the decode benchmark: bytes held and lasting, what was stored, theory by hand, the page."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import _models as models
from benchmarks import decode, table

GATE = "stride_gate(layer=2, keep=0.5, recent=0)"
BOTH = f"fastv(layer=2, keep=0.5) | {GATE}"
NEW = 70  # past the first cleaning, at 64


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out, threads = tmp_path_factory.mktemp("raw") / "c-decode.json", torch.get_num_threads()
    plans = ["fastv(layer=2, keep=0.5)", GATE, BOTH]
    decode.main([
        "run", "--smoke", "--tokens", "16", "--models", "smoke-llava", "--batch", "2", "--rounds", "1", "--most-rounds", "1",
        "--new-tokens", str(NEW), "--no-memory", "--plans", *plans, "--out", str(out),
    ])  # fmt: skip
    torch.set_num_threads(threads)
    return json.loads(out.read_text()) | {"file": out.name}


# By hand: 4 layers, 2 rows, keys and values of width 32 in fp32; 64 text and 16 visual tokens, of which FastV leaves 8.
SLOT = 2 * 2 * 32 * 4
FED = NEW - 1


@pytest.mark.full
def test_bytes_at_the_end_are_those_that_last_and_those_that_wait(result):
    plain, pruned, gated, both = result["cells"][0]["rows"]
    stored = FED // 2
    assert plain["kv_bytes"] == plain["kv_bytes_lasting"] == SLOT * 4 * (80 + FED)
    assert pruned["kv_bytes"] == pruned["kv_bytes_lasting"] == SLOT * (2 * (80 + FED) + 2 * (72 + FED))
    assert gated["kv_bytes_lasting"] == SLOT * (2 * (80 + FED) + 2 * (80 + stored))
    assert both["kv_bytes_lasting"] == SLOT * (2 * (80 + FED) + 2 * (72 + stored))
    for row in (gated, both):
        assert row["answer_stored"] == [2 * stored, 2 * FED]
        # The cleaning at 64 tokens took 32 rejected slots; those of the last 5 tokens wait.
        waiting = sum(number % 2 == 0 for number in range(64, FED))
        assert row["kv_bytes"] - row["kv_bytes_lasting"] == SLOT * 2 * waiting
    assert "answer_stored" not in plain and "answer_stored" not in pruned


@pytest.mark.full
def test_theory_counts_what_the_gate_stores_in_the_middle_of_the_answer(result):
    _, _, gated, both = result["cells"][0]["rows"]
    weights = 4 * (4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 32 * 8000)
    plain = weights + SLOT * 4 * (80 + FED / 2)
    stored = round(FED / 2) / 2  # the expected number, half of it in the middle
    for row, left in ((gated, 80), (both, 72)):
        plan = weights + SLOT * (2 * (80 + FED / 2) + 2 * (left + stored))
        assert row["theory"]["tpot"] == pytest.approx(plan / plain)
        assert row["theory"]["tpot_flops"] < 1


@pytest.mark.full
def test_the_page_shows_what_lasts_and_what_is_held(result):
    lines = table.model_table("decode", "cpu", "smoke-llava", [result]).splitlines()
    (shown,) = [line for line in lines if f"`{GATE}`" in line]
    _, _, gated, _ = result["cells"][0]["rows"]
    lasting, held = (f"{gated[name] / 2**20:,.1f} MiB" for name in ("kv_bytes_lasting", "kv_bytes"))
    assert f"| {lasting} ({held} held) |" in shown
    plain = result["cells"][0]["rows"][0]["kv_bytes"]
    assert f"| {100 * gated['kv_bytes_lasting'] / plain:.1f} % |" in shown
    assert sum("held" in line for line in lines) == 2


@pytest.mark.full
def test_raw_files_from_before_gates_are_shown_as_they_were(result):
    old = json.loads(json.dumps(result))
    for row in old["cells"][0]["rows"]:
        del row["kv_bytes_lasting"]
        row.pop("answer_stored", None)
    lines = table.model_table("decode", "cpu", "smoke-llava", [old]).splitlines()
    (shown,) = [line for line in lines if f"`{GATE}`" in line]
    assert "held" not in shown and f"{result['cells'][0]['rows'][2]['kv_bytes'] / 2**20:,.1f} MiB" in shown


@pytest.mark.full
@pytest.mark.parametrize("tokens", [1024, 2048, 4096])
@pytest.mark.parametrize("name", [*models.CPU_MODELS, "qwen2.5-vl-7b"])
def test_answers_of_thousands_of_tokens_have_positions(name, tokens):
    assert models.prompt_for(name, 2880, tokens).visual_tokens > 2700


@pytest.mark.full
def test_answers_beyond_a_model_s_positions_are_named_and_not_run(capsys):
    with pytest.raises(SystemExit) as stopped:
        decode.main(["run", "--smoke", "--models", "llava-1.5-7b", "--tokens", "576", "--new-tokens", "4096", "--plans", GATE])
    assert stopped.value.code == 2 and "4096 new tokens: llava-1.5-7b has 4096 positions" in capsys.readouterr().err


@pytest.mark.full
def test_gated_answers_of_several_lengths_and_batches_are_cells_of_one_run(tmp_path):
    """The command for 2,048 and 4,096 tokens at batch 1 and 8, on short answers of a tiny model."""
    out, threads = tmp_path / "c-decode.json", torch.get_num_threads()
    decode.main([
        "run", "--smoke", "--tokens", "16", "--models", "smoke-llava", "--new-tokens", "4", "8", "--batch", "1", "2",
        "--rounds", "1", "--most-rounds", "1", "--plans", GATE, "--out", str(out),
    ])  # fmt: skip
    torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert sorted((cell["new_tokens"], cell["batch"]) for cell in result["cells"]) == [(4, 1), (4, 2), (8, 1), (8, 2)]
    for cell in result["cells"]:
        plain, gated = cell["rows"]
        fed = cell["new_tokens"] - 1
        assert plain["kv_bytes"] == SLOT // 2 * cell["batch"] * 4 * (80 + fed)
        assert gated["kv_bytes_lasting"] == SLOT // 2 * cell["batch"] * (2 * (80 + fed) + 2 * (80 + fed // 2))
        for row in (plain, gated):
            assert row["peak_bytes"] > row["kv_bytes"] and row["summary"]["tpot"]["median_ms"] > 0
    lines = table.model_table("decode", "cpu", "smoke-llava", [result | {"file": out.name}]).splitlines()
    assert sum(f"`{GATE}`" in line and "| 8 |" in line for line in lines) == 2
