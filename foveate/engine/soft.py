"""Training trained methods: every token stays, and attention behind a stage weighs keys by how much they are kept.

Dynamic-LLaVA, arXiv:2412.00876, Eq. 7: with M_j in {0, 1} drawn by Gumbel-softmax and passed straight through,
G_ij = M_j + (1 - M_j) [i = j] multiplies exp(score). A dropped token attends to kept ones and itself, so its own loss is
defined, and one pass equals decoding under the same decisions. The weight stands in front of the softmax's sum and not in
its logarithm: a dropped key still has a gradient, the way by which it can come back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foveate.core.layout import Role
from foveate.core.method import ScoreMethod, StepMethod, top_indices
from foveate.core.plan import Plan, Stage
from foveate.core.view import StepView, TokenView
from foveate.engine import compat, forward, prefill
from foveate.engine.forward import Pass, Span
from foveate.errors import UnsupportedCombination

SOFT = "foveate_soft"
POLICY = "foveate_policy"
# Scores held at once, over batch, heads, queries and keys: bounds the memory of a layer at any length of the prompt.
_SCORES_AT_ONCE = 1 << 24
# Above this a dropped key's exp(score) grows no more: it only scales a gradient.
_LARGEST = 20.0


class SoftConfig:
    """The config that an attention module shows while it is trained under a policy."""

    def __init__(self, wrapped: Any) -> None:
        self.__dict__["wrapped"] = wrapped

    def __getattr__(self, name: str) -> Any:
        return SOFT if name == "_attn_implementation" else getattr(self.__dict__["wrapped"], name)


def soft_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """The attention function of trained layers: as the model's own without a policy, else Eq. 7.

    Args:
        query: [B, H, S, D].   key, value: [B, Hk, S, D].   attention_mask: as the model's own implementation gets it.
    """
    policy = kwargs.pop(POLICY, None)
    if policy is None:
        function = compat.attention_function(module, module.config.wrapped._attn_implementation)  # type: ignore[union-attr, arg-type]
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    batch, heads, count, width = query.shape
    repeat = heads // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scaling = kwargs.get("scaling") or width**-0.5
    step = max(1, _SCORES_AT_ONCE // (batch * heads * count))
    parts = []
    for start in range(0, count, step):
        rows = query[:, :, start : start + step]
        seen = _seen(attention_mask, start, rows.shape[2], count, query.device)
        arguments = (rows, key, value, policy, seen, start, scaling, kwargs.get("softcap"))
        # Recomputed in backward, so that no scores are kept for it.
        part = checkpoint(_attend, *arguments, use_reentrant=False) if torch.is_grad_enabled() else _attend(*arguments)
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _seen(mask: Any, start: int, rows: int, count: int, device: torch.device) -> Tensor:
    """[B or 1, 1, rows, S] bool, from a mask of any format but flex's."""
    if isinstance(mask, Tensor) and mask.ndim == 4:
        part = mask[:, :, start : start + rows, :count]
        return part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    asking = torch.arange(start, start + rows, device=device)[:, None]
    causal = (torch.arange(count, device=device)[None] <= asking)[None, None]
    return causal if mask is None else causal & mask[:, None, None, :count].bool()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, policy: Tensor, seen: Tensor, start: int, scaling: float, softcap: float | None
) -> Tensor:
    """Eq. 7 for some query rows: [B, H, r, D]."""
    score = (query @ key.transpose(-1, -2)).float() * scaling
    if softcap is not None:
        score = torch.tanh(score / softcap) * softcap
    lowest = torch.finfo(score.dtype).min
    score = score.masked_fill(~seen, lowest)
    rows = torch.arange(start, start + query.shape[2], device=query.device)
    own = rows[:, None] == torch.arange(key.shape[2], device=query.device)[None]
    kept = torch.where(own, 1.0, policy.float()[:, None, None])  # G, [B, 1, r, S]
    # The largest score among keys that count: what is dropped must not push the others below what a float can hold.
    largest = score.detach().masked_fill(kept.detach() == 0, lowest).amax(-1, keepdim=True)
    weight = (score - largest).clamp(max=_LARGEST).exp() * kept
    share = weight / weight.sum(-1, keepdim=True)
    return share.to(value.dtype) @ value


