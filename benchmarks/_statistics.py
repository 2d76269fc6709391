"""Medians, ratios within a run with their bootstrap intervals, and how much of a theoretical saving was realised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from foveate.evaluate.intervals import RESAMPLES, interval


@dataclass(frozen=True)
class Ratio:
    """Time under a plan as a share of the plain model's, with its 95 % interval."""

    value: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    first, middle, third = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return float(first), float(middle), float(third)


def paired_ratio(plain: Sequence[float], plan: Sequence[float], resamples: int = RESAMPLES) -> Ratio:
    """Median over the rounds of plan / plain, and a percentile bootstrap over rounds.

    The two times of one round lie next to each other, so what slows the whole round down cancels.

    Raises:
        ValueError: unless both have one positive time for each round.
    """
    if len(plain) != len(plan) or not plain or min(*plain, *plan) <= 0:
        raise ValueError(f"{len(plain)} and {len(plan)} times: one positive time of each for every round is needed")
    ratios = np.asarray(plan, dtype=float) / np.asarray(plain, dtype=float)
    return Ratio(median(ratios.tolist()), *interval(ratios, np.median, resamples))


def realised(measured: float, theory: float | None) -> float | None:
    """Share of the theoretical saving that was measured: (1 - measured ratio) / (1 - theory ratio).

    None where theory is unknown or saves nothing.
    """
    return None if theory is None or theory >= 1 else (1 - measured) / (1 - theory)
