"""Provenance of encoder stages where the model makes its visual tokens of several rows of the encoder, or shrinks them.

Stages choose patches, the trace speaks of visual tokens. After each stage a token lives while a patch that it shows lives;
after the last one the tokens that the language model really gets. What a token is made of is computed exactly, patch by patch
through all stages, and then told in tokens: patches that it shows anyway count for itself, others, which were merged into
those, for the token in whose place they lie (the one they weigh most in). Patches in padding lie in no token's place; what a
token has of them is left out, so its weights then sum to less than 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foveate.core.selection import Selection
from foveate.core.shape import MediumShape
from foveate.core.sparse import block_diagonal, product

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class EncoderRecord:
    """The encoder's stages of one medium; tensors stay on the device until somebody looks.

    Attributes:
        medium: its key in the trace.
        rows: for each row of the encoder its stages: (text, the method's answer, row of this one in it, patches it chose from).
        kept: [K] long, grid tokens that reach the language model, ascending.
    """

    medium: int
    rows: tuple[tuple[tuple[str, Selection, int, int], ...], ...]
    kept: Tensor


def tiled_stages(shape: MediumShape, record: EncoderRecord) -> list[tuple[str, Tensor, Tensor]]:
    """(text, matrix [K, grid tokens], kept tokens [K]) after each stage."""
    shown = block_diagonal([canvas.weights() for canvas in shape.canvases])  # [tokens, patches of the rows that show something]
    rows = record.rows[: sum(canvas.rows for canvas in shape.canvases)]
    alive, whole = torch.arange(shown.shape[1], device="cpu"), None
    reached = record.kept.cpu()
    stages = []
    for number, (text, *_) in enumerate(rows[0]):
        answers = [row[number] for row in rows]
        part = block_diagonal([selection.matrix(group, count) for _, selection, group, count in answers])
        sizes = torch.tensor([0] + [count for *_, count in answers], device="cpu").cumsum(0)
        kept = [selection.kept[group].cpu() + size for (_, selection, group, _), size in zip(answers, sizes, strict=False)]
        alive = alive[torch.cat(kept)]
        whole = part if whole is None else product(part, whole)  # [patches left, patches]
        means, tokens = _means(shown, alive)
        if number == len(rows[0]) - 1:
            means, tokens = _rows(means, torch.isin(tokens, reached)), reached
        stages.append((text, _in_tokens(product(means, whole), tokens, shown), tokens))
    return stages


def _means(shown: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """[K, patches left] what the K tokens that are still covered are means of, and these tokens."""
    (token, patch), weight = shown.indices(), shown.values()
    slot = torch.full((shown.shape[1],), -1, device="cpu").scatter(0, alive, torch.arange(len(alive), device="cpu"))
    left = slot[patch] >= 0
    token, patch, weight = token[left], slot[patch[left]], weight[left]
    coverage = torch.zeros(shown.shape[0], dtype=torch.float32, device="cpu").index_add(0, token, weight)
    tokens, row = torch.unique(token, return_inverse=True)
    index, size = torch.stack([row, patch]), (len(tokens), len(alive))
    return torch.sparse_coo_tensor(index, weight / coverage[token], size, check_invariants=False).coalesce(), tokens


def _rows(matrix: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows, [rows] bool, of a coalesced matrix."""
    (row, column), number = matrix.indices(), chosen.cumsum(0) - 1
    inside = chosen[row]
    index, size = torch.stack([number[row[inside]], column[inside]]), (int(chosen.sum()), matrix.shape[1])
    return torch.sparse_coo_tensor(index, matrix.values()[inside], size, check_invariants=False).coalesce()


def _in_tokens(made_of: Tensor, tokens: Tensor, shown: Tensor) -> Tensor:
    """[K, grid tokens] from [K, patches] what each token is made of."""
    (row, patch), weight = made_of.indices(), made_of.values()
    own = tokens[row]
    (token, seen), share = shown.indices(), shown.values()
    patches = shown.shape[1]
    shows = torch.isin(own * patches + patch, token * patches + seen)
    most = torch.zeros(patches, dtype=torch.float32, device="cpu").scatter_reduce(0, seen, share, "amax")
    best = share == most[seen]
    nowhere = shown.shape[0]
    place = torch.full((patches,), nowhere, device="cpu").scatter_reduce(0, seen[best], token[best], "amin")
    column = torch.where(shows, own, place[patch])
    inside = column < nowhere
    index, size = torch.stack([row[inside], column[inside]]), (len(tokens), nowhere)
    return torch.sparse_coo_tensor(index, weight[inside], size, check_invariants=False).coalesce()
