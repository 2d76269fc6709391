"""Methods with trained weights: what they must know of the model they are built for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveate.core.method import Method

if TYPE_CHECKING:  # a cost estimate needs no torch
    from torch import nn


@dataclass(frozen=True)
class BaseModel:
    """The model that a plan is attached to, as far as trained weights depend on it.

    Attributes:
        name: hub id or folder it was loaded from, "" if it was made from a config.
        model_type: of its config.
        width: of its decoder's hidden states.
        layers: of its decoder.
        fingerprint: a few of its weights, to tell it from another model of the same shape; () if they cannot be read.
    """

    name: str
    model_type: str
    width: int
    layers: int
    fingerprint: tuple[float, ...] = ()

    def resembles(self, fingerprint: tuple[float, ...]) -> bool:
        """Whether the weights are those of a fingerprint, in any floating point format; True if one's own are not known."""
        if not self.fingerprint:
            return True
        pairs = zip(self.fingerprint, fingerprint, strict=False)
        return len(self.fingerprint) == len(fingerprint) and all(abs(a - b) <= 0.01 * abs(a) + 1e-6 for a, b in pairs)


class LearnedMethod(Method, ABC):
    """A method that looks at tokens through a trained module. The attachment owns the module; views carry it."""

    @abstractmethod
    def build(self, base: BaseModel) -> nn.Module:
        """The module with its weights, on the CPU.

        Raises:
            InputError: if the weights cannot be read, or were trained for another model.
        """

    def judging_flops(self, tokens: int) -> int:
        """FLOPs of judging one group of `tokens` tokens of a prompt; 0 for a method that does not say."""
        return 0
