"""What each column of a forward call holds: padding, text of some role, or a token of some medium."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from foveate.core.shape import MediumShape
from foveate.errors import InputError

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import Tensor


class Role(IntEnum):
    """The role of one column of `input_ids`."""

    PAD = 0
    SYSTEM = 1
    VISUAL = 2
    INSTRUCT = 3
    OUTPUT = 4


@dataclass(frozen=True)
class Medium:
    """One image or video in one row.

    Attributes:
        row: batch row.
        index: number of the medium within its row, from 0.
        shape: kind, grid and separators.
        columns: columns of its grid tokens in raster order [N], long, on the CPU.
        sample: number of its sample among those packed into the row.
        earlier: media of the samples in front of that one.
    """

    row: int
    index: int
    shape: MediumShape
    columns: Tensor
    sample: int = 0
    earlier: int = 0


@dataclass(frozen=True)
class Layout:
    """Roles and media of the columns of one forward call; everything lives on the CPU.

    Attributes:
        roles: [B, S] int8, values of `Role`.
        media: the media whose columns lie in these S columns, by row and then by column.
        ends: [B, S] bool, the last column of each sample, and the last one of its prompt: they ask and are never dropped.
        samples: [B, S] long, number of the sample that a column belongs to, where rows hold several; None otherwise.
    """

    roles: Tensor
    media: tuple[Medium, ...]
    ends: Tensor
    samples: Tensor | None = None

    @classmethod
    def of_text(cls, is_real: Tensor, prompt_length: int | None = None) -> Layout:
        """The layout of prompts without media; arguments as of `build`."""
        return cls.build(is_real & False, is_real, [[] for _ in is_real], prompt_length)

    @classmethod
    def build(
        cls,
        is_visual: Tensor,
        is_real: Tensor,
        shapes: list[list[MediumShape]],
        prompt_length: int | None = None,
        is_output: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Layout:
        """Find roles and media.

        Args:
            is_visual: [B, S] bool, True at placeholder columns.
            is_real: [B, S] bool, False at padding.
            shapes: for each row its media in column order.
            prompt_length: columns from here on are output; None if all S columns are prompt.
            is_output: [B, S] bool, output columns that labels tell of, where every row has its own.
            samples: [B, S] long, number of the sample that a column belongs to; None if each row is one sample.

        Raises:
            InputError: if a row's media and its placeholder columns do not have the same number of tokens.
        """
        import torch

        roles = torch.full(is_visual.shape, int(Role.INSTRUCT), dtype=torch.int8, device="cpu")
        media: list[Medium] = []
        for row, row_shapes in enumerate(shapes):
            columns = torch.nonzero(is_visual[row]).flatten()
            expected = sum(shape.tokens for shape in row_shapes)
            if expected != len(columns):
                raise InputError(
                    f"row {row} has {len(columns)} visual placeholder tokens, but its {len(row_shapes)} images or videos fill "
                    f"{expected}; let the model's own processor build input_ids and pixel values together"
                )
            own_sample = torch.zeros(is_visual.shape[1], dtype=torch.long, device="cpu") if samples is None else samples[row]
            for sample in sorted(set(own_sample[columns].tolist())):
                first = int(columns[own_sample[columns] == sample][0])
                roles[row, :first].masked_fill_(own_sample[:first] == sample, int(Role.SYSTEM))
            start = 0
            earlier: dict[int, int] = {}
            for index, shape in enumerate(row_shapes):
                own = columns[start : start + shape.tokens]
                on_grid = torch.ones(shape.tokens, dtype=torch.bool, device="cpu")
                on_grid[list(shape.separators)] = False
                sample = int(own_sample[own[0]])
                media.append(Medium(row, index, shape, own[on_grid], sample, earlier.setdefault(sample, index)))
                start += shape.tokens
        roles[is_visual] = int(Role.VISUAL)
        if prompt_length is not None:
            roles[:, prompt_length:] = int(Role.OUTPUT)
        if is_output is not None:
            roles[is_output & ~is_visual] = int(Role.OUTPUT)
        roles[~is_real] = int(Role.PAD)
        return cls(roles, tuple(media), _ends(roles, samples), samples)

    def parts(self, row: int) -> list[Tensor]:
        """The real columns [n] of each sample of a row, in order."""
        real = (self.roles[row] != int(Role.PAD)).nonzero().flatten()
        return _split(real, None if self.samples is None else self.samples[row])

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.roles.shape[1]

    @property
    def real(self) -> Tensor:
        """[B, S] bool, False at padding."""
        return self.roles != int(Role.PAD)

    @property
    def pads_right(self) -> bool:
        """Whether shorter rows have their padding after the text, as in training."""
        return bool((~self.real[:, -1] & self.real[:, 0]).any())

    def is_role(self, role: Role) -> Tensor:
        """[B, S] bool, True at columns of this role."""
        return self.roles == int(role)

    def columns_between(self, start: int, stop: int) -> Layout:
        """The layout of columns start..stop, for a forward call that sees only these.

        Media outside the range are left out, and so is one that a bound would split.
        """
        media = tuple(
            replace(medium, columns=medium.columns - start)
            for medium in self.media
            if start <= int(medium.columns[0]) and int(medium.columns[-1]) < stop
        )
        samples = None if self.samples is None else self.samples[:, start:stop]
        return Layout(self.roles[:, start:stop], media, self.ends[:, start:stop], samples)

    def extended(self, width: int) -> Layout:
        """The layout with output columns appended until it is `width` wide."""
        import torch

        extra = width - self.width
        if extra <= 0:
            return self
        output = torch.full((self.roles.shape[0], extra), int(Role.OUTPUT), dtype=torch.int8, device="cpu")
        samples = None if self.samples is None else torch.nn.functional.pad(self.samples, (0, extra), mode="replicate")
        ends = torch.nn.functional.pad(self.ends, (0, extra))
        return Layout(torch.cat([self.roles, output], dim=1), self.media, ends, samples)

    def behind(self, extra: int) -> Layout:
        """The layout with `extra` columns of text in front, as prompt tuning puts them there."""
        import torch

        if extra <= 0:
            return self
        system = torch.full((self.roles.shape[0], extra), int(Role.SYSTEM), dtype=torch.int8, device="cpu")
        media = tuple(replace(medium, columns=medium.columns + extra) for medium in self.media)
        return Layout(torch.cat([system, self.roles], dim=1), media, torch.nn.functional.pad(self.ends, (extra, 0)))

    def repeated(self, times: int) -> Layout:
        """The layout with every row repeated, as beam search and several return sequences do."""
        if times == 1:
            return self
        media = tuple(replace(medium, row=medium.row * times + copy) for medium in self.media for copy in range(times))
        media = tuple(sorted(media, key=lambda medium: (medium.row, medium.index)))
        samples = None if self.samples is None else self.samples.repeat_interleave(times, dim=0)
        roles, ends = (part.repeat_interleave(times, dim=0) for part in (self.roles, self.ends))
        return Layout(roles, media, ends, samples)


def _split(columns: Tensor, samples: Tensor | None) -> list[Tensor]:
    """Columns [n] of one row by their sample."""
    if samples is None:
        return [columns]
    of = samples[columns]
    return [columns[of == sample] for sample in sorted(set(of.tolist()))]


def _ends(roles: Tensor, samples: Tensor | None) -> Tensor:
    """[B, S] bool: of each sample the last real column, and the last one in front of its output."""
    ends = roles != roles
    for row, own in enumerate(roles):
        real = (own != int(Role.PAD)).nonzero().flatten()
        for part in _split(real, None if samples is None else samples[row]):
            prompt = part[(own[part] == int(Role.OUTPUT)).cumsum(0) == 0]
            ends[row, part[-1:]] = True
            ends[row, prompt[-1:]] = True
    return ends
