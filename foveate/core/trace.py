"""What each stage kept, with provenance down to the visual tokens that the processor made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from foveate.core.layout import Medium
from foveate.core.selection import Selection
from foveate.core.sparse import block, block_diagonal, product
from foveate.core.tiled_trace import EncoderRecord, tiled_stages

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class GroupRecord:
    """One group of one stage, as the engine saw it; tensors stay on the device until somebody looks.

    Attributes:
        stage: canonical text of the stage.
        owner: [N] long, key of the medium that each of the group's arriving tokens belongs to.
        selection: the method's answer for a batch of groups, of which this is row `group`.
    """

    stage: str
    owner: Tensor
    selection: Selection
    group: int


@dataclass
class MediumTrace:
    """What became of one image or video.

    Attributes:
        medium: row, index, grid and columns.
        stages: (text of the stage, matrix [K, N]) where N counts the medium's original grid tokens and row i of the
            matrix says which originals, with which weights, kept token i is made of. Sparse, on the CPU. Where a model
            rearranges patches after its encoder, see `tiled_trace`.
        kept: for each stage the original indices [K] of the surviving tokens, ascending.
    """

    medium: Medium
    stages: list[tuple[str, Tensor]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    @property
    def kept_index(self) -> Tensor:
        """Original indices [K] of the tokens alive after the last stage."""
        return self.kept[-1] if self.kept else torch.arange(self.medium.shape.grid_tokens, device="cpu")

    def sources(self, token: int, stage: int = -1) -> tuple[Tensor, Tensor]:
        """Original indices and weights of what the `token`-th survivor of a stage is made of."""
        row = self.stages[stage][1][token].coalesce()
        return row.indices()[0], row.values()

    def _apply(self, stage: str, part: Tensor, kept: Tensor) -> None:
        before = self.stages[-1][1] if self.stages else None
        self.kept.append(self.kept_index[kept])
        self.stages.append((stage, part if before is None else product(part, before)))


class Trace:
    """The stages of one conversation. Reading it copies to the CPU; recording it does not."""

    def __init__(self) -> None:
        self._media: list[Medium] = []
        self._records: list[GroupRecord] = []
        self._encoded: list[EncoderRecord] = []
        self._built: list[MediumTrace] | None = None
        self._gated: list[tuple[int, Tensor, Tensor]] = []
        self._dropped_text: list[tuple[int, Tensor]] = []

    def clear(self) -> None:
        """Forget everything, for a call that recomputes its choice."""
        self._media, self._records, self._encoded, self._built = [], [], [], None
        self._gated, self._dropped_text = [], []

    def add_media(self, media: tuple[Medium, ...]) -> int:
        """Note the media of a pass and return the key of the first; the others follow."""
        self._built = None
        self._media.extend(media)
        return len(self._media) - len(media)

    def add(self, record: GroupRecord) -> None:
        """Note one group of one stage."""
        self._built = None
        self._records.append(record)

    def add_gate(self, past: int, stored: Tensor, answer: Tensor) -> None:
        """Note what a gate decided about the columns `past`.. of a pass: [B, S] bool, and which of them are an answer's."""
        if past == 0:
            self._gated = []  # without a cache every step recomputes the decision; the last decision counts
        self._gated.append((past, stored, answer))

    def add_dropped_text(self, past: int, dropped: Tensor) -> None:
        """Note which columns `past`.. of a pass a stage on the instruction dropped: [B, S] bool."""
        if past == 0:
            self._dropped_text = []
        self._dropped_text.append((past, dropped))

    @property
    def dropped_text(self) -> list[Tensor]:
        """For each row the columns of its prompt whose text a stage dropped; empty without such a stage."""
        rows = self._dropped_text[0][1].shape[0] if self._dropped_text else 0
        return [
            torch.cat([torch.nonzero(dropped[row].cpu()).flatten() + past for past, dropped in self._dropped_text])
            for row in range(rows)
        ]

    @property
    def answer_kept(self) -> list[Tensor]:
        """For each row, [n] bool: which tokens of its answer the gated layers stored, as far as they were read again.

        The newest token of an answer is not among them: it never enters the model. Empty without a gate. Rows that a beam
        search moved are those of the place, not of the beam.
        """
        if not self._gated:
            return []
        width = max(past + stored.shape[1] for past, stored, _ in self._gated)
        rows = self._gated[0][1].shape[0]
        kept, known = (
            torch.zeros(rows, width, dtype=torch.bool, device="cpu"),
            torch.zeros(rows, width, dtype=torch.bool, device="cpu"),
        )
        for past, stored, answer in self._gated:
            span = slice(past, past + stored.shape[1])
            kept[:, span], known[:, span] = stored.cpu(), answer.cpu()
            known[:, span.stop :] = False  # guesses that were taken back
        return [own[there] for own, there in zip(kept, known, strict=True)]

    def add_encoded(self, record: EncoderRecord) -> None:
        """Note the encoder's stages of one medium, whose tokens are rearranged after the encoder."""
        self._built = None
        self._encoded.append(record)

    @property
    def media(self) -> list[MediumTrace]:
        """One entry per image or video, in the order in which the conversation met them."""
        if self._built is None:
            self._built = self._build()
        return self._built

    def sample(self, row: int) -> list[MediumTrace]:
        """The media of one batch row."""
        return [entry for entry in self.media if entry.medium.row == row]

    def __iter__(self) -> Iterator[MediumTrace]:
        return iter(self.media)

    def __len__(self) -> int:
        return len(self._media)

    def _build(self) -> list[MediumTrace]:
        built = [MediumTrace(medium) for medium in self._media]
        for encoded in self._encoded:
            for text, matrix, tokens in tiled_stages(self._media[encoded.medium].shape, encoded):
                built[encoded.medium].stages.append((text, matrix))
                built[encoded.medium].kept.append(tokens)
        pending: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        order: list[tuple[str, int]] = []
        for record in self._records:
            owner = record.owner.cpu()
            matrix = record.selection.matrix(record.group, len(owner))
            kept = record.selection.kept[record.group].cpu()
            for key in sorted(set(owner.tolist())):
                # Tokens of one medium are consecutive within a group.
                start, count = int((owner < key).sum()), int((owner == key).sum())
                rows = torch.nonzero((kept >= start) & (kept < start + count)).flatten()
                slot = (record.stage, key)
                if slot not in pending:
                    order.append(slot)
                pending.setdefault(slot, []).append((block(matrix, rows, start, count), kept[rows] - start))
        for stage, key in order:
            # The frames of a video are groups of their own; together they are one stage of one medium.
            parts = pending[(stage, key)]
            offsets = torch.tensor([0] + [part.shape[1] for part, _ in parts], device="cpu").cumsum(0)
            kept = torch.cat([own + offset for (_, own), offset in zip(parts, offsets, strict=False)])
            built[key]._apply(stage, block_diagonal([part for part, _ in parts]), kept)
        for entry in built:
            if not len(entry.kept_index):
                _extend_empty(entry, built)
        return built


def _extend_empty(entry: MediumTrace, others: list[MediumTrace]) -> None:
    """Give a medium without survivors the later stages of its row, which did not see it: stages count alike everywhere."""
    met = [stage for stage, _ in entry.stages]
    for other in others:
        stages = [stage for stage, _ in other.stages]
        if other.medium.row == entry.medium.row and len(stages) > len(met) and stages[: len(met)] == met:
            nothing = block_diagonal([])
            for stage in stages[len(met) :]:
                entry._apply(stage, nothing, torch.zeros(0, dtype=torch.long, device="cpu"))
            return
