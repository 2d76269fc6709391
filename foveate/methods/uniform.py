"""Uniform: a control. Evenly spread over the tokens in raster order, the middle of each of `keep` equal stretches."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import TokenView


@dataclass(frozen=True)
class Uniform(TokenMethod):
    """Keep evenly spread tokens, whatever they show."""

    reads_features = False
    sites = (SiteKind.VISION_LAYER, SiteKind.PRE_LLM, SiteKind.LLM_LAYER)
    paper = "control"

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        # Integer arithmetic: floor((2i + 1) * N / (2 keep)) is exact and strictly increasing for keep <= N.
        steps = torch.arange(keep, device=view.features.device)
        index = (2 * steps + 1) * view.token_count // (2 * keep)
        return Selection(index.expand(view.group_count, -1).contiguous())
