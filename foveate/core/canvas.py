"""How patches of an encoder's rows become a grid of visual tokens: tiles side by side, padding cut away, the rest shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a cost estimate needs no torch
    import torch
    from torch import Tensor

# Multiples of the golden ratio's fraction fall evenly over [0, 1), however many are taken.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Canvas:
    """One grid of visual tokens, as the model lays it out of rows of its vision encoder.

    Attributes:
        tiles: (down, across): rows of the encoder, row by row side by side.
        tile: (h, w) patches of each of them.
        box: (top, left, height, width) in patches, what is left when padding is cut away.
        grid: (h, w) in visual tokens; the box is shrunk to it where it is larger.
        stride: side of the squares of patches that are averaged; 0 where bilinear interpolation shrinks.
    """

    tiles: tuple[int, int]
    tile: tuple[int, int]
    box: tuple[int, int, int, int]
    grid: tuple[int, int]
    stride: int = 0

    @classmethod
    def of_row(cls, tile: tuple[int, int], grid: tuple[int, int], stride: int = 0) -> Canvas:
        """The canvas of a single row without padding."""
        return cls((1, 1), tile, (0, 0, *tile), grid, stride)

    @property
    def rows(self) -> int:
        """Rows of the encoder."""
        return self.tiles[0] * self.tiles[1]

    @property
    def patches(self) -> int:
        """Patches of each row."""
        return self.tile[0] * self.tile[1]

    @property
    def tokens(self) -> int:
        """Visual tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def shrinks(self) -> bool:
        """Whether a token is made of several patches."""
        return self.box[2:] != self.grid

    def share(self, patches: int) -> int:
        """Tokens that stay when `patches` of each row stay: the same share, half up, at least 1."""
        return max(1, (2 * self.tokens * patches + self.patches) // (2 * self.patches))

    def left(self, patches: int) -> int | None:
        """Tokens that stay (`choose`) when `patches` of each row stay; None where that depends on which patches these are."""
        if patches == self.patches:
            return self.tokens
        (down, across), (height, width) = self.tiles, self.tile
        if self.box != (0, 0, down * height, across * width):
            return None  # patches in padding make no token
        if not self.shrinks:
            return self.rows * patches
        # Squares of s * s patches: as many tokens live as can, so at least the share that stays.
        whole = self.stride and (self.grid[0] * self.stride, self.grid[1] * self.stride) == self.box[2:]
        return self.share(patches) if whole else None

    def spread(self, values: Tensor) -> Tensor:
        """A number for each token [..., tokens] from one for each patch [..., rows, patches], as the model does to features."""
        (down, across), (height, width) = self.tiles, self.tile
        side_by_side = values.view(*values.shape[:-2], down, across, height, width).transpose(-3, -2)
        canvas = side_by_side.reshape(*values.shape[:-2], down * height, across * width)
        top, left, rows, columns = self.box
        inside = canvas[..., top : top + rows, left : left + columns]
        if self.shrinks:
            down_weights, across_weights = self._axes(values.device)
            inside = down_weights @ inside @ across_weights.T
        return inside.flatten(-2)

    def weights(self) -> Tensor:
        """[tokens, rows * patches], sparse and coalesced: which patches each token is made of, with which weights."""
        import torch

        top, left, rows, columns = self.box
        (down, across), (height, width) = self.tiles, self.tile
        numbers = torch.arange(self.rows * self.patches, device="cpu").view(down, across, height, width).transpose(1, 2)
        inside = numbers.reshape(down * height, across * width)[top : top + rows, left : left + columns]
        size = (self.tokens, self.rows * self.patches)
        if not self.shrinks:
            index, weight = (
                torch.stack([torch.arange(self.tokens, device="cpu"), inside.flatten()]),
                torch.ones(self.tokens, dtype=torch.float32, device="cpu"),
            )
            return torch.sparse_coo_tensor(index, weight, size, check_invariants=False).coalesce()
        down_weights, across_weights = self._axes(torch.device("cpu"))
        (y, v), (x, u) = (torch.nonzero(axis, as_tuple=True) for axis in (down_weights, across_weights))
        token = (y[:, None] * self.grid[1] + x).flatten()
        weight = (down_weights[y, v][:, None] * across_weights[x, u]).flatten()
        patch = inside[v[:, None], u[None]].flatten()
        return torch.sparse_coo_tensor(torch.stack([token, patch]), weight, size, check_invariants=False).coalesce()

    def _axes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[h, box h] and [w, box w]: shrinking is the same linear map along each axis."""
        import torch

        down, across = (
            self._axis(torch.eye(inputs, device=device, dtype=torch.float32)[None], outputs)
            for inputs, outputs in zip(self.box[2:], self.grid, strict=True)
        )
        return down, across

    def _axis(self, each: Tensor, outputs: int) -> Tensor:
        import torch

        if self.stride:
            shrunk = torch.nn.functional.avg_pool1d(each, self.stride)
        else:
            shrunk = torch.nn.functional.interpolate(each, size=outputs, mode="linear")
        # A position that is a whole number up to rounding would have a neighbour with a weight of rounding.
        return shrunk[0].T.where(shrunk[0].T > 1e-5, 0.0)

    def choose(self, coverage: Tensor, patches: int) -> Tensor:
        """Which tokens stay when `patches` of each row stay: all that something is left of, of shrunk ones only their share.

        Args:
            coverage: [..., tokens], the part of each token that is left, `spread` of ones where patches live.
            patches: of each row, still alive.

        Returns:
            [..., tokens] bool. The best covered stay; of equally covered ones some here and some there.
        """
        import torch

        alive = coverage > 0
        if not self.shrinks:
            return alive
        scattered = (torch.arange(self.tokens, dtype=torch.float64, device="cpu") * _GOLDEN % 1).argsort()
        scattered = scattered.to(coverage.device, non_blocking=True)
        # Equal coverage differs in the last bits; what differs in the first four digits is not equal.
        order = coverage.round(decimals=4)[..., scattered].argsort(dim=-1, descending=True, stable=True)
        best = scattered[order[..., : self.share(patches)]]
        return alive & torch.zeros_like(alive).scatter(-1, best, True)
