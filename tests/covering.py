"""Of a product of parameters, the cases in which every two values that can meet do meet.

A test marked `pairs` is parametrized with all that could be tried. What runs when is derived from that:

- `make test`: every single value among the anchor families; with `pairs(short="pairs")` every two; with
  `pairs(every_family=True)` one case of each other family too;
- `make test-full`: pairs among all families, where a family that is no anchor takes three of a long list, and one that
  tells the engine nothing new takes one case of each test; what is not in the first is marked `full`;
- `make test-nightly`: everything; what is in neither is marked `nightly`;
- `make test-versions`: as `make test`, but of long lists of plans one: methods are tensor functions, which no version changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import combinations
from typing import Any

import pytest

from tests.tiny import FAMILIES, RELATIVES

Case = Mapping[str, Hashable]
# A list of more values than this is long. Of a long one a family that is no anchor takes about so many, the next one others.
LONG, TAKEN = 6, 3


def pairs_of(case: Case, strength: int = 2) -> set[Hashable]:
    """Every two values of a case, or every single one, with their names; of a case with one parameter, that one."""
    values = sorted(case.items(), key=lambda value: value[0])
    return set(combinations(values, min(strength, len(values))))


def covering(
    cases: Sequence[Case],
    start: Sequence[int] = (),
    strength: int = 2,
    is_due: Callable[[Hashable], bool] = lambda pair: True,
) -> list[int]:
    """Numbers of cases, in order, that hold every due pair which some case holds; those of `start` are among them.

    Greedy, and the same at every call: the first of the cases that bring most pairs is next.
    """
    pairs, chosen = [set(filter(is_due, pairs_of(case, strength))) for case in cases], set(start)
    missing = set().union(*pairs).difference(*(pairs[number] for number in chosen))
    left = [(-len(found), number) for number, found in enumerate(pairs)]  # at least as many as it would bring
    heapify(left)
    while missing:
        most, best = left[0]
        gain = len(pairs[best] & missing)
        if gain == -most:
            chosen.add(best)
            missing -= pairs[best]
            heappop(left)
        else:
            heapreplace(left, (-gain, best))
    return sorted(chosen)


def shared_out(
    cases: Sequence[Case], anchors: Sequence[Hashable], relatives: Sequence[Hashable] = ()
) -> Callable[[Hashable], bool]:
    """Whether a pair is due: of long lists a family that is no anchor takes its share, and all families together everything.

    A relative takes one case, the next one another.
    """
    values: dict[str, dict[Hashable, int]] = defaultdict(dict)
    for case in cases:
        for name, value in case.items():
            values[name].setdefault(value, len(values[name]))
    own = {}
    for number, family in enumerate(relatives):
        its = [case for case in cases if case.get("family") == family]
        own[family] = pairs_of(its[7 * number % len(its)]) if its else set()

    def is_due(pair: Any) -> bool:
        named = dict(pair)
        if named.get("family") in own:
            return pair in own[named["family"]]
        if len(named) != 2 or "family" not in named or named["family"] in anchors:
            return True
        ((other, value),) = [item for item in named.items() if item[0] != "family"]
        listed = len(values[other])
        return listed <= LONG or (values["family"][named["family"]] + values[other][value]) % -(-listed // TAKEN) == 0

    return is_due


def mark_pairs(items: list[pytest.Item], ignored: Sequence[str] = ()) -> None:
    """Marks the cases of tests that are marked `pairs`, values of `ignored` parameters aside.

    Call it when nothing is collected that cannot run.
    """
    tests: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairs") and hasattr(item, "callspec"):
            tests[str(item.path), item.originalname].append(item)
    for cases in tests.values():
        # Numbers of parameters of one test would do, but a list of tuples numbers its rows, not its values. A value is written
        # once: some are long, and many cases share them.
        written = {id(value): value for item in cases for value in item.callspec.params.values()}
        words = {key: repr(value) for key, value in written.items()}
        values = [
            {name: words[id(value)] for name, value in item.callspec.params.items() if name not in ignored} for item in cases
        ]
        families = [item.callspec.params.get("family", FAMILIES[0]) for item in cases]
        near = [number for number, family in enumerate(families) if family in FAMILIES]
        options = cases[0].get_closest_marker("pairs").kwargs
        strength = 2 if options.get("short") == "pairs" else 1
        short = [near[number] for number in covering([values[number] for number in near], strength=strength)]
        if options.get("every_family"):
            short += [families.index(family) for family in dict.fromkeys(families) if family not in FAMILIES]
        is_due = shared_out(values, [repr(name) for name in FAMILIES], [repr(name) for name in RELATIVES])
        wide = covering(values, short, is_due=is_due)
        for number, item in enumerate(cases):
            if number not in wide:
                item.add_marker("nightly")
            elif number not in short:
                item.add_marker("full")
