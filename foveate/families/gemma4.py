"""Gemma 4: sliding and full layers of unlike heads, layers that read the keys of earlier ones, embeddings per layer, video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from foveate.core.shape import DecoderShape, EncoderShape, LayerShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import SiteKind
from foveate.errors import InputError, UnsupportedModel
from foveate.families._base import NO_PIXELS, TINY_TEXT, Family, TinyMedium

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor, nn

# Most tokens of an image and of a frame, by the defaults of the processors; pixels are padded to as many.
_IMAGE_TOKENS, _FRAME_TOKENS = 280, 70
# Cells (t, h, w) of the media of tiny models, whose pixels are padded to _TINY_TOKENS of them.
_TINY_GRIDS = {"image": ((1, 4, 5), (1, 3, 4), (1, 5, 3)), "video": ((2, 3, 4), (3, 2, 3))}
_TINY_TOKENS = 20


class Gemma4(Family):
    """Gemma4ForConditionalGeneration."""

    model_types = ("gemma4",)
    title = "Gemma 4"
    placeholders = {"image": "image_token_id", "video": "video_token_id"}
    host_inputs = ("image_position_ids", "video_position_ids", "num_frames_per_video")
    bidirectional = True
    unsupported: ClassVar[Mapping[SiteKind, str]] = {
        SiteKind.PIXELS: NO_PIXELS,
        SiteKind.VISION_LAYER: "its encoder pads pictures of all shapes to one length, of which each would keep another part: "
        "choose in the language model (site=pre_llm or layer=k)",
    }
    token_inputs: ClassVar[tuple[str, ...]] = ("per_layer_input",)
    notes = "sliding and full layers, shared keys and values, embeddings per layer, images of any shape, video"

    def check(self, config: Any) -> None:
        if config.vision_config is None:
            raise UnsupportedModel("this Gemma 4 has no vision encoder")
        if config.get_text_config().use_bidirectional_attention == "all":
            raise UnsupportedModel("this Gemma 4 attends in both directions everywhere: there is no prefill to shorten")

    def side(self, config: Any) -> int:
        """Patches along a side of a visual token, as the position ids count them."""
        return int(config.vision_config.pooling_kernel_size)

    def media(self, config: Any, inputs: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, list[MediumShape]]:
        shapes: dict[str, list[MediumShape]] = {}
        for kind in self.placeholders:
            places = inputs.get(f"{kind}_position_ids")
            if places is None and columns[kind]:
                raise InputError(
                    f"the prompt has {kind} placeholders but {kind}_position_ids is missing: pass everything the processor "
                    "returned"
                )
            pixels = inputs.get({"image": "pixel_values", "video": "pixel_values_videos"}[kind])
            if places is not None and pixels is not None and len(places) != len(pixels):
                raise InputError(f"pixel values of {len(pixels)} {kind} frames, but {kind}_position_ids of {len(places)}")
            frames = [] if places is None else _frames(kind, places, inputs.get("num_frames_per_video"))
            shapes[kind] = [self._medium(config, kind, medium) for medium in frames]
        return shapes

    def _medium(self, config: Any, kind: str, frames: Tensor) -> MediumShape:
        """The shape of frames [t, P, 2]: (x, y) of each patch, -1 at padding."""
        side = self.side(config)
        wide, high = ((int(frames[..., axis].max()) + 1) // side for axis in (0, 1))
        return self._shape(kind, (frames.shape[0], high, wide), frames.shape[1])

    def _shape(self, kind: str, grid: tuple[int, int, int], patches: int) -> MediumShape:
        # The encoder runs over padding patches too.
        return MediumShape(kind, grid, encoder_tokens=grid[0] * patches, encoder_sequences=(patches,) * grid[0])

    def media_of_images(self, config: Any, sizes: Sequence[tuple[int, int]]) -> list[MediumShape]:
        return [self._of_size(config, "image", size, 1, _IMAGE_TOKENS) for size in sizes]

    def media_of_video(self, config: Any, size: tuple[int, int], frames: int) -> MediumShape:
        if frames < 1:
            raise InputError(f"frames={frames}: a video has at least 1")
        return self._of_size(config, "video", size, frames, _FRAME_TOKENS)

    def _of_size(self, config: Any, kind: str, size: tuple[int, int], frames: int, most: int) -> MediumShape:
        vision = config.vision_config
        high, wide = _cells(size, vision.patch_size * vision.pooling_kernel_size, most)
        return self._shape(kind, (frames, high, wide), most * self.side(config) ** 2)

    def shared_keys(self, config: Any) -> dict[int, int]:
        text = config.get_text_config()
        kinds, first = text.layer_types, text.num_hidden_layers - text.num_kv_shared_layers
        return {
            layer: max(source for source in range(first) if kinds[source] == kinds[layer])
            for layer in range(first, text.num_hidden_layers)
        }

    def refuse_layer(self, config: Any, layer: int) -> str | None:
        shared = self.shared_keys(config)
        if not shared or layer <= min(shared.values()):
            return None
        sources = " and ".join(str(source) for source in sorted(set(shared.values())))
        return (
            f"layers {min(shared)} to {max(shared)} read the keys and values of layers {sources} and run for the prompt's last "
            f"token alone, so a cut after layer {min(shared.values())} would save next to nothing; the largest valid layer is "
            f"{min(shared.values())}"
        )

    def decoder_shape(self, config: Any) -> DecoderShape:
        text, shared = config.get_text_config(), self.shared_keys(config)
        per_layer = getattr(text, "hidden_size_per_layer_input", 0) or 0
        experts, other = 0, 2 * text.hidden_size * per_layer
        if getattr(text, "enable_moe_block", False):
            experts, other = text.top_k_experts * text.moe_intermediate_size, other + text.hidden_size * text.num_experts
        layers = []
        for layer, kind in enumerate(text.layer_types):
            kv_heads, head_dim = _heads(text, layer)
            wide = 2 if text.use_double_wide_mlp and layer in shared else 1
            projected = 1 if text.attention_k_eq_v and kind == "full_attention" else 2
            width = wide * text.intermediate_size + experts
            layers.append(LayerShape(kv_heads, head_dim, width, 0 if layer in shared else projected, other))
        return DecoderShape(
            layers=len(layers),
            hidden=text.hidden_size,
            intermediate=layers[0].intermediate,
            heads=text.num_attention_heads,
            kv_heads=layers[0].kv_heads,
            head_dim=layers[0].head_dim,
            vocabulary=text.vocab_size,
            layer_windows=self.decoder_windows(config),
            layer_shapes=tuple(layers),
            last_only=min(shared, default=None),
            entry_weights=text.hidden_size * per_layer * len(layers),
        )

    def model_shape(self, config: Any) -> ModelShape:
        vision, text = config.vision_config, config.get_text_config()
        encoder = EncoderShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_attention_heads,
            patch_inputs=3 * vision.patch_size**2,
            gated_mlp=True,
            pooling=vision.pooling_kernel_size**2,
        )
        projector = (LinearShape(vision.hidden_size, text.hidden_size),)
        return ModelShape(family="gemma4", decoder=self.decoder_shape(config), encoder=encoder, projector=projector)

    def tiny_config(self) -> Any:
        from transformers import Gemma4Config

        text = dict(
            **TINY_TEXT,
            num_hidden_layers=8,
            layer_types=["sliding_attention", "full_attention"] * 4,
            sliding_window=24,
            head_dim=8,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            num_kv_shared_layers=2,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=99,
            use_bidirectional_attention="vision",
        )
        vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
        vision |= dict(head_dim=8, patch_size=4, pooling_kernel_size=3, position_embedding_size=32)
        ids = dict(image_token_id=90, video_token_id=91, boi_token_id=92, eoi_token_id=93, audio_token_id=94)
        return Gemma4Config(text_config=text, vision_config=vision, boa_token_id=95, eoa_token_index=96, **ids)

    def tiny_medium(self, config: Any, kind: str, number: int, random: torch.Generator) -> TinyMedium:
        import torch

        vision = config.vision_config
        t, high, wide = _TINY_GRIDS[kind][number % len(_TINY_GRIDS[kind])]
        side = self.side(config)
        rows, most = torch.arange(high * wide * side * side), _TINY_TOKENS * side * side
        places = torch.full((t, most, 2), -1)
        places[:, : len(rows)] = torch.stack([rows % (wide * side), rows // (wide * side)], dim=-1)
        width = vision.patch_size * vision.pooling_kernel_size // side
        pixels = torch.rand(t, most, 3 * width**2, generator=random)
        placeholder = self.placeholder_ids(config)[kind]
        if kind == "image":
            ids = torch.full((high * wide,), placeholder)
            return TinyMedium(kind, ids, {"pixel_values": pixels, "image_position_ids": places})
        # Each frame: a timestamp, and its tokens between brackets.
        start, end = torch.tensor([config.boi_token_id]), torch.tensor([config.eoi_token_id])
        frame = torch.full((high * wide,), placeholder)
        ids = torch.cat([torch.cat([torch.tensor([20 + second]), start, frame, end]) for second in range(t)])
        names = {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": torch.tensor([t])}
        return TinyMedium(kind, ids, names)

    def mend(self, model: nn.Module) -> None:
        """A layer's input passes a gate, nearly closed for some tokens: normalised from 0.01 to 1, it is mostly rounding."""
        for name, module in model.named_modules():
            if name.endswith("post_per_layer_input_norm"):
                module.eps = 0.01

    def tiny_batch(self, config: Any, ids: Tensor, media: Sequence[TinyMedium]) -> dict[str, Tensor]:
        types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
        return {**super().tiny_batch(config, ids, media), "mm_token_type_ids": types}


