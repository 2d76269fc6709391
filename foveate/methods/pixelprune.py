"""PixelPrune: squares of pixels that repeat what is left of them or above never enter the vision encoder.

After PixelPrune (2026; a filter of duplicates of 2 x 2 patches in front of Qwen3-VL's encoder). Written from its description.
Differs: a square is compared with its neighbours themselves, so that all are judged at once (the authors: with the last square
that was kept); a count or a share may be asked for as well as a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, ScoreMethod
from foveate.core.site import SiteKind
from foveate.core.view import Observation, Pixels, TokenView

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class PixelPrune(ScoreMethod):
    """Keep the squares that differ most from their nearer neighbour, left or above; the first square of a picture always.

    A square is what becomes one visual token. The difference is the largest of any pixel value, as a share of the picture's
    range of values: `keep=threshold:0.01` drops what repeats up to a hundredth of it, and the count follows the picture. Use it
    at `site=vision, layer=0`, where nothing of the encoder has run yet.
    """

    sites = (SiteKind.VISION_LAYER,)
    thresholds = True
    paper = "PixelPrune, 2026"

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (cls(),)

    def needs(self) -> tuple[Observation, ...]:
        return (Pixels(),)

    def score(self, view: TokenView) -> Tensor:
        import torch

        pixels = view.observe(Pixels()).nan_to_num(0.0)  # [G, N, D]
        low, high = pixels.amin((1, 2)), pixels.amax((1, 2))
        scale = (high - low).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        nearer = torch.full(pixels.shape[:2], torch.inf, device=pixels.device)
        for down, across in ((0, 1), (1, 0)):
            other, exists = _neighbours(view.coords, down, across)
            own = pixels.gather(1, other[..., None].expand_as(pixels)).sub_(pixels).abs_().amax(2) / scale
            nearer = torch.minimum(nearer, own.masked_fill(~exists, torch.inf))
        # What differs behind the sixth decimal is rounding.
        return nearer.clamp(max=1.0).round(decimals=6)


def _neighbours(coords: Tensor, down: int, across: int) -> tuple[Tensor, Tensor]:
    """[G, N] the token that far above and left of each, and whether there is one; `coords` [G, N, 3] lie in raster order."""
    import torch

    # One column and one line more than there are, so that nobody's neighbour is across an edge.
    tall, wide = (coords[..., axis].amax(1, keepdim=True) + 2 for axis in (1, 2))
    place = ((coords[..., 0] * tall + coords[..., 1]) * wide + coords[..., 2]).contiguous()
    wanted = place - (down * wide + across)
    found = torch.searchsorted(place, wanted).clamp(max=place.shape[1] - 1)
    return found, place.gather(1, found) == wanted
