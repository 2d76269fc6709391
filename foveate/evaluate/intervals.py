"""Means with percentile bootstrap intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.errors import InputError

RESAMPLES, SEED = 2000, 1


@dataclass(frozen=True)
class Mean:
    """A mean over samples with its 95 % interval; None of a single sample, which has none."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """`{"mean": ..., "low": ..., "high": ...}`."""
        return {"mean": self.value, "low": self.low, "high": self.high}


def interval(
    values: npt.NDArray[np.floating[Any]],
    of: Callable[..., npt.NDArray[np.floating[Any]]] = np.mean,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` [n], or of their median (`of=np.median`)."""
    random = np.random.default_rng(SEED)
    found = of(values[random.integers(0, len(values), (resamples, len(values)))], axis=1)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one number."""
    if not len(values):
        raise InputError("no samples: there is no mean of nothing")
    array = np.asarray(values, dtype=float)
    low, high = interval(array) if len(array) > 1 else (None, None)
    return Mean(float(array.mean()), low, high)


def difference(plain: Sequence[float], plan: Sequence[float]) -> Mean:
    """The mean of plan - plain over samples, each compared with itself.

    Raises:
        InputError: unless both have one number for each sample.
    """
    if len(plain) != len(plan):
        raise InputError(f"{len(plain)} and {len(plan)} numbers: one of each for every sample is needed")
    return mean_of([after - before for before, after in zip(plain, plan, strict=True)])