@dataclass
class SoftMode:
    """How decisions are made while training, and what the last pass decided.

    Attributes:
        tau: temperature of the Gumbel-softmax.
        least_answer: shorter answers are kept whole (LEN in the paper).
        draw: "chance" leaves the modules aside and keeps a random choice of the same size: the control that shows what a model
            owes to the choice, and what to the training. While training torch's own generator draws.
        text_keep: share of an answer's tokens that a random draw keeps.
        seed: of random draws in validation, the same for every batch.
        image_shares: of the last pass, one share of kept tokens for each image or video, with gradients.
        text_shares: (share, length) of each row's answer; a row whose answer was kept whole has the share None.
        judged: by method, logits [n, 2] of the tokens that validation judged, those of short answers left out; None to note
            nothing.
    """

    tau: float = 1.0
    least_answer: int = 50
    draw: Literal["learned", "chance"] = "learned"
    text_keep: float = 0.5
    seed: int = 0
    image_shares: list[Tensor] = field(default_factory=list)
    text_shares: list[tuple[Tensor | None, int]] = field(default_factory=list)
    judged: dict[str, list[Tensor]] | None = None

    def note(self, stage: Stage, logits: Tensor) -> None:
        """Note logits of judged tokens, if somebody wants them."""
        if self.judged is not None:
            self.judged.setdefault(stage.method.name, []).append(logits.detach())

    def penalty(self, image_keep: float, text_keep: float) -> Tensor:
        """Mean squared distance of the shares from their targets: images plus answers (Eq. 10 as the authors' code has it).

        A short answer counts as met.
        """
        total = torch.zeros((), dtype=torch.float32, device="cpu")
        if self.image_shares:
            shares = torch.stack(self.image_shares)
            total = ((shares - image_keep) ** 2).mean()
        if self.text_shares:
            off = [(share - text_keep) ** 2 for share, _ in self.text_shares if share is not None]
            if off:
                text = torch.stack(off).sum() / len(self.text_shares)
                total = total.to(text.device) + text
        return total