def _heads(text: Any, layer: int) -> tuple[int, int]:
    """Key heads of a layer and their width."""
    own = getattr(text, "per_layer_config", None)
    if own is not None:
        return own[layer].num_key_value_heads, own[layer].head_dim
    # Earlier versions name the numbers of full layers apart.
    if text.layer_types[layer] != "full_attention":
        return text.num_key_value_heads, text.head_dim
    heads = text.num_global_key_value_heads if text.attention_k_eq_v else None
    return heads or text.num_key_value_heads, text.global_head_dim or text.head_dim


def _frames(kind: str, places: Tensor, counts: Any) -> Sequence[Tensor]:
    """The frames [t, P, 2] of each medium."""
    import torch

    if kind == "image":
        return places[:, None].unbind()
    if places.ndim == 4:  # videos [n, t, P, 2] of equal length, as earlier versions have them
        return places.unbind()
    if counts is None:
        raise InputError("the prompt has a video but num_frames_per_video is missing: pass everything the processor returned")
    return torch.split(places, [int(count) for count in counts])


def _cells(size: tuple[int, int], unit: int, most: int) -> tuple[int, int]:
    """(high, wide) in cells of `unit` pixels of an image that is made as large as `most` cells allow, its shape kept."""
    width, height = size
    if min(size) < 1:
        raise InputError(f"image of {width} x {height} pixels: both sides are at least 1")
    scale = math.sqrt(most * unit**2 / (width * height))
    high, wide = math.floor(scale * height / unit), math.floor(scale * width / unit)
    if high == 0:
        return 1, min(width // height, most)
    if wide == 0:
        return min(height // width, most), 1
    return high, wide
