"""What every token method owes the engine, as one function. It rejects each class in `broken.py`.

Also what it costs: what is held grows with the tokens, and with the pairs that the method says it compares; no tensor with an
entry for every two tokens unless it says that too; and no value is read that a device would have to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from math import prod
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._live_bytes import observe
from foveate.core.method import StepMethod, TokenMethod
from foveate.core.selection import Selection
from foveate.core.view import Observation, StepView, TextPivots, TokenView
from tests.syncs import OnDevice, syncs_of_anybody

SEEDS = range(8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS, WIDTH, GROUPS, WORDS = 4, 8, 3, 5
# 16 tokens must do; a partial window or cell, a video, and one row of tokens.
GRIDS = ((1, 4, 4), (1, 5, 7), (2, 3, 4), (1, 1, 9))
# So many tokens that a tensor of all pairs stands out. What is alive at once may be so many copies of what a method is shown.
MANY, COPIES = (1, 24, 32), 4


class ContractBroken(AssertionError):
    """The method does not keep the contract."""


def random_view(
    method: TokenMethod, grid: tuple[int, int, int], seed: int, dtype: torch.dtype = torch.float32, groups: int = GROUPS
) -> TokenView:
    """A view with everything the method asks for; sizes of tokens that merged before, unequal numbers as group keys."""
    generator = torch.Generator().manual_seed(seed)
    t, h, w = grid
    count = t * h * w
    observed: dict[Observation, Tensor] = {}
    sizes = {"G": groups, "N": count, "H": HEADS, "M": WORDS, "D": WIDTH}
    for observation in method.needs():
        shape = [sizes[axis] for axis in observation.axes]
        if isinstance(observation, TextPivots):
            shape[1] = observation.count
        if "D" in observation.axes:
            observed[observation] = torch.randn(shape, generator=generator)
        else:
            observed[observation] = torch.rand(shape, generator=generator) / count
        if "M" in observation.axes:  # some have fewer words than others
            words = torch.arange(shape[1]) < shape[1] - torch.arange(groups)[:, None] % shape[1]
            observed[observation] *= words[..., None]
    return TokenView(
        features=torch.randn(groups, count, WIDTH, generator=generator).to(dtype),
        coords=torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w))
        .reshape(1, count, 3)
        .repeat(groups, 1, 1),
        grid=grid,
        sizes=torch.randint(1, 5, (groups, count), generator=generator).float(),
        group_keys=tuple(range(0, 1000 * groups, 1000)),
        observed=observed,
        predictor=_judge,
    )


def _judge(features: Tensor, *more: Tensor) -> Tensor:
    """A stand-in for a trained module: two logits [..., 2] from each token alone, the same in company to the last bit."""
    score = features.float().sum(-1)
    return torch.stack([score, -score], dim=-1)


def check_method(method: TokenMethod) -> None:
    """Raise ContractBroken, or MethodError, unless the method keeps the contract on all grids, seeds and dtypes."""
    for grid in GRIDS:
        count = prod(grid)
        fixed = method.fixed_count(grid)
        keeps = (fixed,) if fixed is not None else sorted({1, 2, count // 3 or 1, count - 1, count})
        for keep in keeps:
            for seed in SEEDS:
                dtype = DTYPES[seed % len(DTYPES)]
                _check(method, random_view(method, grid, seed, dtype), keep, f"{method} keep {keep} of {grid} in {dtype}")
    check_costs(method)


def check_costs(method: TokenMethod) -> None:
    """Raise ContractBroken if the method builds a tensor of all pairs, holds more than it says, or waits for a device."""
    count = prod(MANY)
    fixed = method.fixed_count(MANY)
    for keep in (fixed,) if fixed is not None else (1, count // 3, count // 2, count - 1):
        view = random_view(method, MANY, seed=0)
        given = [tensor for _, tensor, _ in _tensors(view, view)]
        what = f"{method} keep {keep} of {count}"
        pairs = GROUPS * method.pairs_at_once(count)
        _check_costs(lambda view=view, keep=keep: method.select(view, keep), given, count, pairs, what)
        features, coords, sizes, *rows = _played(view.features, view.coords, view.sizes, *view.observed.values())
        played = replace(
            view, features=features, coords=coords, sizes=sizes, observed=dict(zip(view.observed, rows, strict=True))
        )
        _check_waits(lambda played=played, keep=keep: method.select(played, keep), what)


def _check_costs(call: Callable[[], object], given: list[Tensor], count: int, pairs: int, what: str) -> None:
    seen = observe(call, count * count)
    if seen.flagged and pairs < GROUPS * count * count:
        (name, shape), _ = seen.flagged.most_common(1)[0]
        raise ContractBroken(
            f"{what}: {name} makes {list(shape)}, an entry for every two tokens, and pairs_at_once() does not say so"
        )
    allowed = COPIES * sum(tensor.nbytes for tensor in given) + 4 * pairs
    if seen.peak > allowed:
        raise ContractBroken(
            f"{what}: it holds {seen.peak:,} bytes at once where {allowed:,} are enough for {COPIES} copies of what it is shown"
            + (f" and {pairs:,} pairs in fp32" if pairs else "; what compares tokens says so with pairs_at_once()")
        )


def _check_waits(call: Callable[[], object], what: str) -> None:
    with syncs_of_anybody() as noted, patch("foveate.ops.greedy.waits", return_value=True):
        call()
    if noted:
        raise ContractBroken(f"{what}: it waits for the device {len(noted)} times, first for {noted[0]}")


def _check(method: TokenMethod, view: TokenView, keep: int, what: str) -> None:
    before = _copy(view)
    selection = method.select(view, keep)
    for name, now, then in _tensors(view, before):
        if not torch.equal(now, then):
            raise ContractBroken(f"{what}: it wrote into {name}")
    selection.check_shapes(view.group_count, view.token_count, keep)
    selection.check_values(view.token_count)
    if not _same(selection, method.select(_copy(view), keep)):
        raise ContractBroken(f"{what}: two calls with equal inputs differ")
    if keep == view.token_count and method.fixed_count(view.grid or (1, 1, 1)) is None:
        everything = torch.arange(keep).expand(view.group_count, -1)
        if selection.is_merge or not torch.equal(selection.kept, everything):
            raise ContractBroken(f"{what}: keeping everything is not the identity")
    for group in range(view.group_count):
        if not _same(_take(selection, group), method.select(_alone(view, group), keep)):
            raise ContractBroken(f"{what}: group {group} alone is treated unlike in company")
    if selection.is_merge and not method.merges:
        raise ContractBroken(f"{what}: it merges, and its class does not say merges = True")
    if selection.is_merge:
        _check_weights(selection, what)


def _check_weights(selection: Selection, what: str) -> None:
    assert selection.weight is not None and selection.self_weight is not None
    for name, part in (("weight", selection.weight), ("self_weight", selection.self_weight)):
        if part.dtype != torch.float32 or not bool(part.isfinite().all()):
            raise ContractBroken(f"{what}: {name} must be finite fp32")


def _copy(view: TokenView) -> TokenView:
    return replace(
        view,
        features=view.features.clone(),
        coords=view.coords.clone(),
        sizes=view.sizes.clone(),
        observed={key: value.clone() for key, value in view.observed.items()},
    )


def _alone(view: TokenView, group: int) -> TokenView:
    one = slice(group, group + 1)
    return replace(
        view,
        features=view.features[one].clone(),
        coords=view.coords[one].clone(),
        sizes=view.sizes[one].clone(),
        group_keys=view.group_keys[one],
        observed={key: value[one].clone() for key, value in view.observed.items()},
    )


def _tensors(view: TokenView, before: TokenView) -> list[tuple[str, Tensor, Tensor]]:
    pairs = [(name, getattr(view, name), getattr(before, name)) for name in ("features", "coords", "sizes")]
    observed: Mapping[Observation, Tensor] = before.observed
    return pairs + [(str(key), view.observed[key], value) for key, value in observed.items()]


def _take(selection: Selection, group: int) -> Selection:
    parts = {field.name: getattr(selection, field.name) for field in fields(selection)}
    return Selection(**{name: part[group : group + 1] if isinstance(part, Tensor) else part for name, part in parts.items()})


def _same(first: Selection, second: Selection) -> bool:
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            return False
        if not (torch.equal(one, other) if isinstance(one, Tensor) else one == other):
            return False
    return True


def check_step_method(method: StepMethod) -> None:
    """Raise ContractBroken unless every token is judged on its own: alone as in company, at a step as in a whole answer."""
    keep = 0.4 if method.takes_keep else None
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        dtype = DTYPES[seed % len(DTYPES)]
        features = torch.randn(GROUPS, 23, WIDTH, generator=generator).to(dtype)
        number = torch.arange(-3, 20).expand(GROUPS, -1) + torch.arange(GROUPS)[:, None]
        view = StepView(features, number, _judge)
        stored = method.gate(view, keep)
        what = f"{method} in {dtype}"
        if stored.dtype != torch.bool or stored.shape != number.shape:
            raise ContractBroken(f"{what}: it must return {tuple(number.shape)} bool")
        if not torch.equal(view.features, torch.randn(GROUPS, 23, WIDTH, generator=generator.manual_seed(seed)).to(dtype)):
            raise ContractBroken(f"{what}: it wrote into features")
        if not torch.equal(stored, method.gate(StepView(features.clone(), number.clone(), _judge), keep)):
            raise ContractBroken(f"{what}: two calls with equal inputs differ")
        for row in range(GROUPS):
            for token in range(23):
                alone = StepView(features[row, None, token, None].clone(), number[row, None, token, None].clone(), _judge)
                if bool(method.gate(alone, keep)) != bool(stored[row, token]):
                    raise ContractBroken(f"{what}: token {token} alone is treated unlike in company")
    count = prod(MANY)
    features, number = torch.randn(GROUPS, count, WIDTH), torch.arange(count).expand(GROUPS, -1).contiguous()
    view, played = (StepView(*parts, _judge) for parts in ((features, number), _played(features, number)))
    _check_costs(lambda: method.gate(view, keep), [features, number], count, 0, str(method))
    _check_waits(lambda: method.gate(played, keep), str(method))


def _played(*tensors: Tensor) -> list[Tensor]:
    return [tensor.as_subclass(OnDevice) for tensor in tensors]
