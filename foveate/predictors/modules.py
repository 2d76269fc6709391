"""The predictors of Dynamic-LLaVA: small modules that say of each token whether it should stay.

Huang et al., ICLR 2025, arXiv:2412.00876, Sec. 3.2 and App. A.2; parameter names and shapes are those of the published
checkpoints. Logit 0 is "keep", logit 1 is "drop": the other way round than the paper's Eq. 5, as the checkpoints have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
BLOCKS = 2


class _Attention(nn.Module):
    """Self-attention of all tokens of a group, without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, kept: Tensor | None) -> Tensor:
        groups, count, width = states.shape
        query, key, value = self.qkv(states).view(groups, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if kept is None else kept[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(groups, count, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(states)))
        return out


class Block(nn.Module):
    """A transformer block that normalizes first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width, hidden)

    def forward(self, states: Tensor, kept: Tensor | None) -> Tensor:
        states = states + self.attn(self.norm1(states), kept)
        out: Tensor = states + self.mlp(self.norm2(states))
        return out


def _narrowing(width: int) -> list[nn.Module]:
    """From `width` to two logits."""
    half, quarter = width // 2, width // 4
    return [nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)]


class VisionPredictor(nn.Module):
    """Judges the tokens of a picture together.

    Half of each token's channels stay its own, the other half are the mean of the group: a token is judged by what it is and
    by what the picture is (DynamicViT's local and global features).

    Args:
        hidden: width of the language model.
        width: its own width; hidden, heads and MLP scale with it as published for 512.
    """

    def __init__(
        self, hidden: int, width: int = 512, heads: int = HEADS, feedforward: int = 2048, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        self.down_mlp = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU())
        self.transformer = nn.ModuleList(Block(width, heads, feedforward) for _ in range(blocks))
        self.output_mlp = nn.Sequential(*_narrowing(width))

    def forward(self, states: Tensor, real: Tensor | None = None) -> Tensor:
        """Logits [G, N, 2] of tokens [G, N, hidden]; `real` [G, N] bool is False at fillers of shorter groups."""
        states = self.down_mlp(states)
        for block in self.transformer:
            states = block(states, real)
        own, shared = states.chunk(2, dim=-1)
        if real is None:
            mean = shared.mean(1, keepdim=True)
        else:
            weight = real[..., None].to(shared.dtype)
            mean = (shared * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        out: Tensor = self.output_mlp(torch.cat([own, mean.expand_as(shared)], dim=-1))
        return out


class TextPredictor(nn.Module):
    """Judges each token by its own state alone, so that an answer can be judged while it is written.

    Args:
        hidden: width of the language model.
        width: its own width.
    """

    def __init__(self, hidden: int, width: int = 512) -> None:
        super().__init__()
        self.output_mlp = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU(), *_narrowing(width))

    def forward(self, states: Tensor) -> Tensor:
        """Logits [B, n, 2] of tokens [B, n, hidden]."""
        out: Tensor = self.output_mlp(states)
        return out


def predictor_flops(module: nn.Module, tokens: int) -> int:
    """FLOPs of a predictor for one group of `tokens` tokens: 2 x MAC of its matrix products and of attention.

    For a picture of LLaVA 1.5 (576 tokens) 11.2 GFLOPs on 7B and 11.8 on 13B, for a token of an answer 4.5 MFLOPs on 7B.
    """
    linear = sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))
    width = sum(one.proj.in_features for one in module.modules() if isinstance(one, _Attention))
    return 2 * tokens * linear + 4 * tokens**2 * width
