"""Cost of a plan on a model that need not exist: a preset name, a config, a folder, a hub id, or a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from foveate.api.models import load_config
from foveate.api.video import MOST_FRAMES
from foveate.core.plan import Plan
from foveate.core.shape import MediumShape
from foveate.cost import presets
from foveate.cost.conventions import convention_named
from foveate.cost.estimate import CostEstimate, estimate_cost
from foveate.engine.check import check_plan
from foveate.errors import FoveateError, InputError, UnknownName, did_you_mean
from foveate.families import Family, family_for
from foveate.files.paths import is_folder, shown, user_path
from foveate.spec import PlanLike, as_plan, parse

DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "fp8": 1}
# Tokens, pixels of a side, rows: far beyond any use.
_MOST, _MOST_IMAGES = 10_000_000, 4_096


def resolve_config(model: Any, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config of a model, a config, a preset name, a folder or a hub id.

    Args:
        model: one of those.
        trust_remote_code: run Python code that lies beside the config, where it asks for that.

    Raises:
        UnknownName: for a name that is neither a preset, a folder nor a hub id.
        InputError: for a config that cannot be read or describes no model.
    """
    if not isinstance(model, (str, Path)):
        return getattr(model, "config", model)
    name = str(model)
    if name in presets.preset_names():
        return presets.preset_config(name)
    if "/" not in name and not is_folder(user_path(name)):
        # Hub ids have an owner: a mistyped preset should not wait for the network.
        raise UnknownName(
            f"'{shown(name)}' is neither a preset nor a folder or hub id with a config."
            + did_you_mean(name[:100], presets.preset_names())
        )
    config = load_config(name, trust_remote_code)
    _check_described(name, config)
    return config


def _check_described(name: str, config: Any) -> None:
    """Refuse a config of a folder whose numbers do not fit together, before any of them is used."""
    family = family_for(config)
    try:
        family.model_shape(config)
        media_of(family, config, None, None, None)
        family.decoder_windows(config)
    except FoveateError:
        raise
    except Exception as error:  # numbers can fail to fit in as many ways as there are families
        raise InputError(
            f"the config of '{shown(name)}' does not describe a {family.title} model: {type(error).__name__}: {error}"
        ) from None


def _check_count(name: str, number: Any, least: int, most: int = _MOST) -> None:
    if not isinstance(number, int) or not least <= number <= most:
        raise InputError(f"{name}={str(number)[:30]}: write a whole number from {least} to {most:,}")


def default_plan(config: Any, keep: float = 0.5) -> Plan:
    """FastV at the paper's layer 2, or at the first layer after a full-attention one if that comes later.

    For a plain language model a gate at the same layer.
    """
    family = family_for(config)
    layers, first_full = len(family.decoder_windows(config)), next(iter(family.full_layers(config)), 0)
    method = "random_gate" if family.is_text_only else "fastv"
    return parse(f"{method}(layer={min(max(2, first_full + 1), layers - 1)}, keep={keep})")


def media_of(
    family: Family,
    config: Any,
    images: Sequence[tuple[int, int]] | None,
    visual_tokens: int | None,
    frames: int | None,
) -> list[MediumShape]:
    """Shapes of the media that the arguments of `estimate` describe."""
    if images is not None and visual_tokens is not None:
        raise InputError("give images or visual_tokens, not both")
    for size in images or ():
        if not (
            isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(n, int) and 1 <= n <= _MOST for n in size)
        ):
            raise InputError(
                f"image size {str(size)[:60]}: write (width, height) in whole pixels, at least 1 and "
                f"at most {_MOST:,}, e.g. images=[(1024, 768)]"
            )
    if images is not None and len(images) > _MOST_IMAGES:
        raise InputError(f"{len(images)} images: up to {_MOST_IMAGES} are counted")
    if frames is not None:
        _check_count("frames", frames, 1, MOST_FRAMES)
        if not images or len(images) != 1:
            raise InputError("frames describes one video: give its frame size as one image size, e.g. images=[(640, 360)]")
        return [family.media_of_video(config, images[0], frames)]
    if visual_tokens is None:
        usual_images = [] if family.is_text_only else [(1024, 768)]
        return family.media_of_images(config, usual_images if images is None else images)
    _check_count("visual_tokens", visual_tokens, 1)
    if family.is_text_only:
        raise InputError("this is a plain language model, which has no visual tokens: leave visual_tokens out")
    usual = family.media_of_images(config, [(1024, 768)])[0]
    if usual.grid_tokens == visual_tokens:
        return [usual]
    # No picture is known, so the encoder is left out; a square count is taken for a square grid.
    side = isqrt(visual_tokens)
    grid = (1, side, side) if side * side == visual_tokens else (1, 1, visual_tokens)
    return [MediumShape("image", grid)]


def estimate(
    model: Any,
    plan: PlanLike,
    images: Sequence[tuple[int, int]] | None = None,
    *,
    visual_tokens: int | None = None,
    frames: int | None = None,
    text_tokens: int = 64,
    max_new_tokens: int = 128,
    batch: int = 1,
    dtype: Any = "bfloat16",
    convention: str = "exact",
) -> CostEstimate:
    """Estimate visual tokens, FLOPs and KV bytes under a plan. No weights are needed.

    Args:
        model: a preset name, a config, a folder or hub id with a config, or a model.
        plan: what `attach` takes.
        images: (width, height) of each image in pixels; one 1024 x 768 image if nothing is said, none for a plain language
            model.
        visual_tokens: instead of images, the number of visual tokens; the vision encoder is then left out of the FLOPs
            unless it is the number of the model's usual image.
        frames: number of frames of one video whose frame size `images` gives.
        text_tokens, max_new_tokens, batch: of the workload; an answer is counted at its full length.
        dtype: of the KV cache, e.g. "bfloat16" or torch.bfloat16.
        convention: "exact", or a paper's own way of counting: "fastv", "dynamic-llava", "illava-v1". The last one counts what
            the authors' program does, also where the engine serves the plan otherwise or not at all.

    Raises:
        FoveateError: one line that says what does not fit.
    """
    config = resolve_config(model)
    family = family_for(config)
    parsed = as_plan(plan)
    if convention_named(convention).program is None:
        check_plan(parsed, family, config)
    for name, number, least in (("text_tokens", text_tokens, 0), ("max_new_tokens", max_new_tokens, 0), ("batch", batch, 1)):
        _check_count(name, number, least)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise InputError(f"dtype '{dtype}' is not known." + did_you_mean(dtype, DTYPE_BYTES))
    media = media_of(family, config, images, visual_tokens, frames)
    shape = family.model_shape(config)
    return estimate_cost(shape, parsed, media, text_tokens, max_new_tokens, batch, DTYPE_BYTES[dtype], convention)
