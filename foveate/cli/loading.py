"""Loading models and pictures for commands, with errors people can act on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from foveate.api import Video
from foveate.api.models import load_pretrained
from foveate.api.pictures import first_line, load_image
from foveate.cli.media import metadata, takes_videos
from foveate.cli.settings import ModelSettings
from foveate.demo.loading import load_demo
from foveate.errors import InputError

__all__ = ["as_seen", "chat_inputs", "downsampled", "load_image", "load_model", "png", "prompt_inputs"]


def load_model(name: str | None, training_dtype: str | None = None, settings: ModelSettings | None = None) -> tuple[Any, Any]:
    """Return (model, processor): the embedded demo model, or a folder or hub id loaded as transformers loads it.

    With a `training_dtype` ("float32", "auto") the model is on the CPU: each process of a training takes it to its own device.
    """
    settings = settings or ModelSettings()
    options: dict[str, Any] = {"dtype": training_dtype} if training_dtype else settings.pretrained_options()
    if name is None:
        if options["dtype"] == "auto":
            options["dtype"] = torch.float32  # in bfloat16, as it is stored, it would be slow on most CPUs
        loaded = _without_bars(lambda: load_demo(**options))
    else:
        trust = settings.trust_remote_code
        loaded = _without_bars(lambda: load_pretrained(name, trust_remote_code=trust, **options))
    model, processor = loaded
    settings.set_pixels(processor)
    return settings.placed(model), processor


def _without_bars(load: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """The spinner of `startup` says that a model is loading; bars would be drawn over it, and into logs."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return load()
    finally:
        if was_on:
            logging.enable_progress_bar()


def prompt_inputs(model: Any, processor: Any, media: Sequence[Image.Image | Video], question: str) -> dict[str, Any]:
    """What the model's own processor makes of a chat turn with pictures or videos and a question, on the model's device.

    A processor without videos gets their frames as pictures.
    """
    videos = [medium for medium in media if isinstance(medium, Video)] if takes_videos(processor) else []
    return chat_inputs(model, processor, _turn(processor, media, question), videos)


def chat_inputs(model: Any, processor: Any, turn: list[dict[str, Any]], videos: Sequence[Video] = ()) -> dict[str, Any]:
    """The same of chat messages with opened pictures that end with a question; `videos` are those of the first message."""
    try:
        made = _with_videos(processor, turn, videos) if videos else _templated(processor, turn)
    except (ValueError, ImportError) as error:  # video processors may need torchvision
        raise InputError(f"the model's processor refuses this prompt: {first_line(error)}") from None
    inputs: dict[str, Any] = dict(made.to(model.device))
    for name, value in inputs.items():
        if name.startswith("pixel_values") and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs


def _turn(processor: Any, media: Sequence[Image.Image | Video], question: str) -> list[dict[str, Any]]:
    native = takes_videos(processor)
    content: list[dict[str, Any]] = []
    for medium in media:
        if not isinstance(medium, Video):
            content.append({"type": "image", "image": medium})
        elif native:
            content.append({"type": "video", "video": medium.frames})
        else:
            content += [{"type": "image", "image": frame} for frame in medium.frames]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _templated(processor: Any, turn: list[dict[str, Any]]) -> Any:
    return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")


def _with_videos(processor: Any, turn: list[dict[str, Any]], videos: Sequence[Video]) -> Any:
    """The template's tokenizing call in two steps, as it cannot tell when sampled frames were taken."""
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    images = [part["image"] for part in turn[0]["content"] if part["type"] == "image"]
    begin = processor.tokenizer.bos_token
    return processor(
        text=[text],
        images=[images] if images else None,
        videos=[[video.frames for video in videos]],
        video_metadata=[metadata(video) for video in videos],
        do_sample_frames=False,
        add_special_tokens=begin is None or not text.startswith(begin),
        return_tensors="pt",
    )


def downsampled(medium: Image.Image | Video, keep: float) -> Image.Image | Video:
    """The control that needs no method: a picture, or each frame of a video, with a `keep` share of the pixels."""
    if isinstance(medium, Video):
        return Video([_smaller(frame, keep) for frame in medium.frames], medium.seconds)
    return _smaller(medium, keep)


def _smaller(picture: Image.Image, keep: float) -> Image.Image:
    scale = math.sqrt(keep)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def as_seen(picture: Image.Image, rules: Any) -> Image.Image:
    """The part of a picture that reaches the model: image (or video) processors like CLIP's crop the middle square."""
    if not getattr(rules, "do_center_crop", False):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()