class SoftHooks:
    """What runs in front of the decoder's layers while trained methods learn.

    Args:
        owner: the attachment, as the key of passes.
        plan: stages of trained methods, all at one layer.
        modules: the modules, by stage.
        mode: tau and lengths; takes what was decided.
    """

    def __init__(self, owner: object, plan: Plan, modules: Mapping[Stage, nn.Module], mode: SoftMode) -> None:
        self.owner, self.modules, self.mode = owner, modules, mode
        self.image = next((stage for stage in plan.stages if isinstance(stage.method, ScoreMethod)), None)
        self.gate = plan.gate
        layers = {stage.site.layer for stage in plan.stages}
        on_text = any(stage.role is Role.INSTRUCT for stage in plan.stages)
        if len(layers) != 1 or set(plan.stages) - set(modules) or on_text:
            raise UnsupportedCombination(
                'mode="soft" trains stages of learned methods that act at one layer: a plan with such stages and no others'
            )
        self.layer = layers.pop() or 0
        self._wrapped: list[nn.Module] = []

    def install(self, attentions: list[nn.Module]) -> None:
        """Let the attention modules of the layers from the stage on show our implementation."""
        compat.register_attention(SOFT, soft_attention)
        for module in attentions:
            module.config = SoftConfig(module.config)  # type: ignore[assignment]
            self._wrapped.append(module)

    def remove(self) -> None:
        """Give the modules their configs back."""
        for module in self._wrapped:
            module.config = module.config.wrapped  # type: ignore[union-attr]
        self._wrapped.clear()

    def before_layer(self, index: int) -> Callable[..., Any]:
        """The pre-hook of a layer: decides in front of the first one, hands the policy to all."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            running = forward.current(self.owner)
            if running is None:
                return None
            if running.past:
                raise UnsupportedCombination(
                    'mode="soft" reads whole sequences, for training and validation: attach without it to generate'
                )
            if index == self.layer:
                running.policy = self._decide(running, args[0] if args else kwargs["hidden_states"], module.training)
            if running.policy is None:
                return None
            return args, {**kwargs, POLICY: running.policy}

        return run

    def _decide(self, running: Pass, hidden: Tensor, training: bool) -> Tensor | None:
        """M: [B, S], 1 at columns that are no stage's business."""
        self.mode.image_shares, self.mode.text_shares = [], []
        policy = torch.ones(hidden.shape[:2], device=hidden.device, dtype=torch.float32)
        if self.image is not None and running.spans:
            policy = self._judge_media(running, hidden, policy, self.image, training)
        if self.gate is not None and running.numbers is not None:
            policy = self._judge_answers(running, hidden, policy, self.gate, training)
        return policy

    def _judge_media(self, running: Pass, hidden: Tensor, policy: Tensor, stage: Stage, training: bool) -> Tensor:
        groups: dict[int, list[Span]] = defaultdict(list)
        for span in running.spans:
            groups[span.count].append(span)
        for spans in groups.values():
            rows = torch.tensor([span.row for span in spans], device=hidden.device)[:, None]
            columns = torch.stack([span.columns for span in spans])
            asks = tuple(span.asks for span in spans) if any(span.asks for span in spans) else ()
            kept = self._keep_media(stage, hidden[rows, columns], asks, training)
            policy = policy.index_put((rows, columns), kept)
            self.mode.image_shares += list(kept.mean(1))
        return policy

    def _keep_media(self, stage: Stage, features: Tensor, asks: tuple[bool, ...], training: bool) -> Tensor:
        """The decision for media of [G, N, D]: [G, N] of 0 and 1; 1 for the last token of groups that ask."""
        assert isinstance(stage.method, ScoreMethod) and stage.budget is not None
        module = self.modules[stage]
        groups, count = features.shape[:2]
        states = features if self.mode.draw == "chance" else features.to(_dtype(module))
        view = TokenView(
            states,
            torch.zeros(groups, count, 3, dtype=torch.long, device="cpu"),
            None,
            torch.ones(groups, count, dtype=torch.float32, device="cpu"),
            tuple(range(groups)),
            predictor=module,
            asks=asks,
        )
        if self.mode.draw == "chance":
            noise = prefill.with_asking(self._noise((groups, count), features.device, training), view)
            best = top_indices(noise, stage.budget.resolve(count))
            return torch.zeros_like(noise).scatter(1, best, 1.0)
        if training:
            drawn = self._draw(module(states))
            return prefill.with_asking(drawn, view).clamp(max=1.0) if asks else drawn
        if self.mode.judged is not None:
            self.mode.note(stage, module(view.features))
        score = prefill.with_asking(stage.method.score(view), view)
        if stage.budget.threshold is not None:
            return (score > stage.budget.threshold).float()
        best = top_indices(score, stage.budget.resolve(count))
        return torch.zeros_like(score).scatter(1, best, 1.0)

    def _judge_answers(self, running: Pass, hidden: Tensor, policy: Tensor, stage: Stage, training: bool) -> Tensor:
        assert running.numbers is not None and isinstance(stage.method, StepMethod)
        numbers = running.numbers.to(hidden.device).expand(hidden.shape[0], -1)
        answer = numbers >= 0
        module = self.modules[stage]
        if self.mode.draw == "chance":
            kept = (self._noise(hidden.shape[:2], hidden.device, training) < self.mode.text_keep).float()
        elif training:
            kept = self._draw(module(hidden.to(_dtype(module))))
        else:
            kept = stage.method.gate(StepView(hidden.to(_dtype(module)), numbers, module), None).float()
        lengths = answer.sum(1)
        if self.mode.judged is not None:
            long = answer & (lengths >= self.mode.least_answer)[:, None]
            self.mode.note(stage, module(hidden.to(_dtype(module)))[long])
        if training:
            answer = answer & (lengths >= self.mode.least_answer)[:, None]
        for row, length in enumerate(lengths.tolist()):
            judged = length and (not training or length >= self.mode.least_answer)
            self.mode.text_shares.append((kept[row][answer[row]].mean() if judged else None, length))
        return torch.where(answer, kept, policy)

    def _noise(self, shape: tuple[int, ...], device: torch.device, training: bool) -> Tensor:
        """Uniform numbers. Of the CPU's generator, so that validation says the same on every device."""
        generator = None if training else torch.Generator().manual_seed(self.mode.seed)
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    def _draw(self, logits: Tensor) -> Tensor:
        """Of logits [..., 2] a decision for each token: 1 keeps. Straight through: the gradient is that of the soft sample."""
        sample = F.gumbel_softmax(logits.float().log_softmax(-1), tau=self.mode.tau, hard=True)
        return sample[..., 0]


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
