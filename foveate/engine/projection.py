"""Bringing what is in logical space to the surviving tokens: rows, positions, masks. No mask semantics are known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def take(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather rows: values [B or 1, ..., S (at dim), ...], index [B, K] -> [B, ..., K, ...]."""
    batch, count = index.shape
    if values.shape[0] != batch:
        values = values.expand(batch, *values.shape[1:])
    shape = [1] * values.ndim
    shape[0], shape[dim] = batch, count
    target = list(values.shape)
    target[dim] = count
    return values.gather(dim, index.view(shape).expand(target))


def pack(keep: Tensor, lengths: list[int], pad_right: bool = False) -> tuple[Tensor, Tensor]:
    """Line up the kept columns of ragged rows, in their order.

    Args:
        keep: [B, S] bool.
        lengths: kept columns per row, known on the host, so that no device has to be waited for.
        pad_right: put the holes of shorter rows on the right, where the batch has its padding too.

    Returns:
        index [B, K] long with K = max(lengths), and valid [B, K] bool, False at the holes.
    """
    width = max(lengths)
    order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True, descending=pad_right)
    index = order[:, :width] if pad_right else order[:, keep.shape[1] - width :]
    slot, length = torch.arange(width, device="cpu")[None], torch.tensor(lengths, device="cpu")[:, None]
    valid = slot < length if pad_right else slot >= width - length
    return index, valid.to(keep.device, non_blocking=True)


@dataclass(frozen=True)
class Alive:
    """The tokens of this pass that reach a layer.

    Attributes:
        index: [B, n] column (within this pass) of every token, arbitrary at holes.
        valid: [B, n] bool, False at holes.
        lengths: tokens per row.
        slot_of: [B, S] token of every column, arbitrary for columns that are gone.
    """

    index: Tensor
    valid: Tensor
    lengths: tuple[int, ...]
    slot_of: Tensor

    @classmethod
    def of(cls, keep: Tensor, lengths: list[int], pad_right: bool = False) -> Alive:
        """From the columns that stay, [B, S] bool, how many each row has, and where shorter rows have their holes."""
        index, valid = pack(keep, lengths, pad_right)
        order = torch.arange(index.shape[1], device=index.device).expand_as(index)
        # Holes write to a column after the last one, which is cut off.
        target = torch.where(valid, index, keep.shape[1])
        slots = torch.zeros(keep.shape[0], keep.shape[1] + 1, dtype=torch.long, device=keep.device)
        return cls(index, valid, tuple(lengths), slots.scatter(1, target, order)[:, :-1])

    @property
    def all_valid(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lengths) == max(self.lengths)

    def columns(self, past: int) -> Tensor:
        """[B, n] column within the whole conversation, -1 at holes."""
        return torch.where(self.valid, self.index + past, -1)

    def to(self, device: torch.device) -> Alive:
        """The same on another device, for models spread over several."""
        if self.index.device == device:
            return self
        return Alive(self.index.to(device), self.valid.to(device), self.lengths, self.slot_of.to(device))


def project_positions(embeddings: Any, alive: Alive) -> Any:
    """Rotary cos and sin of the surviving tokens: original positions stay. Accepts a tensor, or a tuple of them.

    Shapes [1 or B, S, D] give [B, n, D]; the [3, B, S, D] of M-RoPE before transformers 5.20 gives [3, B, n, D].
    """
    if isinstance(embeddings, (tuple, list)):
        return tuple(project_positions(part, alive) for part in embeddings)
    if embeddings.ndim == 4:
        return torch.stack([take(part, alive.index, 1) for part in embeddings])
    return take(embeddings, alive.index, 1)


def scatter_back(hidden: Tensor, alive: Alive, columns: int) -> Tensor:
    """States [B, n, D] at their columns [B, columns, D]; zeros where tokens are gone."""
    index = torch.where(alive.valid, alive.index, columns)
    full = hidden.new_zeros(hidden.shape[0], columns + 1, hidden.shape[2])
    return full.scatter(1, index[..., None].expand(-1, -1, hidden.shape[2]), hidden)[:, :columns]


