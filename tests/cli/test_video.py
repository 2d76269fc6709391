"""Videos on the command line: sampled, handed to the model as it takes them, drawn as strips; refusals are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from foveate import Video
from foveate.api import video as reading
from foveate.cli import loading, media
from tests import tiny
from tests.cli.test_run import _is_one_line
from tests.clips import number_of, shade, write_clip, write_frames


def test_run_answers_about_a_video(command, model_folder, clip):
    code, out, _ = command(
        "run", "--video", clip, "what moves?", "--model", model_folder, "--new-tokens", "2", "--json", "--frames", "4"
    )
    assert code == 0
    told = json.loads(out)
    assert told["rows"][0]["visual_tokens"] == 4 * 144 and told["rows"][0]["kept_tokens"] == 4 * 72
    assert told["pictures"] == []
    assert told["videos"] == [{"path": clip, "seconds": pytest.approx([0, 0.6, 1.2, 1.8])}]


def test_a_video_needs_no_option_and_stands_where_it_is_typed(command, model_folder, clip, picture, tmp_path):
    folder = str(write_frames(tmp_path / "frames", ["1.png", "2.png"]))
    code, out, _ = command(
        "run", clip, picture, folder, "same?", "--model", model_folder, "--new-tokens", "2", "--json", "--fps", "1"
    )
    assert code == 0
    told = json.loads(out)
    assert told["rows"][0]["visual_tokens"] == (2 + 1 + 2) * 144
    assert told["pictures"] == [picture]
    assert [video["path"] for video in told["videos"]] == [clip, folder]


@pytest.mark.full
def test_compare_downsamples_each_frame(command, model_folder, clip):
    code, out, _ = command(
        "run", clip, "what?", "--model", model_folder, "--new-tokens", "2", "--json", "--frames", "2", "--compare"
    )
    assert code == 0
    assert [row["visual_tokens"] for row in json.loads(out)["rows"]] == [288] * 5


def test_title_says_how_many_frames(command, model_folder, clip):
    code, out, _ = command("run", clip, "what?", "--model", model_folder, "--new-tokens", "2", "--start", "1")
    assert code == 0
    assert "clip.mp4 (5 frames)" in out and "720 -> 360" in out


def test_kept_draws_a_strip_with_a_timeline(command, model_folder, clip, picture, tmp_path):
    plan, out = "random(site=pre_llm, keep=0.5) | fastv(layer=2, keep=0.5)", tmp_path / "kept"
    code, text, _ = command(
        "view", "kept", picture, clip, "what?", "--model", model_folder, "--plan", plan, "--out", str(out), "--frames", "4"
    )
    assert code == 0
    assert re.search(r"picture\.png\W+144\W+72\W+36", text) and re.search(r"clip\.mp4, 4 frames\W+576\W+288\W+144", text)
    assert {path.name for path in out.iterdir()} == {"kept-1.png", "kept-2.png"}
    with Image.open(out / "kept-2.png") as strip:
        assert 4 * 200 < strip.width < 4 * 300 and 3 * 200 < strip.height < 3 * 340
        # The top line shows the frames in order.
        assert [number_of(strip.crop((at * 246, 60, at * 246 + 240, 200))) for at in range(4)] == [0, 3, 6, 9]


@pytest.mark.full
def test_attention_measures_each_frame(command, model_folder, clip, tmp_path):
    out = tmp_path / "attention"
    code, _, _ = command(
        "view", "attention", clip, "what?", "--model", model_folder, "--out", str(out), "--frames", "2", "--new-tokens", "1"
    )
    assert code == 0
    numbers = json.loads((out / "attention.json").read_text())
    assert [entry["parts"] for entry in numbers["pictures"]] == [
        ["clip.mp4, frame 1 of 2, 0.0 s"],
        ["clip.mp4, frame 2 of 2, 1.8 s"],
    ]


def test_plan_counts_a_video(command, clip, tmp_path):
    def counted(*arguments: str) -> list[float]:
        code, out, _ = command("plan", "random(site=pre_llm, keep=0.5)", *arguments, "--json")
        assert code == 0
        return json.loads(out)["visual_tokens_per_layer"]["plain"]

    # Qwen2.5-VL has videos; LLaVA 1.5 gets the frames as pictures.
    big = str(write_clip(tmp_path / "big.mp4", size=(560, 280)))
    assert counted("--video", big, "--frames", "4", "--model", "qwen2.5-vl-7b") == counted(
        "--images", "560x280", "--frames", "4", "--model", "qwen2.5-vl-7b"
    )
    assert counted("--video", big, "--fps", "1")[0] == 2 * 576
    code, text, err = command("plan", "--images", "10x10", "--start", "1")
    _is_one_line(code, text, err, "there is none")
    code, text, err = command("plan", "--images", "10x10", "--video", big)
    _is_one_line(code, text, err, "not both")


def bad_cases(tmp_path: Path, clip: str, picture: str) -> list[tuple[tuple[str, ...], str]]:
    (tmp_path / "words.mp4").write_text("words")
    (tmp_path / "nothing").mkdir()
    return [
        ((str(tmp_path / "missing.mp4"), "what?"), "no video at"),
        (("--video", str(tmp_path / "words.mp4"), "what?"), "as a video"),
        (("--video", picture, "what?"), "as a video"),
        ((str(tmp_path / "nothing"), "what?"), "holds no frames"),
        ((clip, "what?", "--frames", "0"), "--frames"),
        ((clip, "what?", "--frames", "9" * 400), "--frames"),
        ((clip, "what?", "--frames", "2", "--fps", "1"), "not both"),
        ((clip, "what?", "--fps", "0"), "above 0"),
        ((clip, "what?", "--fps", "99"), "5 frames a second"),
        ((clip, "what?", "--start", "5"), "shows no frame"),
        ((clip, "what?", "--start", "1", "--end", "0.5"), "the end must be later than the start"),
        ((picture, "what?", "--frames", "2"), "are for videos, and there is none"),
        ((clip,), "is a video; write the question last"),
        (("--video", clip, ""), "question is empty"),
    ]


@pytest.mark.full
@pytest.mark.parametrize("name", ["run", "view kept"])
def test_bad_videos_give_one_line(command, clip, picture, tmp_path, name):
    more = ("--plan", "fastv(layer=2, keep=0.5)", "--out", str(tmp_path / "out")) if name == "view kept" else ()
    for arguments, says in bad_cases(tmp_path, clip, picture):
        code, out, err = command(*name.split(), *arguments, *more)
        _is_one_line(code, out, err, says)
    assert not (tmp_path / "out").exists()


def test_a_clip_with_fewer_frames_is_read_whole_with_a_note(command, model_folder, clip):
    code, out, err = command(
        "run", clip, "what moves?", "--frames", "11", "--model", model_folder, "--new-tokens", "1", "--json"
    )
    assert code == 0 and len(json.loads(out)["videos"][0]["seconds"]) == 10
    assert "warning: clip.mp4 has 10 frames there, fewer than 11: all of them are read" in err


def test_missing_pyav_gives_one_line(command, clip, monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    for arguments in (("run", clip, "what?"), ("view", "merge", clip), ("plan", "--video", clip)):
        code, out, err = command(*arguments)
        _is_one_line(code, out, err, "pip install foveate[video]")


def test_a_long_question_is_no_file_name(command, model_folder, picture):
    code, _, _ = command("run", picture, "why? " * 100, "--model", model_folder, "--new-tokens", "1", "--json")
    assert code == 0


def test_metadata_tells_times_and_rates_in_the_words_of_transformers():
    from transformers.video_utils import VideoMetadata

    frames = [Image.new("RGB", (64, 48))] * 4
    told = VideoMetadata(**media.metadata(Video(frames, [2.0, 2.5, 3.0, 3.5])))
    assert told.timestamps == [2.0, 2.5, 3.0, 3.5]
    assert told.sampled_fps == 2.0
    assert (told.width, told.height, told.duration) == (64, 48, 2.0)
    assert VideoMetadata(**media.metadata(Video(frames[:1], [7.0]))).sampled_fps == 1.0


class VideoProcessor:
    """Stands for the processor of a Qwen-VL model, whose own needs torchvision: it notes how it is called."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.family, self.config = tiny.families.get("qwen2_5_vl"), model.config
        self.image_processor, self.video_processor = SimpleNamespace(), SimpleNamespace()
        self.tokenizer = SimpleNamespace(bos_token=None, decode=lambda ids, **_: "an answer")
        self.called: dict = {}

    def apply_chat_template(self, turn, *, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return "".join(f"<{part['type']}>" for part in turn[0]["content"])

    def __call__(self, **given):
        self.called = given
        random = torch.Generator().manual_seed(0)
        (pictures,), (videos,) = given["images"] or [[]], given["videos"]
        made = [self.family.tiny_medium(self.config, "image", 0, random) for _ in pictures]
        for frames in videos:
            grid, width = torch.tensor([[-(-len(frames) // 2), 4, 8]]), 3 * 2 * self.config.vision_config.patch_size**2
            ids = torch.full((int(grid.prod()) // 4,), tiny.VIDEO)
            pixels = torch.randn(int(grid.prod()), width, generator=random)
            made.append(tiny.TinyMedium("video", ids, {"pixel_values_videos": pixels, "video_grid_thw": grid}))
        ids = torch.cat([torch.tensor([3, 4]), *(medium.ids for medium in made), torch.tensor([5, 6, 7])])[None]
        tensors = self.family.tiny_batch(self.config, ids, made)
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors})


@pytest.fixture
def qwen(monkeypatch):
    model = tiny.tiny_model("qwen2_5_vl")
    processor = VideoProcessor(model)
    monkeypatch.setattr(loading, "load_model", lambda name, **_: (model, processor))
    return processor


def test_a_model_with_videos_gets_the_video_and_its_times(command, qwen, clip, picture, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = command(
        "view", "merge", picture, "--video", clip, "--frames", "5", "--plan", "random(layer=2, keep=0.5)", "--html", str(page)
    )
    assert code == 0
    assert [number_of(frame) for frame in qwen.called["videos"][0][0]] == [0, 2, 5, 7, 9]
    assert qwen.called["text"] == ["<image><video><text>"] and len(qwen.called["images"][0]) == 1
    assert qwen.called["video_metadata"][0]["frames_indices"] == [0, 400, 1000, 1400, 1800]
    assert qwen.called["do_sample_frames"] is False
    assert "clip.mp4, 5 frames" in out
    data = json.loads(re.search(r"^const data = (.*);$", page.read_text(), re.MULTILINE)[1])
    image, video = data["groups"]
    assert (image["film"], video["film"]) == (None, "clip.mp4")
    ((medium,),) = [video["media"]]
    # Two frames become one row of tokens; the fifth is doubled.
    assert [part["caption"] for part in medium["parts"]] == [
        "frames 1-2 of 5, 0.0 s",
        "frames 3-4 of 5, 1.0 s",
        "frame 5 of 5, 1.8 s",
    ]


def test_a_processor_that_cannot_read_videos_gives_one_line(command, qwen, clip, monkeypatch):
    def refuse(self, **given):
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library\nwhich was not found")

    monkeypatch.setattr(VideoProcessor, "__call__", refuse)
    code, out, err = command("run", clip, "what?", "--plan", "none")
    _is_one_line(code, out, err, "refuses this prompt: Qwen2VLVideoProcessor requires the Torchvision library")


def test_the_shades_of_test_frames_differ_more_than_encoders_change_them():
    assert len({shade(number) for number in range(12)}) == 12
