"""The scorer of a trained selector: what each visual token is worth, beside the others of its picture.

Shaped after VisionSelector's lightweight scorer (arXiv:2510.16598): a projection to few channels, queries and keys of the
picture's tokens, one number for each.
"""

from __future__ import annotations

from torch import Tensor, nn

from foveate.predictors.modules import Block, predictor_flops


class Scorer(nn.Module):
    """Scores the tokens of a picture together, without positions.

    Args:
        hidden: width of the language model.
        width, heads, feedforward, blocks: its own; of its transformer blocks, whose attention makes no N x N tensor where
            torch has a fused kernel.
        question: whether the mean state of the question is added to every token's.
    """

    def __init__(self, hidden: int, width: int, heads: int, feedforward: int, blocks: int, question: bool = False) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.ask = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width, bias=False)) if question else None
        self.blocks = nn.ModuleList(Block(width, heads, feedforward) for _ in range(blocks))
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, states: Tensor, question: Tensor | None = None) -> Tensor:
        """Scores [G, N, 1] of tokens [G, N, hidden], for questions [G, hidden] if it was made for them."""
        states = self.down(states)
        if self.ask is not None:
            states = states + self.ask(question)[:, None]
        for block in self.blocks:
            states = block(states, None)
        out: Tensor = self.score(states)
        return out


def scorer_flops(module: nn.Module, tokens: int) -> int:
    """FLOPs of a scorer for one group of `tokens` tokens: as `predictor_flops`, with the question projected once."""
    asked = [part for name, part in module.named_modules() if name.startswith("ask.") and isinstance(part, nn.Linear)]
    return predictor_flops(module, tokens) - 2 * (tokens - 1) * sum(part.weight.numel() for part in asked)
