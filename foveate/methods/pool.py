"""Pool: a control. Average size x size cells of the grid into their first token, a merge that ignores the content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.errors import SpecError

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch


@dataclass(frozen=True)
class Pool(TokenMethod):
    """Average pooling of each frame's grid; cells at the right and bottom border may be smaller.

    Attributes:
        size: side of a cell in tokens; 2 keeps a quarter.
    """

    size: int = 2

    needs_grid = True
    merges = True
    paper = "control"

    def __post_init__(self) -> None:
        if self.size < 2:
            raise SpecError(f"pool(size={self.size}): a cell is at least 2 tokens wide")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(size=3)

    def fixed_count(self, grid: tuple[int, int, int]) -> int:
        t, h, w = grid
        return t * -(-h // self.size) * -(-w // self.size)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        assert view.grid is not None
        _, _, w = view.grid
        coords, count = view.coords, view.token_count
        index = torch.arange(count, device=coords.device).expand(view.group_count, -1)
        # The cell's first token is its upper left one: step back to the cell's corner in raster order.
        host = index - (coords[..., 1] % self.size) * w - coords[..., 2] % self.size
        # Which tokens are hosts follows from the grid alone: found on the CPU, so that no device has to be waited for.
        is_host = self._is_host(view.grid)
        kept = torch.nonzero(is_host).flatten().to(host.device, non_blocking=True).expand(view.group_count, -1).contiguous()
        source = torch.nonzero(~is_host).flatten().to(host.device, non_blocking=True).expand(view.group_count, -1).contiguous()
        total = torch.zeros_like(view.sizes).scatter_add(1, host, view.sizes)
        share = view.sizes / total.gather(1, host)
        return Selection(
            kept,
            source=source,
            target=host.gather(1, source),
            weight=share.gather(1, source),
            self_weight=share.gather(1, kept),
        )

    def _is_host(self, grid: tuple[int, int, int]) -> torch.Tensor:
        import torch

        t, h, w = grid
        down, across = torch.arange(h, device="cpu"), torch.arange(w, device="cpu")
        corner = (down[:, None] % self.size == 0) & (across[None] % self.size == 0)
        return corner.expand(t, h, w).flatten()
