"""An independent reference for training Dynamic-LLaVA: the paper's mathematics with every square matrix in memory.

arXiv 2412.00876, Eq. 5 to 7 and 10, on the layers of a LLaVA with a Llama decoder. Shares no code with the engine: of the model
it uses weights, norms, MLPs and the vision tower, and writes decisions, masks, attention and losses out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def decide(logits: Tensor, tau: float) -> Tensor:
    """Straight-through Gumbel-softmax of logits [..., 2]: 1 keeps; noise of torch's own generator."""
    log_share = logits.log_softmax(-1)
    noise = -torch.empty_like(log_share).exponential_().log()
    soft = ((log_share + noise) / tau).softmax(-1)[..., 0]
    return (soft >= 0.5).to(soft.dtype) - soft.detach() + soft


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat([-second, first], -1) * sin


def _attention(
    module: nn.Module, states: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor, kept: Tensor, eps: float
) -> Tensor:
    """Eq. 7. `seen`: [B, S, S] bool. `kept`: G, [B, S, S]. `eps`: the smoothing of the authors' code, 0 in the paper."""
    batch, width, _ = states.shape
    parts = [
        project(states).view(batch, width, -1, module.head_dim).transpose(1, 2)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    ]
    query, key = (_turned(part, *(axis[:, None] for axis in rotary)) for part in parts[:2])
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, parts[2]))
    score = (query @ key.transpose(-1, -2) / math.sqrt(module.head_dim)).masked_fill(~seen[:, None], -torch.inf)
    weight = (score - score.amax(-1, keepdim=True).detach()).exp() * kept[:, None]
    share = (weight + eps / width) / (weight.sum(-1, keepdim=True) + eps)
    return module.o_proj((share @ value).transpose(1, 2).reshape(batch, width, -1))


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the answers' tokens."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def training_loss(
    model: nn.Module,
    image: nn.Module,
    text: nn.Module,
    inputs: dict[str, Tensor],
    pictures: list[tuple[int, Tensor]],
    layer: int,
    tau: float,
    shares: tuple[float, float],
    weight: float,
    eps: float = 0.0,
) -> Tensor:
    """Cross entropy of the answers, plus `weight` times the squared distances of the shares from their targets (Eq. 10).

    Args:
        image, text: the predictors.
        inputs: of the model, with labels; padded on the right, all pictures of one size and none right in front of an answer.
        pictures: row and columns of each picture.
        layer: in front of which the predictors judge.
        shares: of a picture's and of an answer's tokens that should stay.
    """
    decoder: Any = model.get_submodule("model.language_model")
    ids, labels, real = inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool()
    states = model.get_input_embeddings()(ids)
    rows, columns = torch.tensor([row for row, _ in pictures])[:, None], torch.stack([own for _, own in pictures])
    features = model.get_submodule("model").get_image_features(inputs["pixel_values"]).pooler_output
    states = states.index_put((rows, columns), torch.stack(list(features)))
    batch, width = ids.shape
    rotary = decoder.rotary_emb(states, torch.arange(width)[None])
    seen = torch.ones(width, width, dtype=torch.bool).tril()[None] & real[:, None]
    kept, penalty = states.new_ones(batch, width, width), states.new_zeros(())
    for number, block in enumerate(decoder.layers):
        if number == layer:
            of_image = decide(image(states[rows, columns]), tau)
            of_text = decide(text(states), tau)
            answer = labels != -100
            policy = torch.where(answer, of_text, states.new_ones(batch, width).index_put((rows, columns), of_image))
            kept = policy[:, None] + (1 - policy[:, None]) * torch.eye(width, dtype=states.dtype)
            means = torch.stack([of_text[row][answer[row]].mean() for row in range(batch)])
            penalty = ((of_image.mean(1) - shares[0]) ** 2).mean() + ((means - shares[1]) ** 2).mean()
        smoothing = eps if number >= layer else 0.0
        states = states + _attention(block.self_attn, block.input_layernorm(states), rotary, seen, kept, smoothing)
        states = states + block.mlp(block.post_attention_layernorm(states))
    logits = model.get_submodule("lm_head")(decoder.norm(states))
    return answer_loss(logits, labels) + weight * penalty
