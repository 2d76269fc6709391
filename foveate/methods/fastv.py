"""FastV: drop the visual tokens that receive the least attention, one decoder layer before the cut.

Chen et al., ECCV 2024, arXiv:2403.06764, Sec. 4.1. Written from the paper.
Differs from the authors' code: attention rows are computed from queries and keys, never an N x N map; every image and
every batch row is ranked on its own; the visual span comes from the prompt, not from constants. Half a token rounds up by
default; `rounding=half_even` is what their Hugging Face code does (24 of 49 at a half).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method, ScoreMethod, top_indices
from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows, Observation, TokenView
from foveate.methods._query import check_query, window_of
from foveate.ops.windows import window_top_indices

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class FastV(ScoreMethod):
    """Rank visual tokens by the attention they receive, averaged over heads and rater rows.

    Attributes:
        query: whose attention counts: "last" prompt token (the authors' code), "text" (the instruction after the last
            image), "all" tokens (the paper's text) or "window:w" (the last w tokens).
        rope: False scores without the rotary embedding, which favours tokens near the end (FEATHER, arXiv 2412.13180).
        topk: "global", or "window:s" to choose within s x s windows (Window FastV, arXiv 2502.11501).
    """

    query: str = "last"
    rope: bool = True
    topk: str = "global"

    sites = (SiteKind.LLM_LAYER,)
    reads_features = False
    paper = "arXiv 2403.06764"
    published = (
        "87.2 and 68.1 % of full on 11 tasks at 25 and 10 % of the tokens, DocVQA 81.2 and 51.9 of 94.9 "
        "(Qwen2.5-VL-7B; Tencent AngelSlim)"
    )

    def __post_init__(self) -> None:
        check_query("fastv", self.query)
        if self.topk != "global":
            window_of("fastv", "topk", self.topk, "global or window:s, e.g. topk=window:4")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return (
            cls(),
            cls(query="text"),
            cls(query="all"),
            cls(query="window:3", topk="window:2"),
            cls(rope=False),
            cls(query="all", rope=False, topk="window:3"),
        )

    def needs(self) -> tuple[Observation, ...]:
        return (AttentionRows(self.query, self.rope),)

    def score(self, view: TokenView) -> Tensor:
        return view.observe(self.needs()[0]).mean(dim=1)  # [G, H, N] -> [G, N]

    def choose(self, score: Tensor, view: TokenView, keep: int) -> Tensor:
        if self.topk == "global":
            return top_indices(score, keep)
        return window_top_indices(score, view.coords, keep, window_of("fastv", "topk", self.topk, "window:s"))
