"""Loading models and pictures for commands, with errors people can act on."""

from __future__ import annotations

import io
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
from foveate.errors import FoveateError, InputError

__all__ = ["as_seen", "chat_inputs", "load_image", "load_model", "png", "prompt_inputs"]


def load_model(name: str | None, training_dtype: str | None = None, settings: ModelSettings | None = None) -> tuple[Any, Any]:
    """Return (model, processor): the embedded demo model, or a folder or hub id loaded as transformers loads it.

    With a `training_dtype` ("float32", "auto") the model is on the CPU: each process of a training takes it to its own device.
    """
    settings = settings or ModelSettings()
    options: dict[str, Any] = settings.pretrained_options()
    if training_dtype:
        options = {name: value for name, value in options.items() if name != "device_map"} | {"dtype": training_dtype}
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
    check_words(processor, turn, "the prompt")
    try:
        made = _with_videos(processor, turn, videos) if videos else _templated(processor, turn)
    except FoveateError:
        raise
    except Exception as error:  # templates and processors come with the model, and video processors may need torchvision
        kind = "" if isinstance(error, (ValueError, ImportError)) else f"{type(error).__name__}: "
        raise InputError(f"the model's processor refuses this prompt: {kind}{first_line(error)}") from None
    inputs: dict[str, Any] = dict(made.to(model.device))
    _check_ids(model, inputs["input_ids"])
    for name, value in inputs.items():
        if name.startswith("pixel_values") and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    return inputs


def check_words(processor: Any, messages: Sequence[dict[str, Any]], where: str) -> None:
    """Refuse texts that hold the words which stand for pictures in this model's prompts.

    Raises:
        InputError: naming the word.
    """
    words = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    for text in (part["text"] for message in messages for part in message["content"] if part["type"] == "text"):
        for word in words:
            if isinstance(word, str) and word and word in text:
                raise InputError(f"{where}: its text holds '{word}', where this model looks for a picture: take it out")


def _check_ids(model: Any, ids: torch.Tensor) -> None:
    """Refuse prompts that are longer than the model's positions, and tokens that it does not have."""
    config = model.config.get_text_config()
    most, known = getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)
    if most is not None and ids.shape[1] > most:
        raise InputError(
            f"the prompt has {ids.shape[1]:,} tokens and the model reads {most:,}: use fewer or smaller pictures, or less text"
        )
    if known is not None and int(ids.max()) >= known:
        raise InputError(
            f"the tokenizer makes token {int(ids.max())}, and the model knows {known}: they do not belong together"
        )


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
