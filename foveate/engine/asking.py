"""Asking a method, and holding its answer to the contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.core.method import ScoreMethod, TokenMethod
from foveate.core.plan import Stage
from foveate.core.selection import Selection
from foveate.core.view import TokenView
from foveate.errors import MethodError


def placed(module: nn.Module | None, features: Tensor) -> nn.Module | None:
    """A learned method's module where its features are, in their number format."""
    if module is not None:
        known = next(module.parameters())
        if known.device != features.device or known.dtype != features.dtype:
            module.to(features.device, features.dtype)
    return module


def ask(stage: Stage, view: TokenView, keep: int, check: bool) -> Selection:
    """The answer of a stage's method, held to its contract; `check` reads values, which waits for accelerators."""
    method = stage.method
    assert isinstance(method, TokenMethod)
    features = view.features
    before = None if features.is_inference() else features._version
    selection = _select(method, view, keep)
    try:
        selection.check_shapes(view.group_count, view.token_count, keep)
        if before is not None and features._version != before:
            raise MethodError("it wrote into the view's features, which are read only")
        if check:
            selection.check_values(view.token_count)
    except MethodError as error:
        raise MethodError(f"method '{method.name}' broke its contract: {error}") from None
    return selection


def _select(method: TokenMethod, view: TokenView, keep: int) -> Selection:
    """The method's answer, with the last token of the groups that ask: one of the `keep` in any case."""
    if not view.asks:
        return method.select(view, keep)
    if isinstance(method, ScoreMethod):
        return Selection(method.choose(with_asking(method.score(view), view), view, keep))
    return method.select(view, keep).with_last(_asking(view), view.token_count)


def _asking(view: TokenView) -> Tensor:
    """[G] bool: whether the last token of a group asks."""
    return torch.tensor(view.asks, device="cpu").to(view.features.device, non_blocking=True)


def with_asking(score: Tensor, view: TokenView) -> Tensor:
    """Scores [G, N], the highest of all for the last token of the groups that ask."""
    if not view.asks:
        return score
    last = torch.where(_asking(view), torch.inf, score[:, -1])
    return torch.cat([score[:, :-1], last[:, None].to(score.dtype)], dim=1)
