"""Choosing in parts: exact counts, every token in one part, and each part chosen from as if it were alone."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import methods
from foveate.errors import SpecError
from foveate.ops.splitting import MOST_PARTS, in_parts
from tests.methods.selecting import KEEPS, kept_of, spoiled_view

SPLITTING = [name for name in methods.names() if any(option.name == "split" for option in fields(methods.get(name)))]


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_every_part_has_its_share(tokens, split, data):
    keep = data.draw(st.integers(0, tokens))
    parts: list[list[int]] = []

    def first(own: torch.Tensor, share: int) -> torch.Tensor:
        assert 1 <= share <= len(own)
        parts.append(own.tolist())
        return torch.arange(share).expand(2, -1)

    chosen = in_parts(torch.zeros(2, tokens), keep, split, first)
    assert chosen.shape == (2, keep) and bool((chosen[:, 1:] > chosen[:, :-1]).all())
    assert sorted(token for part in parts for token in part) == sorted(
        token for token in range(tokens) if token % split < min(split, keep)
    )


def test_there_are_methods_that_choose_in_parts():
    assert {"divprune", "cdpruner", "scope", "mmtok", "fps", "vispruner"} <= set(SPLITTING)


@pytest.mark.parametrize("name", SPLITTING)
@pytest.mark.parametrize("keep", KEEPS)
def test_a_part_is_chosen_from_as_if_it_were_alone(name, keep):
    # Without what is measured over the whole picture: relevance between its extremes, and the encoder's first choice.
    alone = {"cdpruner": {"weight": "theta:0"}, "vispruner": {"important": 0.0}}.get(name, {})
    method = replace(methods.get(name).examples()[0], **alone)
    view = spoiled_view(method, "random")
    expected: list[list[int]] = [[] for _ in range(view.group_count)]
    for part in range(min(3, keep)):
        tokens = torch.arange(part, view.token_count, 3)
        observed = {need: value[:, tokens] if need.axes == "GN" else value for need, value in view.observed.items()}
        places = {"features": view.features[:, tokens], "coords": view.coords[:, tokens], "sizes": view.sizes[:, tokens]}
        own = replace(view, grid=None, observed=observed, **places)
        for group, kept in enumerate(kept_of(method, own, -(-(keep - part) // 3))):
            expected[group] += tokens[kept].tolist()
    assert kept_of(replace(method, split=3), view, keep) == [sorted(one) for one in expected]


@pytest.mark.parametrize("name", SPLITTING)
@pytest.mark.parametrize("split", [0, -1, MOST_PARTS + 1])
def test_a_number_of_parts_that_helps_nobody_is_refused(name, split):
    with pytest.raises(SpecError, match="a number of parts from 1 to 64"):
        methods.get(name)(split=split)
