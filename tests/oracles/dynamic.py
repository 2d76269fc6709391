"""The predictors of Dynamic-LLaVA in plain loops, one token at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalized(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    around = x - x.mean()
    return around / torch.sqrt((around**2).mean() + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = state[f"{name}.weight"] @ x
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def text_logits(state: dict[str, Tensor], token: Tensor) -> Tensor:
    """Two logits of one token [hidden]."""
    x = normalized(state, "output_mlp.0", token)
    for number in (1, 3, 5):
        x = gelu(linear(state, f"output_mlp.{number}", x))
    return linear(state, "output_mlp.7", x)


def attended(triples: list[Tensor], heads: int) -> list[Tensor]:
    """Of tokens with queries, keys and values side by side [3 * width], what each one takes from all."""
    width = len(triples[0]) // 3
    size, mixed = width // heads, []
    for asking in triples:
        parts = []
        for head in range(heads):
            place = slice(head * size, (head + 1) * size)
            query = asking[:width][place]
            scores = torch.stack([query @ other[width : 2 * width][place] / math.sqrt(size) for other in triples])
            weights = torch.exp(scores - scores.max()) / torch.exp(scores - scores.max()).sum()
            parts.append(sum(w * other[2 * width :][place] for w, other in zip(weights, triples, strict=True)))
        mixed.append(torch.cat(parts))
    return mixed


def vision_logits(state: dict[str, Tensor], tokens: list[Tensor], heads: int, blocks: int) -> list[Tensor]:
    """Two logits of each token [hidden] of one group."""
    states = []
    for token in tokens:
        x = normalized(state, "down_mlp.0", token)
        states.append(gelu(linear(state, "down_mlp.1", x)))
    width = len(states[0])
    for number in range(blocks):
        name = f"transformer.{number}"
        norms = [normalized(state, f"{name}.norm1", x) for x in states]
        triples = [linear(state, f"{name}.attn.qkv", x) for x in norms]
        mixed = [linear(state, f"{name}.attn.proj", x) for x in attended(triples, heads)]
        states = [x + y for x, y in zip(states, mixed, strict=True)]
        for index, x in enumerate(states):
            inner = normalized(state, f"{name}.norm2", x)
            states[index] = x + linear(state, f"{name}.mlp.fc2", gelu(linear(state, f"{name}.mlp.fc1", inner)))
    mean = sum(x[width // 2 :] for x in states) / len(states)
    out = []
    for x in states:
        y = torch.cat([x[: width // 2], mean])
        for number in (0, 2):
            y = gelu(linear(state, f"output_mlp.{number}", y))
        out.append(linear(state, "output_mlp.4", y))
    return out


def dynamic_image_kept(state: dict[str, Tensor], tokens: list[Tensor], heads: int, blocks: int, keep: int) -> list[int]:
    """The tokens whose logit of keeping exceeds that of dropping by most, in their order."""
    margins = [float(logits[0] - logits[1]) for logits in vision_logits(state, tokens, heads, blocks)]
    return sorted(sorted(range(len(tokens)), key=lambda index: -margins[index])[:keep])


def dynamic_text_kept(state: dict[str, Tensor], tokens: list[Tensor], bias: float) -> list[bool]:
    """Of each token, whether its logit of keeping is the larger one."""
    return [bool(logits[0] + bias > logits[1]) for logits in (text_logits(state, token) for token in tokens)]


def dynamic_instruct_kept(state: dict[str, Tensor], tokens: list[Tensor], threshold: float) -> list[bool]:
    """Of each token, whether the probability of keeping it is above a threshold."""
    return [float(torch.softmax(text_logits(state, token), 0)[0]) > threshold for token in tokens]
