"""foveate eval generation: files and the demo, tables and JSON, and one clear line for everything that cannot work."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from foveate.cli import loading
from foveate.cli.rounds import read_messages
from foveate.demo.packing import Packer
from foveate.errors import InputError
from tests.cli.test_run import _is_one_line

GATE = "stride_gate(layer=2, keep=0.5, recent=0)"


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
    assert "METEOR needs nltk" in text.replace("\n", " ")
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


@pytest.mark.full
def test_token_by_token_gives_the_same_and_nothing_need_be_generated(command, model_folder, file):
    options = (file, "--samples", "2", "--plan", GATE, "--no-generate", "--json")
    results = [json.loads(run(command, model_folder, *options, *more)[1]) for more in ((), ("--step-by-step",))]
    for one, other in zip(results[0]["rows"], results[1]["rows"], strict=True):
        assert one["perplexity"]["mean"] == pytest.approx(other["perplexity"]["mean"], rel=1e-4)
        assert one["overlap"] is None and one["kv_bytes"] == other["kv_bytes"]
    assert results[0]["overlap_score"] is None and results[0]["samples"] == 2


@pytest.mark.full
def test_the_demo_model_knows_its_captions(command):
    code, text, _ = command("eval", "generation", "--samples", "3", "--plan", GATE, "--no-generate", "--json")
    assert code == 0
    result = json.loads(text)
    plain, gated = result["rows"]
    assert 1 < plain["perplexity"]["mean"] < 1.5  # a wrong prompt or answer would be in the hundreds
    assert gated["output_tokens"][1] < 0.6 * gated["output_tokens"][0]
    assert result["source"] == "demo, held-out caption"


def talk(*turns, picture=None):
    """Chat messages from questions and answers; a picture, opened or a path, in front of the first."""
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(turns)
    ]
    if picture is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": picture})
    return messages


def test_an_answer_is_read_as_it_was_trained():
    model, processor = loading.load_model(None)
    picture = Image.new("RGB", (96, 96))
    rounds = read_messages(model, processor, talk("what do you see?", "a sign.", picture=picture))
    packer = Packer(processor)
    assert rounds.turns == () and [ids.tolist() for ids in rounds.answers] == [[*packer._encode("a sign."), packer.end_id]]
    plain = loading.prompt_inputs(model, processor, [picture], "what do you see?")
    assert set(rounds.inputs) == set(plain) and all(torch.equal(rounds.inputs[name], plain[name]) for name in plain)


def test_rounds_put_together_are_the_conversation_as_the_processor_makes_it():
    model, processor = loading.load_model(None)
    picture = Image.new("RGB", (96, 96))
    messages = talk("list the colors.", "red, blue.", "which first?", "red", "and then?", "blue", picture=picture)
    rounds = read_messages(model, processor, messages)
    parts = [rounds.inputs["input_ids"][0]]
    for number, answer in enumerate(rounds.answers):
        parts += [answer[:-1], *rounds.turns[number : number + 1]]
    end = rounds.answers[-1][-1:]
    whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"][0]
    assert torch.equal(torch.cat([*parts, end]), whole)
    assert all(answer[-1] == end for answer in rounds.answers) and all(turn[0] == end for turn in rounds.turns)
    assert [processor.tokenizer.decode(ids[:-1]).strip() for ids in rounds.answers] == ["red, blue.", "red", "blue"]
    assert "which first?" in processor.tokenizer.decode(rounds.turns[0])


def test_templates_without_an_end_get_one_and_with_more_behind_it_are_cut():
    model, processor = loading.load_model(None)
    picture, template = Image.new("RGB", (96, 96)), processor.chat_template
    messages = talk("what?", "a sign.", "really?", "yes", picture=picture)
    known = read_messages(model, processor, messages)
    # Nothing, a space as in LLaVA's template, and a line end behind the end token as in Qwen's; the last is part of a turn.
    for change, between in (("", []), ("{{ ' ' }}", None), ("{{ '<|end|>' }}{{ ' and more' }}", None)):
        processor.chat_template = template.replace("{{ '<|end|>' }}", change)
        rounds = read_messages(model, processor, messages)
        assert all(torch.equal(one, other) for one, other in zip(rounds.answers, known.answers, strict=True))
        text = processor.tokenizer.decode(rounds.turns[0])
        assert "really?" in text and ("<|end|>" in text) == ("end" in change) and ("and more" in text) == ("more" in change)
        if between is not None:
            assert torch.equal(rounds.turns[0], known.turns[0][1:])
    processor.chat_template = template.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}{{ 'x' }}")
    with pytest.raises(InputError, match="does not continue a round"):
        read_messages(model, processor, messages)
    with pytest.raises(InputError, match="does not continue a prompt"):
        read_messages(model, processor, messages[:2])
    processor.chat_template = template.replace("{{ '<|end|>' }}", "")
    processor.tokenizer.eos_token = None
    mute = SimpleNamespace(device=model.device, dtype=model.dtype, generation_config=SimpleNamespace(eos_token_id=None))
    with pytest.raises(InputError, match="names an end token"):
        read_messages(mute, processor, messages)


@pytest.fixture
def chats(tmp_path, picture):
    """The same conversations as chat messages and as LLaVA's list, and a row of two rounds in each."""
    first = talk("what is it?", "a large red circle.", "and its color?", "it is red.", picture="picture.png")
    second = talk("hello?", "there is no picture here.")
    lines, rows = tmp_path / "chats.jsonl", tmp_path / "chats.json"
    lines.write_text("\n".join(json.dumps({"messages": messages}) for messages in (first, second)))
    names = {"user": "human", "assistant": "gpt"}
    rows.write_text(
        json.dumps(
            [
                {
                    "conversations": [{"from": names[one["role"]], "value": one["content"][-1]["text"]} for one in messages],
                    **({"image": "picture.png"} if messages is first else {}),
                }
                for messages in (first, second)
            ]
        )
    )
    return str(lines), str(rows)


