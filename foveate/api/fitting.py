"""A budget of visual tokens by a smaller picture: the strongest cheap baseline, and the first thing to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from foveate.errors import InputError

if TYPE_CHECKING:  # importing foveate imports no PIL
    from PIL import Image

# Sizes that are tried, each by this factor smaller along both sides; coarser where the processor has to run to count.
_FINE, _COARSE, _SMALLEST = 0.99, 0.94, 8
# What processors have for servers that must know counts before pictures are read.
_COUNTS = "_get_num_multimodal_tokens"


def fit_images(processor: Any, images: Sequence[Image.Image], max_visual_tokens: int) -> list[Image.Image]:
    """Each picture, scaled down until the model's own processor makes at most so many visual tokens of it.

    The largest size that fits is taken, by the processor's own count; the aspect ratio stays. A picture that fits already is
    returned as it is. Nothing is ever enlarged.

    Args:
        processor: of the model, as `AutoProcessor.from_pretrained` returns it.
        images: pictures.
        max_visual_tokens: for each of them, at least 1.

    Raises:
        InputError: where no size fits, with the fewest tokens that the processor makes of the picture.
    """
    from PIL import Image

    if max_visual_tokens < 1:
        raise InputError(f"max_visual_tokens={max_visual_tokens}: write at least 1")
    count = _counter(processor)
    step = _FINE if hasattr(processor, _COUNTS) else _COARSE
    fitted = []
    for image in images:
        sizes = _sizes(image.width, image.height, step)
        counts: list[int] = []
        for size in sizes:
            counts.append(count(size))
            if counts[-1] <= max_visual_tokens:
                break
        else:
            raise InputError(
                f"this model's processor makes at least {min(counts)} visual tokens of a picture of {image.width} x "
                f"{image.height}, whatever its size: write max_visual_tokens={min(counts)} or more, or drop tokens by a plan, "
                "e.g. divprune(site=pre_llm, keep=0.25)"
            )
        fitted.append(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))
    return fitted


def fit_share(processor: Any, image: Image.Image, keep: float) -> Image.Image | None:
    """The picture at the largest size that makes at most the share `keep` of its visual tokens; None where no size does."""
    try:
        (fitted,) = fit_images(processor, [image], max(1, int(keep * _counter(processor)(image.size))))
    except InputError:  # every size has as many tokens
        return None
    return fitted


def _sizes(width: int, height: int, step: float) -> list[tuple[int, int]]:
    """Sizes from the picture's own downwards, each once."""
    sizes, scale = {(width, height): None}, step
    while max(width, height) * scale >= _SMALLEST:
        sizes[max(1, round(width * scale)), max(1, round(height * scale))] = None
        scale *= step
    return list(sizes)


def _counter(processor: Any) -> Callable[[tuple[int, int]], int]:
    """How many placeholder tokens a processor makes of a picture of (width, height)."""
    told = getattr(processor, _COUNTS, None)

    def by_shape(size: tuple[int, int]) -> int:
        assert told is not None
        return int(told(image_sizes=[(size[1], size[0])])["num_image_tokens"][0])

    def by_running(size: tuple[int, int]) -> int:
        from PIL import Image

        token = getattr(processor, "image_token", None)
        if not isinstance(token, str):
            raise InputError(f"{type(processor).__name__} does not say how many visual tokens it makes of a picture")
        ids = processor(text=[token], images=[Image.new("RGB", size)])["input_ids"][0]
        number = processor.tokenizer.convert_tokens_to_ids(token)
        return sum(int(one) == number for one in ids)

    return by_shape if told is not None else by_running
