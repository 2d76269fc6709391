"""SparseVLM: the words of the question that match the picture rate it, and part of what they reject is recycled.

Zhang et al., ICML 2025, arXiv:2410.04417, Sec. 3. Written from the paper's mathematics and the observed behaviour of the
authors' program.
Differs: recycled tokens count, so that exactly the stage's budget stays (the authors put them on top); a cluster stands where
its centre stood, and is the mean of its tokens (as in the program; the paper adds them up); no noise decides between equal
tokens; the paper's adaptive count by the rank of the attention map is left out, as it is in the program. The authors' layers
and counts are presets of `staged`.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.method import Method, TokenMethod, top_indices
from foveate.core.selection import Selection
from foveate.core.site import SiteKind
from foveate.core.view import AttentionRows, Observation, TokenView
from foveate.errors import SpecError
from foveate.ops.clustering import density_peaks, pairs_of_peaks
from foveate.ops.merging import removed_indices, take_rows


@dataclass(frozen=True)
class SparseVLM(TokenMethod):
    """Keep the tokens that the matching words attend to most; the best of the others become a few means of similar tokens.

    A word matches if it takes more than its share of a softmax over the words, from the visual tokens as they enter the
    language model. Of the rejected tokens a share goes on, ten of them in one.

    Attributes:
        recycle: share of the rejected tokens that are recycled, the best-rated ones; 0 for none.
    """

    recycle: float = 0.3

    sites = (SiteKind.LLM_LAYER,)
    merges = True
    paper = "arXiv 2410.04417"
    published = "95.2, 95.6 and 86.0 % of full at 192, 128 and 64 of 576 tokens (LLaVA-1.5-7B, 9 benchmarks; the FSR paper)"

    def __post_init__(self) -> None:
        if not 0 <= self.recycle <= 1:
            raise SpecError(f"sparsevlm(recycle={self.recycle:g}): a share from 0 to 1, e.g. recycle=0.3")

    @classmethod
    def examples(cls) -> tuple[Method, ...]:
        return cls(), cls(recycle=1.0), cls(recycle=0.0)

    def pairs_at_once(self, tokens: int) -> int:
        return pairs_of_peaks(min(int(tokens * self.recycle) + 1, tokens)) if self.recycle else 0

    def needs(self) -> tuple[Observation, ...]:
        return (AttentionRows("matched"),)

    def recycled(self, count: int, keep: int) -> tuple[int, int]:
        """How many of `count` tokens are recycled, and how many of the `keep` they become; one at least is no cluster."""
        sources = clusters = 0
        while self.recycle and keep < count:
            rejected = count - keep + clusters
            sources = min(int(rejected * self.recycle) + 1, rejected)
            wanted = min(sources // 10 + 1, keep - 1)
            if wanted == clusters:
                break
            clusters = wanted
        return sources, clusters

    def select(self, view: TokenView, keep: int) -> Selection:
        import torch

        score = view.observe(self.needs()[0]).mean(1)  # [G, H, N] -> [G, N]
        sources, clusters = self.recycled(view.token_count, keep)
        if clusters in (0, sources):
            return Selection(top_indices(score, keep))
        order = torch.argsort(score, dim=1, descending=True, stable=True)
        plain, source = order[:, : keep - clusters], order[:, keep - clusters :][:, :sources].sort(1).values
        place, host = density_peaks(take_rows(view.features, source), clusters)  # among the sources
        centre = source.gather(1, place)
        joining = removed_indices(place, sources)
        members = torch.zeros_like(place).scatter_add(1, host, torch.ones_like(host))
        share = 1 / members.float()
        kept = torch.cat([plain, centre], 1).sort(1).values
        own = torch.ones_like(score).scatter(1, centre, share)
        slot = host.gather(1, joining)
        return Selection(
            kept,
            source=source.gather(1, joining),
            target=centre.gather(1, slot),
            weight=share.gather(1, slot),
            self_weight=own.gather(1, kept),
            conserving=False,
        )