@pytest.mark.full
def test_conversations_of_both_formats_are_read_round_by_round(command, model_folder, chats, tmp_path):
    options = ("--plan", f"fastv(layer=2, keep=0.5) | {GATE}", "--new-tokens", "4", "--json")
    results = [json.loads(run(command, model_folder, path, *options)[1]) for path in chats]
    assert results[0]["rows"] == results[1]["rows"]
    plain, gated = results[0]["rows"]
    assert plain["plan"] == "none" and gated["kv_share"] < 1 and gated["output_kv_share"] < 1
    (talk_of_two, alone) = results[0]["scores"]["none"]
    assert [one["name"] for one in (talk_of_two, alone)] == ["line 1", "line 2"]
    assert len(talk_of_two["generated"]["answers"]) == 2 and len(alone["generated"]["answers"]) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "chats.jsonl"
    moved.write_text((tmp_path / "chats.jsonl").read_text())
    again = json.loads(run(command, model_folder, str(moved), "--pictures", str(tmp_path), *options)[1])
    assert again["rows"] == results[0]["rows"]


@pytest.mark.full
def test_the_demo_s_second_turns_are_read_behind_the_first(command):
    code, text, _ = command("eval", "generation", "--task", "follow_up", "--samples", "3", "--no-generate", "--json")
    assert code == 0
    assert 1 < json.loads(text)["rows"][0]["perplexity"]["mean"] < 2


@pytest.mark.full
def test_conversations_that_cannot_be_read_are_refused_by_their_row(command, model_folder, tmp_path, picture):
    good = talk("what?", "this.", picture="picture.png")
    cases = [
        (talk("what?", "this.", "why?"), "line 2: the user and the assistant must take turns"),
        (good[1:], "line 2: the user and the assistant must take turns"),
        ([*good, *talk("and this?", "that.", picture="picture.png")], "line 2: a picture after the first question"),
        (talk("what?", " "), "line 2: an answer without text"),
        (talk("what?", "this.", picture="lost.png"), "1 rows name pictures"),
    ]
    path = tmp_path / "chats.jsonl"
    for messages, says in cases:
        path.write_text("\n".join(json.dumps({"messages": one}) for one in (good, messages)))
        _is_one_line(*run(command, model_folder, str(path)), says)
    path.write_text(json.dumps({"messages": good}))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG no picture")
    _is_one_line(*run(command, model_folder, str(path)), "as a picture")
    _is_one_line(*run(command, model_folder, str(path), "--pictures", str(tmp_path / "none")), "folder of --pictures")
    _is_one_line(*run(command, model_folder, "--pictures", str(tmp_path)), "name a FILE")


def test_bad_input_gives_one_line_and_writes_nothing(command, model_folder, file, tmp_path):
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.json"
    bad.write_text('{"image": "picture.png", "question": "q"}\n')
    cases = [
        ((str(tmp_path / "none.jsonl"),), "no data at"),
        ((str(bad),), "line 1: answer must be text"),
        ((file, "--plan", "fastv(layer=2)"), "keep"),
        ((file, "--plan", "random_gate(layer=99, keep=0.5)"), "decoder layers"),
        ((file, "--task", "poem"), "--task poem"),
        ((file, "--out", str(tmp_path)), "name a file"),
        ((file, "--samples", "0"), "--samples"),
        ((file, "--max-visual-tokens", "9"), "visual tokens of a picture of"),
        (("--max-visual-tokens", "9"), "name a FILE"),
    ]
    for arguments, says in cases:
        more = () if "--out" in arguments else ("--out", str(out))
        code, text, err = run(command, model_folder, *arguments, *more)
        _is_one_line(code, text, err, says)
        assert not out.exists()
