"""attention(): where the tokens of an answer look, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.core.attention import AttentionStudy
from foveate.engine import attention_study
from foveate.engine.carrying import unwrap


def attention(
    model: Any, inputs: Mapping[str, Any], max_new_tokens: int = 32, layers: Sequence[int] | None = None
) -> AttentionStudy:
    """Answer greedily and measure how attention is divided among system, visual, instruction and output tokens.

    The plain model runs under whatever attention it was loaded with; nothing is pruned, and no trace is left.

    Source: Chen et al., ECCV 2024, arXiv:2403.06764, Sec. 3.

    Args:
        model: what `attach` takes; nothing may be attached to it.
        inputs: what the processor returned; rows of unequal length are padded on the left.
        max_new_tokens: longest answer; its tokens up to the end token rate.
        layers: decoder layers to measure, counted from 0; None for all.

    Raises:
        FoveateError: before anything is generated: an unknown family, no picture, padding on the right, an attached plan.

    Cost: one softmax row per head and layer at each step beyond generate() itself: O(H * S) memory.
    """
    return attention_study.study(unwrap(model), inputs, max_new_tokens, layers)
