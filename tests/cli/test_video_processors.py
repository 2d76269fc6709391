"""Videos through the processors of transformers: real ones around a video processor that needs no torchvision."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from foveate import Video
from foveate.cli import loading
from tests.clips import number_of, shade
from tests.families.processors import image_processor, tokenizer

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
    "{{ ' <|vision_start|> <|' + part['type'] + '_pad|> <|vision_end|> ' }}{% endif %}{% endfor %}{% endfor %}"
)
CONFIG = SimpleNamespace(get_text_config=SimpleNamespace)
MODEL = SimpleNamespace(device="cpu", dtype=torch.bfloat16, config=CONFIG)


class PlainVideos:
    """Cuts nothing and counts everything: patches of 14 pixels, two frames and 2 x 2 patches together."""

    merge_size, temporal_patch_size = 2, 2

    def __call__(self, videos, *, video_metadata, do_sample_frames, **options):
        from transformers.video_utils import make_batched_metadata, make_batched_videos

        assert do_sample_frames is False
        self.seen = make_batched_videos(videos)
        metadata = make_batched_metadata(self.seen, video_metadata)
        grids = [[-(-len(video) // 2), video.shape[1] // 14, video.shape[2] // 14] for video in self.seen]
        pixels = torch.zeros(sum(int(np.prod(grid)) for grid in grids), 3 * 2 * 14 * 14)
        made = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(grids), "video_metadata": metadata}
        return BatchFeature(made)


def processor_of(name: str):
    import transformers

    class Checked(getattr(transformers, name)):
        def check_argument_for_proper_class(self, argument_name, argument):
            return (
                None if argument_name == "video_processor" else super().check_argument_for_proper_class(argument_name, argument)
            )

        def __init__(self, image_processor=None, tokenizer=None, video_processor=None, chat_template=None):
            super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template)

    names = {"start": "<|vision_start|>", "end": "<|vision_end|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    rules = image_processor("qwen2_vl", "qwen2_vl", "Qwen2VLImageProcessorPil", min_pixels=28 * 28, max_pixels=10**6)
    return Checked(rules, tokenizer(**names), PlainVideos(), chat_template=TEMPLATE)


def clip(numbers: list[int], seconds: list[float]) -> Video:
    return Video([Image.new("RGB", (56, 28), shade(number)) for number in numbers], seconds)


def columns(made: dict, processor, kind: str) -> int:
    token = processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
    return int((made["input_ids"] == token).sum())


@pytest.mark.parametrize("name", ["Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"])
def test_videos_and_pictures_go_through_the_model_s_own_processor(name):
    processor = processor_of(name)
    first, second = clip([0, 4, 8, 11], [1.0, 1.5, 2.0, 2.5]), clip([2, 3], [0.0, 4.0])
    picture = Image.new("RGB", (56, 56))
    made = loading.prompt_inputs(MODEL, processor, [first, picture, second], "text")
    shown = processor.video_processor.seen
    assert [[number_of(Image.fromarray(frame)) for frame in video] for video in shown] == [[0, 4, 8, 11], [2, 3]]
    assert made["video_grid_thw"].tolist() == [[2, 2, 4], [1, 2, 4]]
    assert made["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert (columns(made, processor, "video"), columns(made, processor, "image")) == (6, 4)
    assert made["pixel_values_videos"].dtype == made["pixel_values"].dtype == torch.bfloat16
    if name == "Qwen2_5_VLProcessor":
        # Two frames go into one row of tokens: 2 / 2 frames a second, 2 / 0.25.
        assert torch.as_tensor(made["second_per_grid_ts"]).tolist() == [1.0, 8.0]


def test_qwen3_reads_the_times_of_the_frames():
    processor = processor_of("Qwen3VLProcessor")
    told = []
    plain = processor.replace_video_token
    processor.replace_video_token = lambda *given, **options: told.append(plain(*given, **options)) or told[-1]
    loading.prompt_inputs(MODEL, processor, [clip([0, 4, 8, 11], [1.0, 1.5, 2.0, 2.5])], "text")
    assert "<1.2 seconds>" in told[0] and "<2.2 seconds>" in told[0]  # the middles of 1 and 1.5, of 2 and 2.5
