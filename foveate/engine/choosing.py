"""The answer of a stage, also where how many tokens stay follows from their scores."""

from __future__ import annotations

from collections import defaultdict

from foveate.core.method import ScoreMethod, top_indices
from foveate.core.plan import Stage
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.engine.asking import ask, with_asking


def choose(stage: Stage, view: TokenView, keep: int, check: bool) -> list[tuple[list[int], Selection]]:
    """The answers of a stage, each for some groups of a view. Under a threshold groups of equal counts share one.

    Counts under a threshold are read from the device, which waits once. At least one token stays.
    """
    if keep:
        return [(list(range(view.group_count)), ask(stage, view, keep, check))]
    budget = stage.budget
    assert budget is not None and budget.threshold is not None and isinstance(stage.method, ScoreMethod)
    score = with_asking(stage.method.score(view), view)
    members: dict[int, list[int]] = defaultdict(list)
    for group, count in enumerate((score > budget.threshold).sum(1).tolist()):
        members[budget.within(count, score.shape[1])].append(group)
    return [(groups, Selection(top_indices(score[groups], count))) for count, groups in members.items()]
