"""Pool3d: the average of size x size cells over several frames, a merge that ignores the content.

The pooling of PLLaVA (Xu et al., arXiv:2404.16994: `time=1, size=2`, 24 x 24 tokens of a frame become 12 x 12) and the averages
over time and space of STORM (Jiang et al., arXiv:2503.04130). Written from their descriptions.
Differs: what either trains around it (weights of the language model; an encoder over time) is not here; where a side is no
multiple of a cell's, the last cell is smaller (adaptive pooling has cells that overlap).
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.errors import SpecError
from foveate.ops.merging import weighted_mean


@dataclass(frozen=True)
class Pool3d(TokenMethod):
    """Average pooling of a video's grid over time and space; each cell's first token stands for it, weighted by sizes.

    A still image is one frame, and so is each of its crops: there it does what `pool` does.

    Attributes:
        time: how many frames a cell spans.
        size: side of a cell within a frame, in tokens.

    Raises:
        SpecError: for a cell of one token, which pools nothing.
    """

    time: int = 2
    size: int = 2

    needs_grid = True
    merges = True
    paper = "arXiv 2404.16994, 2503.04130"

    def __post_init__(self) -> None:
        if min(self.time, self.size) < 1 or self.time == self.size == 1:
            raise SpecError(f"pool3d(time={self.time}, size={self.size}): at least 1 each, and one of them at least 2")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(time=3), cls(time=1, size=3)

    def fixed_count(self, grid: tuple[int, int, int]) -> int:
        t, h, w = grid
        return -(-t // self.time) * -(-h // self.size) * -(-w // self.size)

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        assert view.grid is not None
        t, h, w = view.grid
        # Which tokens join which follows from the grid alone: found on the CPU, so that no device has to be waited for.
        sides = ((t, self.time), (h, self.size), (w, self.size))
        frame, down, across = (torch.arange(side, device="cpu") // cell * cell for side, cell in sides)
        host = ((frame[:, None, None] * h + down[:, None]) * w + across).flatten()  # [N], the first token of each one's cell
        kept = torch.nonzero(host == torch.arange(view.token_count, device="cpu")).flatten()
        groups, device = view.group_count, view.features.device
        kept, host = (own.to(device, non_blocking=True).expand(groups, -1).contiguous() for own in (kept, host))
        return weighted_mean(kept, host, view.sizes)
