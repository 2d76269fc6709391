"""The instruction's method against plain loops."""

from __future__ import annotations

import pytest
import torch

from foveate.core.layout import Role
from foveate.core.plan import Stage
from foveate.core.view import TokenView
from foveate.errors import BudgetError
from foveate.methods.dynamic_instruct import DynamicInstruct
from foveate.spec import parse
from tests.methods.test_dynamic_text import predictor
from tests.oracles.dynamic import dynamic_instruct_kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_the_choice_is_the_twin_s(threshold):
    module, tokens = predictor(), torch.randn(2, 9, 12, dtype=torch.double)
    view = TokenView(tokens, torch.zeros(2, 9, 3).long(), None, torch.ones(2, 9), (0, 1), predictor=module)
    with torch.no_grad():
        kept = DynamicInstruct().score(view) > threshold
        expected = [dynamic_instruct_kept(module.state_dict(), list(row), threshold) for row in tokens]
    assert kept.tolist() == expected


def test_it_acts_on_the_instruction_and_takes_a_threshold_only():
    (stage,) = parse("dynamic_instruct(layer=2, keep=threshold:0.5, path=x/y)").stages
    assert isinstance(stage, Stage) and stage.role is Role.INSTRUCT
    for keep in ("0.5", "12"):
        with pytest.raises(BudgetError, match="write keep=threshold"):
            parse(f"dynamic_instruct(layer=2, keep={keep}, path=x/y)")
