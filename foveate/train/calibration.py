"""After training: finished decisions keep as much as was asked for.

Training draws its decisions and pulls the shares of those draws to their targets, with a penalty that gives way where
keeping pays. Finished decisions are made without draws, at a margin of 0, and may keep another share. One number for each
predictor mends that: its margin logit(keep) - logit(drop) is shifted until it is positive for the share that was asked for,
over tokens of held-out rows. Ranks do not change, so top-k choices do not either.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from foveate.predictors import IMAGE, TEXT
from foveate.train.data import Conversations


def calibrate(trainer: Any, rows: Conversations, collator: Any) -> dict[str, float]:
    """Shift the margins of trained predictors.

    Args:
        trainer: a `PredictorTrainer` of Dynamic-LLaVA whose training is done; learned masks, and still attached.
        rows: conversations that it did not train on, if there are any; `config.calibrate` of them are read.
        collator: makes inputs of them.

    Returns:
        `rows`, and for each predictor that judged a token the shift of its margin.
    """
    soft, config = trainer.soft_model, trainer.config
    count = min(len(rows), config.calibrate)
    soft.soft.judged = {}
    for start in range(0, count, config.batch_size):
        batch = [rows[index] for index in range(start, min(start + config.batch_size, count))]
        trainer.prediction_step(soft.eval(), collator(batch), prediction_loss_only=True)
    judged, soft.soft.judged = soft.soft.judged, None
    done = {"rows": float(count)}
    for name, method, share in ((IMAGE, "dynamic_image", config.keep), (TEXT, "dynamic_text", config.text_keep)):
        if judged.get(method):
            margins = torch.cat([(logits[..., 0] - logits[..., 1]).float().flatten().cpu() for logits in judged[method]])
            done[name] = shift_margin(soft.predictors[name], -_boundary(margins, share))
    return done


def _boundary(margins: Tensor, share: float) -> float:
    """The number that a share of the margins is above, in the middle between two of them."""
    best = margins.double().sort(descending=True).values
    above = max(math.floor(share * len(best) + 0.5), 1)
    below = best[above] if above < len(best) else best[-1] - 1
    return float((best[above - 1] + below) / 2)


def shift_margin(module: nn.Module, shift: float) -> float:
    """Add to logit(keep) of every token; returns the shift."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] += shift
    return shift
