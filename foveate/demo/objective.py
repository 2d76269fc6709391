"""What training minimises: answer tokens of packed batches, and patch labels read from the vision encoder.

The auxiliary heads are thrown away after training. Without them the class token of the last vision layer would get no
gradient, and every method that ranks visual tokens by its attention would read noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.demo.drawing import COLOR_CLASSES, FORM_CLASSES, TAG_COUNT
from foveate.demo.packing import IGNORED, PREFIX_TEXT_TOKENS, PREFIX_TOKENS, PackedBatch
from foveate.demo.samples import Sample

HIDDEN_SCORE = -1e4  # finite, so that a padding row that sees nothing but itself stays a number in bfloat16
BACKGROUND_WEIGHT = 0.2
TAG_WEIGHT = 2.0
FAST_ATTENTION = "foveate_demo_matmul"


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Plain attention; on a CPU in bfloat16 it is about twice as fast as the fused kernel below 400 columns."""
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    return torch.matmul(scores.softmax(-1), value).transpose(1, 2).contiguous(), None


def use_fast_attention(model: Any) -> None:
    """Switch a model in training to `matmul_attention`; saved configurations do not mention it."""
    from transformers import AttentionInterface

    AttentionInterface.register(FAST_ATTENTION, matmul_attention)
    model.set_attn_implementation(FAST_ATTENTION)


class AuxiliaryHeads(nn.Module):
    """Linear readouts of the last vision layer: colour and form per patch, tags from the class token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.color = nn.Linear(width, COLOR_CLASSES)
        self.form = nn.Linear(width, FORM_CLASSES)
        self.tags = nn.Linear(width, TAG_COUNT)

    def loss(self, features: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the auxiliary loss of `features` [B, 1 + patches, D], class token first."""
        labels = torch.from_numpy(np.stack([sample.labels() for sample in samples]))
        tags = torch.from_numpy(np.stack([sample.tags() for sample in samples]))
        class_weights = torch.ones(FORM_CLASSES)
        class_weights[0] = BACKGROUND_WEIGHT
        patches = features[:, 1:]
        color = self.color(patches).flatten(0, 1).float()
        form = self.form(patches).flatten(0, 1).float()
        return (
            F.cross_entropy(color, labels[:, 0].flatten(), weight=class_weights[:COLOR_CLASSES])
            + F.cross_entropy(form, labels[:, 1].flatten(), weight=class_weights)
            + TAG_WEIGHT * F.binary_cross_entropy_with_logits(self.tags(features[:, 0]).float(), tags)
        )

    @torch.no_grad()
    def form_accuracy(self, features: torch.Tensor, samples: Sequence[Sample]) -> float:
        """Return how often the form of a labelled patch is recognised."""
        labels = torch.from_numpy(np.stack([sample.labels() for sample in samples]))[:, 1]
        is_labelled = labels > 0
        guesses = self.form(features[:, 1:]).argmax(-1)
        return float((guesses[is_labelled] == labels[is_labelled]).float().mean())


def vision_features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the last vision layer [B, 1 + patches, D], which is what the projector reads."""
    features: torch.Tensor = model.model.vision_tower(pixel_values.to(model.model.vision_tower.dtype)).last_hidden_state
    return features


def hidden_states(model: Any, batch: PackedBatch, features: torch.Tensor) -> torch.Tensor:
    """Return the language model's last hidden states [B, N, D] of a packed batch."""
    visual = model.model.multi_modal_projector(features[:, 1:])
    text = model.model.language_model.embed_tokens(batch.input_ids)
    embeds = torch.cat([text[:, :PREFIX_TEXT_TOKENS], visual.to(text.dtype), text[:, PREFIX_TOKENS:]], dim=1)
    mask = torch.zeros(batch.is_visible.shape, dtype=embeds.dtype).masked_fill_(~batch.is_visible, HIDDEN_SCORE)
    output = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
    )
    states: torch.Tensor = output.last_hidden_state
    return states


def answer_logits(model: Any, batch: PackedBatch, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [A, V] that predict each answer token, and which columns [B, N - 1] they come from."""
    is_answer = batch.labels[:, 1:] != IGNORED
    logits: torch.Tensor = model.lm_head(states[:, :-1][is_answer]).float()
    return logits, is_answer


def answer_loss(model: Any, batch: PackedBatch, features: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean cross entropy of the answer tokens."""
    logits, is_answer = answer_logits(model, batch, hidden_states(model, batch, features))
    losses = F.cross_entropy(logits, batch.labels[:, 1:][is_answer], reduction="none")
    weights = batch.weights[:, 1:][is_answer]
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def correct_answers(model: Any, batch: PackedBatch, *, blank: bool = False) -> list[list[bool]]:
    """Return, per picture and question, whether greedy decoding gives exactly the answer.

    Greedy decoding follows the answer as long as each next token is the most likely one, so one teacher-forced pass
    decides it. With `blank` the picture is replaced by the mean colour.
    """
    pixels = torch.zeros_like(batch.pixel_values) if blank else batch.pixel_values
    logits, is_answer = answer_logits(model, batch, hidden_states(model, batch, vision_features(model, pixels)))
    is_wrong = torch.zeros(is_answer.shape, dtype=torch.bool)
    is_wrong[is_answer] = logits.argmax(-1) != batch.labels[:, 1:][is_answer]
    segments = batch.segments[:, 1:]
    return [
        [not bool(is_wrong[row][segments[row] == number].any()) for number in range(1, len(questions) + 1)]
        for row, questions in enumerate(batch.questions)
    ]
