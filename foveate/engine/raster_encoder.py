"""Stages inside packed encoders whose patches lie in the raster of their picture (Pixtral, Mistral 3).

One sequence [1, patches, D] holds all pictures; a mask keeps them apart, or with flash their boundaries. Decisions are made on
whole squares of patches, as in `packed_encoder`; the patches that are left stay in their order. What leaves the encoder has its
full number of rows again, zero where patches are gone, and the module behind it that makes visual tokens leaves NaN for those
that are gone (see `encoder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.core.encoder import RasterPath
from foveate.core.plan import Stage
from foveate.core.view import Observation
from foveate.engine.conversation import Conversation
from foveate.engine.encoder_state import Packed
from foveate.engine.packed_encoder import PackedEncoderHooks, frames_of
from foveate.errors import InputError


class RasterEncoderHooks(PackedEncoderHooks):
    """The hooks around such an encoder; arguments as of `EncoderCallHooks`."""

    def __init__(self, owner: object, model: nn.Module, path: RasterPath, *rest: Any) -> None:
        super().__init__(owner, model, path, *rest)
        self.patch, self.merger = path.patch, model.get_submodule(path.merger)
        self._finished: ContextVar[Packed | None] = ContextVar("foveate_raster_encoded", default=None)

    def _mergers(self) -> list[RemovableHandle]:
        return [self.merger.register_forward_hook(self._after_projector)]

    def _leave(self) -> None:
        super()._leave()
        self._finished.set(None)

    def _begin(self, conversation: Conversation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]
        sizes = args[1] if len(args) > 1 else kwargs.get("image_sizes")
        sizes = [pixels.shape[2:]] * len(pixels) if sizes is None else torch.as_tensor(sizes).tolist()
        side = self.path.unit
        grids = [(high // self.patch, wide // self.patch) for high, wide in sizes]
        odd = next((grid for grid in grids if grid[0] % side or grid[1] % side), None)
        if odd is not None:
            raise InputError(
                f"an image of {odd[0]} x {odd[1]} patches, of which {side} x {side} become one visual token: stages inside the "
                "encoder need whole tokens; let the model's own processor resize it"
            )
        members, start = [], 0
        for h, w in grids:
            raster = torch.arange(start, start + h * w, device="cpu").view(h // side, side, w // side, side)
            members.append(raster.transpose(1, 2).reshape(-1, side * side))
            start += h * w
        of_unit = torch.cat(members).to(pixels.device, non_blocking=True)
        order = torch.arange(len(of_unit), device=pixels.device)
        frames = frames_of([(h // side, w // side) for h, w in grids], order)
        return Packed(self._next(conversation, len(frames)), frames, side * side, len(of_unit), members=of_unit)

    def _run(self, call: Packed, index: int, stage: Stage, hidden: Tensor) -> Tensor:
        before = hidden[0, call.by_unit()]
        after = super()._run(call, index, stage, before)
        if after is before:
            return hidden
        assert call.left is not None
        call.states[len(after)] = call.patches(call.left)
        return after[call.by_unit().argsort()][None]

    def _of_units(self, call: Packed, index: int, need: Observation, slots: Tensor) -> Tensor:
        return call.observed[(index, need)][call.by_unit()].view(-1, call.unit).mean(1)[slots]

    def _of_all(self, call: Packed, values: Tensor) -> Tensor:
        assert call.members is not None
        return super()._of_all(call, values)[call.members.flatten()]  # unit by unit, as in other packed encoders

    def _shorter(self, call: Packed, index: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        new, mask = self._shorter_rotary(call, kwargs), kwargs.get("attention_mask")
        if mask is not None:
            new["attention_mask"] = self._shorter_mask(call, mask)
        if kwargs.get("cu_seq_lens_q") is not None:
            cuts = torch.tensor([0, *accumulate(call.lengths)], dtype=torch.int32, device="cpu")
            cuts = cuts.to(kwargs["cu_seq_lens_q"].device, non_blocking=True)
            new.update(cu_seq_lens_q=cuts, cu_seq_lens_k=cuts)
            new.update(max_length_q=max(call.lengths), max_length_k=max(call.lengths))
        places = kwargs.get("position_ids")
        if places is not None:  # by which earlier versions of transformers tell flash where a picture begins
            new["position_ids"] = torch.cat([torch.arange(length, device=places.device) for length in call.lengths])[None]
        return new

    def _shorter_mask(self, call: Packed, mask: Tensor) -> Tensor:
        """What keeps pictures apart, [1, 1, N, N], for the patches that are left; made once after each stage."""
        assert call.left is not None
        if call.mask is None or call.mask[0] is not mask or call.mask[1] is not call.left:
            rows = call.patches(call.left).to(mask.device)
            call.mask = mask, call.left, mask[..., rows[:, None], rows]
        return call.mask[2]

    def _lengthen(self, call: Packed, output: Any) -> Any:
        if call.left is None:
            return None
        self._finished.set(call)
        for name, value in output.items():
            if isinstance(value, Tensor):
                output[name] = self._full(call, value)
            elif isinstance(value, tuple) and name == "hidden_states":
                output[name] = tuple(None if state is None else self._full(call, state) for state in value)
        return output

    def _full(self, call: Packed, state: Tensor) -> Tensor:
        """A state [1, n, D] with all its rows again, those of the patches that are gone zero."""
        rows = call.states.get(state.shape[1])
        if rows is None:
            return state
        full = state.new_zeros(1, call.units * call.unit, state.shape[2])
        return full.index_copy(1, rows.to(state.device), state)

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        call = self._finished.get()
        self._finished.set(None)
        if call is None or call.left is None:
            return None
        gone = torch.ones(call.units, dtype=torch.bool, device=output.device)
        gone = gone.index_fill(0, call.left.to(output.device), False)
        return output.masked_fill(gone[:, None], torch.nan)
