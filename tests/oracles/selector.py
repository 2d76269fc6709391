"""The scorer of a selector in plain loops, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles.dynamic import attended, gelu, linear, normalized


def scores(state: dict[str, Tensor], tokens: list[Tensor], heads: int, blocks: int, question: Tensor | None) -> list[float]:
    """One number for each token [hidden] of one group."""
    states = [linear(state, "down.1", normalized(state, "down.0", token)) for token in tokens]
    if question is not None:
        asked = linear(state, "ask.1", normalized(state, "ask.0", question))
        states = [x + asked for x in states]
    for number in range(blocks):
        name = f"blocks.{number}"
        norms = [normalized(state, f"{name}.norm1", x) for x in states]
        triples = [linear(state, f"{name}.attn.qkv", x) for x in norms]
        mixed = [linear(state, f"{name}.attn.proj", x) for x in attended(triples, heads)]
        states = [x + y for x, y in zip(states, mixed, strict=True)]
        inner = [linear(state, f"{name}.mlp.fc1", normalized(state, f"{name}.norm2", x)) for x in states]
        states = [x + linear(state, f"{name}.mlp.fc2", gelu(y)) for x, y in zip(states, inner, strict=True)]
    return [float(linear(state, "score.1", normalized(state, "score.0", x))) for x in states]


def selector_kept(
    state: dict[str, Tensor], tokens: list[Tensor], heads: int, blocks: int, question: Tensor | None, keep: int
) -> list[int]:
    """The tokens with the largest scores, in their order."""
    found = scores(state, tokens, heads, blocks, question)
    return sorted(sorted(range(len(tokens)), key=lambda index: -found[index])[:keep])


def soft_kept(score: Tensor, keep: float, temperature: float) -> Tensor:
    """How much each of [N] scores is kept: the threshold by trying, from one that keeps all to one that keeps nothing."""
    low, high = float(score.min()) - 50 * temperature, float(score.max()) + 50 * temperature
    while high - low > 1e-12:
        middle = (low + high) / 2
        total = sum(float(torch.sigmoid((one - middle) / temperature)) for one in score)
        low, high = (middle, high) if total > keep else (low, middle)
    return torch.sigmoid((score - low) / temperature)
