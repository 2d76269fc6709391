"""Which answers greedy decoding gives, from one teacher-forced pass over a packed batch."""

from __future__ import annotations

from typing import Any

import torch

from foveate.demo.packing import IGNORED, PREFIX_TEXT_TOKENS, PackedBatch

HIDDEN_SCORE = -1e4  # finite, so that a padding row that sees nothing but itself stays a number in bfloat16


def vision_features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the last vision layer [B, 1 + patches, D], which is what the projector reads."""
    features: torch.Tensor = model.model.vision_tower(pixel_values.to(model.model.vision_tower.dtype)).last_hidden_state
    return features


def hidden_states(model: Any, batch: PackedBatch, features: torch.Tensor) -> torch.Tensor:
    """Return the language model's last hidden states [B, N, D] of a packed batch."""
    rows, pad = batch.input_ids.shape[0], PREFIX_TEXT_TOKENS
    visual = model.model.multi_modal_projector(features[:, 1:]).reshape(rows, batch.prefix - pad, -1)
    text = model.model.language_model.embed_tokens(batch.input_ids)
    embeds = torch.cat([text[:, :pad], visual.to(text.dtype), text[:, batch.prefix :]], dim=1)
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


@torch.no_grad()
def correct_answers(model: Any, batch: PackedBatch, *, blank: bool = False) -> list[list[bool]]:
    """Return, per row and question, whether greedy decoding gives exactly the answer (of the last turn, after right ones).

    Greedy decoding follows the answer as long as each next token is the most likely one, so one teacher-forced pass
    decides it. With `blank` the picture is replaced by the mean colour.
    """
    pixels = torch.zeros_like(batch.pixel_values) if blank else batch.pixel_values
    logits, is_answer = answer_logits(model, batch, hidden_states(model, batch, vision_features(model, pixels)))
    is_wrong = torch.zeros(is_answer.shape, dtype=torch.bool)
    is_wrong[is_answer] = logits.argmax(-1) != batch.labels[:, 1:][is_answer]
    is_wrong &= batch.is_graded[:, 1:]
    segments = batch.segments[:, 1:]
    return [
        [not bool(is_wrong[row][segments[row] == number].any()) for number in range(1, len(questions) + 1)]
        for row, questions in enumerate(batch.questions)
    ]
