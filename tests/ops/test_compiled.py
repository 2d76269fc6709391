"""Greedy choices are traced whole by torch.compile, and choose the same."""

from __future__ import annotations

import pytest
import torch

from foveate.ops.greedy import coverage, determinantal, largest, nearest_neighbour, spread_out, unit_rows

POINTS = unit_rows(torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0)))
QUALITY = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) + 0.1
LOOPS = {
    "spread_out": lambda: spread_out(POINTS, largest(-nearest_neighbour(POINTS), 1e-6), 7, "cosine"),
    "spread_out, lengths too": lambda: spread_out(3 * POINTS, torch.zeros(2, 1, dtype=torch.long), 7, "euclidean"),
    "determinantal": lambda: determinantal(POINTS, QUALITY, 7),
    "coverage": lambda: coverage(POINTS @ POINTS.transpose(1, 2), QUALITY, 7),
}


@pytest.mark.full
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_one_graph(name, monkeypatch):
    # The lazy loop of the CPU reads values; accelerators run the other one.
    monkeypatch.setattr("foveate.ops.greedy.waits", lambda device: True)
    expected = LOOPS[name]()
    torch._dynamo.reset()
    compiled = torch.compile(LOOPS[name], backend="eager", fullgraph=True)
    assert torch.equal(compiled(), expected)
