"""What a method answers: which tokens stay, and where the others go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foveate.errors import MethodError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The tokens of each group that stay, and the merges into them.

    `h[target] = self_weight * h[target] + sum(weight * h[source])`, over the old values, in fp32.

    Attributes:
        kept: [G, K] long, ascending token indices.
        source, target: [G, E] long token indices of the merge edges, or None for a plain drop. Targets are kept tokens.
        weight: [G, E] fp32 weight of each edge.
        self_weight: [G, K] fp32 weight of each kept token's own value, in the order of `kept`.
        conserving: every source has at most one target, so sizes add up.
    """

    kept: Tensor
    source: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    self_weight: Tensor | None = None
    conserving: bool = True

    @property
    def is_merge(self) -> bool:
        """Whether dropped tokens flow into kept ones."""
        return self.source is not None

    def check_shapes(self, group_count: int, token_count: int, keep: int) -> None:
        """Raise MethodError unless all shapes and dtypes fit. Costs no device sync."""
        import torch

        if tuple(self.kept.shape) != (group_count, keep) or self.kept.dtype != torch.long:
            raise MethodError(
                f"kept has shape {tuple(self.kept.shape)} and dtype {self.kept.dtype}; "
                f"the budget asks for ({group_count}, {keep}) and long, out of {token_count} tokens"
            )
        edges = (self.source, self.target, self.weight)
        if any(part is None for part in edges) != all(part is None for part in edges):
            raise MethodError("source, target and weight must be given together")
        if self.source is None or self.target is None or self.weight is None:
            if self.self_weight is not None:
                raise MethodError("self_weight belongs to a merge: give source, target and weight too")
            return
        if self.source.ndim != 2 or self.source.shape[0] != group_count:
            raise MethodError(f"source has shape {tuple(self.source.shape)}: edges are [G, E] with G = {group_count}")
        if self.source.dtype != torch.long or self.target.dtype != torch.long:
            raise MethodError(f"source and target must be long, not {self.source.dtype} and {self.target.dtype}")
        if self.source.shape != self.target.shape or self.source.shape != self.weight.shape:
            raise MethodError("source, target and weight must have the same shape [G, E]")
        if self.self_weight is None or self.self_weight.shape != self.kept.shape:
            raise MethodError("a merge needs self_weight of the shape of kept, [G, K]")

    def check_values(self, token_count: int) -> None:
        """Raise MethodError unless indices are in range, ascending and unique. Reads values: a sync on accelerators."""
        import torch

        kept = self.kept
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= token_count):
            raise MethodError(f"kept holds an index outside 0..{token_count - 1}")
        if kept.shape[1] > 1 and bool((kept[:, 1:] <= kept[:, :-1]).any()):
            raise MethodError("kept must be ascending without repeats")
        if self.source is None or self.target is None or self.source.numel() == 0:
            return
        if int(self.source.min()) < 0 or int(self.source.max()) >= token_count:
            raise MethodError(f"source holds an index outside 0..{token_count - 1}")
        is_kept = torch.zeros(kept.shape[0], token_count, dtype=torch.bool, device=kept.device).scatter_(1, kept, True)
        if int(self.target.min()) < 0 or int(self.target.max()) >= token_count:
            raise MethodError(f"target holds an index outside 0..{token_count - 1}")
        if not bool(is_kept.gather(1, self.target).all()):
            raise MethodError("every target must be a kept token")
        if self.conserving:
            if bool(is_kept.gather(1, self.source).any()):
                raise MethodError("a conserving merge cannot use a kept token as a source")
            uses = torch.zeros(kept.shape[0], token_count, dtype=torch.long, device=kept.device)
            uses.scatter_add_(1, self.source, torch.ones_like(self.source))
            if int(uses.max()) > 1:
                raise MethodError("a conserving merge gives each source one target")

    def kept_sizes(self, sizes: Tensor) -> Tensor:
        """Sizes [G, K] of the kept tokens after the merge, given the sizes [G, N] before it."""
        if self.source is None or self.target is None or not self.conserving:
            return sizes.gather(1, self.kept)
        grown = sizes.scatter_add(1, self.target, sizes.gather(1, self.source))
        return grown.gather(1, self.kept)

    def with_last(self, asks: Tensor, token_count: int) -> Selection:
        """The same with the last token kept in the groups that `asks` [G] bool: it changes places with the last kept one."""
        import torch

        last = token_count - 1
        place = torch.where(asks, self.kept[:, -1], last)[:, None]

        def swapped(index: Tensor) -> Tensor:
            return torch.where(index == place, last, torch.where(index == last, place.expand_as(index), index))

        if self.source is None or self.target is None:
            return replace(self, kept=swapped(self.kept))
        return replace(self, kept=swapped(self.kept), source=swapped(self.source), target=swapped(self.target))

    def matrix(self, group: int, token_count: int) -> Tensor:
        """The stage as a sparse matrix [K, N] on the CPU: row i says what kept token i is made of."""
        import torch

        kept = self.kept[group].cpu()
        rows, columns = torch.arange(len(kept), device="cpu"), kept
        own = self.self_weight
        weights = torch.ones(len(kept), dtype=torch.float32, device="cpu") if own is None else own[group].float().cpu()
        if self.source is not None and self.target is not None and self.weight is not None:
            slot = torch.zeros(token_count, dtype=torch.long, device="cpu")
            slot[kept] = torch.arange(len(kept), device="cpu")
            rows = torch.cat([rows, slot[self.target[group].cpu()]])
            columns = torch.cat([columns, self.source[group].cpu()])
            weights = torch.cat([weights, self.weight[group].float().cpu()])
        return torch.sparse_coo_tensor(
            torch.stack([rows, columns]), weights, (len(kept), token_count), check_invariants=False
        ).coalesce()


def merge_values(values: Tensor, selection: Selection) -> Tensor:
    """Apply the merge edges of a selection to values [G, N, D]; kept positions change, the others are left as they are.

    Sums run in fp32 whatever the dtype of `values`, because a half-precision sum over hundreds of sources overflows.
    """
    import torch

    if selection.source is None or selection.target is None or selection.weight is None or selection.self_weight is None:
        return values
    wide = values.float()
    width = values.shape[-1]
    own = torch.ones(values.shape[:2], dtype=torch.float32, device=values.device)
    own = own.scatter(1, selection.kept, selection.self_weight.float())
    merged = wide * own[..., None]
    flow = wide.gather(1, selection.source[..., None].expand(-1, -1, width)) * selection.weight.float()[..., None]
    merged = merged.scatter_add(1, selection.target[..., None].expand(-1, -1, width), flow)
    return merged.to(values.dtype)
