"""Where the tokens of an answer look: attention rows by decoder layer, and their shares by kind of token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

from foveate.core.layout import Layout, Medium, Role
from foveate.errors import InputError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor

# The kinds of token that attention is shared among, in the order of the last dimension of shares (FastV, Sec. 3.2).
KINDS = (Role.SYSTEM, Role.VISUAL, Role.INSTRUCT, Role.OUTPUT)


class Raters(str, Enum):
    """Whose attention: that of the answer's tokens, averaged, or that of the prompt's last token."""

    OUTPUT = "output"
    INSTRUCTION = "instruction"


@dataclass(frozen=True)
class AttentionStudy:
    """Attention of one generate() call, averaged over heads. Everything lives on the CPU.

    Source: Chen et al., ECCV 2024, arXiv:2403.06764, Sec. 3.

    Attributes:
        layers: the decoder layers that were measured, L of them, ascending.
        windows: the sliding window of each of these layers in tokens, None for full attention.
        layout: roles of the prompt's columns and of the answer's, S in all. Padding after a shorter answer is padding.
        answers: [B] tensors of token ids, without the end token.
        rows: for each kind of rater [L, B, S] fp32, each row a mean of softmax rows: it sums to 1, or to 0 where the
            answer has no token that could rate.
    """

    layers: tuple[int, ...]
    windows: tuple[int | None, ...]
    layout: Layout
    answers: tuple[Tensor, ...]
    rows: Mapping[Raters, Tensor]

    def token_counts(self) -> Tensor:
        """[B, 4] long, tokens of each of `KINDS`. Visual tokens include separators, which lie on no grid."""
        return torch.stack([self.layout.is_role(kind).sum(1) for kind in KINDS], dim=1)

    def shares(self, raters: Raters) -> Tensor:
        """[L, B, 4] fp32, how a rater's attention is divided among `KINDS` (the paper's lambda): they sum to 1."""
        rows = self.rows[raters]
        return torch.stack([(rows * self.layout.is_role(kind)).sum(2) for kind in KINDS], dim=2)

    def efficiency(self, raters: Raters) -> Tensor:
        """[L, B, 4] fp32, share divided by the number of tokens of that kind (the paper's phi); nan where there are none.

        A layer with a sliding window divides by all tokens too, also by those outside its window.
        """
        counts = self.token_counts()
        return torch.where(counts > 0, self.shares(raters) / counts.clamp(min=1), torch.nan)

    def received(self, raters: Raters, medium: Medium) -> Tensor:
        """[L, N] fp32, attention that each grid token of a medium of the layout receives, in raster order."""
        if not any(medium is known for known in self.layout.media):
            raise InputError("this medium is not one of study.layout.media")
        return self.rows[raters][:, medium.row, medium.columns]

    def has_answer(self, row: int) -> bool:
        """Whether an output token of this row rated."""
        return bool(len(self.answers[row]))