def project_mask(
    mask: Any,
    positions: Tensor,
    alive: Alive | None,
    past: int,
    queries: int,
    all_valid: bool,
    pad_free: bool,
    implementation: str,
    dtype: torch.dtype,
    first_key: int | None = None,
) -> Any:
    """The attention mask of a layer for the tokens and slots it really has.

    Args:
        mask: what transformers made in logical space: None, [B or 1, 1 or H, Q, KV] bool or additive, [B, KV] (flash) or a
            BlockMask (flex).
        positions: [B, P] column of every key the layer will see, -1 at holes.
        alive: tokens of this pass at this layer, None for all.
        past, queries: columns before and in this pass.
        all_valid: whether no key is a hole.
        pad_free: whether no key is a padding column.
        implementation: attention implementation, for a mask that has to be made from nothing.
        dtype: of the hidden states.
        first_key: the column that the mask's first key stands for; None if its last key is the last column.
    """
    if mask is None:
        # Without padding and holes, causal-by-slot is what the kernel's own causal flag does.
        return None if all_valid else _build_mask(positions, alive, past, queries, implementation, dtype)
    if isinstance(mask, BlockMask):
        return _project_block_mask(mask, positions, alive, past + queries, first_key)
    key_columns = mask.shape[-1]
    columns = positions - (past + queries - key_columns if first_key is None else first_key)
    good = (columns >= 0) & (positions >= 0)
    columns = columns.clamp(0, key_columns - 1)
    if mask.ndim == 2:
        # Every slot holds a real token: known on the host, so flash keeps its unpadded path without a sync.
        return None if all_valid and pad_free else take(mask, columns, 1).bool() & good
    rows = alive.index if alive is not None and mask.shape[2] == queries else None
    projected = _gather_mask(mask, rows, columns)
    good = good[:, None, None]
    if mask.dtype == torch.bool:
        return projected & good
    return torch.where(good, projected, torch.finfo(mask.dtype).min)


def _gather_mask(mask: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    if mask.shape[1] == 1 and rows is not None:
        batch = torch.arange(columns.shape[0], device=mask.device)[:, None, None]
        if mask.shape[0] == 1:
            batch = torch.zeros_like(batch)
        # One indexing step: two gathers would hold an [n, KV] tensor in between.
        return mask[:, 0][batch, rows[:, :, None], columns[:, None, :]][:, None]
    if rows is not None:
        mask = take(mask, rows, 2)
    return take(mask, columns, 3)


def _build_mask(
    positions: Tensor, alive: Alive | None, past: int, queries: int, implementation: str, dtype: torch.dtype
) -> Any:
    """Causal, holes hidden, for batches that transformers saw without padding."""
    good = positions >= 0
    batch, key_count = positions.shape
    if "flash" in implementation:
        return good
    # By column and not by slot: a static cache has empty slots after the last token.
    asking = torch.arange(past, past + queries, device=positions.device).expand(batch, -1)
    asking = asking if alive is None else alive.columns(past)
    if "flex" in implementation:
        return create_block_mask(
            lambda b, h, q, kv: (positions[b, kv] <= asking[b, q]) & good[b, kv],
            batch,
            None,
            asking.shape[1],
            key_count,
            device=positions.device,
            _compile=False,
        )
    mask = ((positions[:, None] <= asking[:, :, None]) & good[:, None])[:, None]
    if implementation == "eager":
        return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
    return mask


def _project_block_mask(mask: BlockMask, positions: Tensor, alive: Alive | None, end: int, first_key: int | None) -> BlockMask:
    original, (queries, key_columns) = mask.mask_mod, mask.seq_lengths
    batch = positions.shape[0]
    rows = torch.arange(queries, device=positions.device).expand(batch, -1) if alive is None else alive.index
    rows, columns = rows.contiguous(), (positions - (end - key_columns if first_key is None else first_key)).contiguous()

    def projected(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        column = columns[b, kv]
        seen: Tensor = original(b, h, rows[b, q], column.clamp(min=0)) & (column >= 0) & (positions[b, kv] >= 0)
        return seen

    return create_block_mask(projected, batch, None, rows.shape[1], positions.shape[1], device=positions.device, _compile=False)
