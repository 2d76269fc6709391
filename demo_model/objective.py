"""What training minimises: answer tokens of packed batches, patch labels read from the vision encoder, and words read from
the projected visual tokens.

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

from demo_model.labels import COLOR_CLASSES, FORM_CLASSES, PART_CLASSES, TAG_COUNT, PatchLabels, patch_words, picture_tags
from foveate.demo.forced import answer_logits, hidden_states
from foveate.demo.packing import PackedBatch
from foveate.demo.samples import Sample
from foveate.errors import FoveateError

BACKGROUND_WEIGHT = 0.2
TAG_WEIGHT = 2.0
WORD_WEIGHT = 0.3  # the word loss is a sum over words, about four of them right
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
    """Linear readouts of the last vision layer, and the words that each projected patch should resemble.

    Colour, form and part are read per patch, tags from the class token. The words tie the visual tokens to the embeddings of
    their names: a question that says "star" then finds the star by its key, which is otherwise learnt late.
    """

    def __init__(self, width: int, word_ids: Sequence[int], grid: int, detailed: bool = False) -> None:
        super().__init__()
        self.classes = nn.ModuleList(nn.Linear(width, count) for count in (COLOR_CLASSES, FORM_CLASSES, PART_CLASSES))
        self.tags = nn.Linear(width, TAG_COUNT)
        self.word_scale = nn.Parameter(torch.ones(1))
        self.word_bias = nn.Parameter(torch.full((1,), -3.0))
        self.word_ids = list(word_ids)
        self.grid, self.detailed = grid, detailed

    def loss(self, model: Any, features: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
        """Return the auxiliary loss of `features` [pictures, 1 + patches, D], class token first."""
        pictures = self._labels(samples)
        classes = torch.from_numpy(np.stack([labels.classes for labels in pictures]))
        words = torch.from_numpy(np.stack([labels.words[:, : len(self.word_ids)] for labels in pictures]))
        tags = torch.from_numpy(np.stack([picture_tags(picture) for sample in samples for picture in sample.pictures]))
        patches = features[:, 1:]
        total = TAG_WEIGHT * F.binary_cross_entropy_with_logits(self.tags(features[:, 0]).float(), tags)
        for row, head in enumerate(self.classes):
            logits = head(patches).flatten(0, 1).float()
            weights = torch.ones(logits.shape[1])
            weights[0] = BACKGROUND_WEIGHT
            total = total + F.cross_entropy(logits, classes[:, row].flatten(), weight=weights)
        return total + WORD_WEIGHT * self._word_loss(model, patches, words)

    def _word_loss(self, model: Any, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        visual = model.model.multi_modal_projector(patches)
        # What the first decoder layer compares is normalised too.
        visual = F.rms_norm(visual, visual.shape[-1:])
        table = model.model.language_model.embed_tokens.weight[self.word_ids]
        logits = (visual @ table.T).float() * self.word_scale.float() + self.word_bias.float()
        losses = F.binary_cross_entropy_with_logits(logits, words, reduction="none").sum(-1)
        weights = torch.where(words.any(-1), 1.0, BACKGROUND_WEIGHT)
        return (losses * weights).sum() / weights.sum()

    def _labels(self, samples: Sequence[Sample]) -> list[PatchLabels]:
        return [PatchLabels(picture, self.grid, self.detailed) for sample in samples for picture in sample.pictures]

    @torch.no_grad()
    def form_accuracy(self, features: torch.Tensor, samples: Sequence[Sample]) -> float:
        """Return how often the form of a labelled patch is recognised."""
        labels = torch.from_numpy(np.stack([labels.classes[1] for labels in self._labels(samples)]))
        is_labelled = labels > 0
        guesses = self.classes[1](features[:, 1:]).argmax(-1)
        return float((guesses[is_labelled] == labels[is_labelled]).float().mean())


def patch_word_ids(tokenizer: Any, detailed: bool = False) -> list[int]:
    """Return the token that starts each of `patch_words` inside a sentence; digits are tokens of their own."""
    ids = []
    for word in patch_words(detailed):
        tokens = list(tokenizer(word if word.isdigit() else f" {word}", add_special_tokens=False)["input_ids"])
        if len(tokens) != 1:
            raise FoveateError(f"'{word}' is {len(tokens)} tokens; raise VOCABULARY_LIMIT of the demo tokenizer")
        ids.append(tokens[0])
    return ids


def answer_loss(model: Any, batch: PackedBatch, features: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean cross entropy of the answer tokens."""
    logits, is_answer = answer_logits(model, batch, hidden_states(model, batch, features))
    losses = F.cross_entropy(logits, batch.labels[:, 1:][is_answer], reduction="none")
    weights = batch.weights[:, 1:][is_answer]
    return (losses * weights).sum() / weights.sum()
