"""Training trained methods: every token stays, and attention after a stage weighs keys by how much they are kept.

Dynamic-LLaVA, arXiv:2412.00876, Eq. 7 (`soft_attention`): M_j in {0, 1} is drawn by Gumbel-softmax and passed straight
through, and one pass equals decoding under the same decisions. So are scores that are probabilities of staying; a method whose
scores only rank learns by a soft top-k instead, M_j from 0 to 1 (VisionSelector, arXiv:2510.16598).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.core.budget import Budget
from foveate.core.layout import Role
from foveate.core.method import ScoreMethod, StepMethod, top_indices
from foveate.core.plan import Plan, Stage
from foveate.core.view import Observation, StepView, TokenView
from foveate.engine import compat, forward
from foveate.engine.asking import with_asking
from foveate.engine.forward import Pass
from foveate.engine.question import question_states
from foveate.engine.soft_attention import POLICY, SOFT, SoftConfig, at_least_float32, soft_attention
from foveate.engine.spans import Span, widen
from foveate.errors import UnsupportedCombination
from foveate.ops.soft_top_k import soft_top_k


@dataclass
class SoftMode:
    """How decisions are made while training, and what the last pass decided.

    Attributes:
        tau: temperature of the Gumbel-softmax, or of the soft top-k.
        budgets: least and most share of a picture that a pass of training keeps, drawn on a logarithmic scale with torch's own
            generator; None for the stage's own budget.
        straight: a soft top-k goes straight through: keys are kept or not, and the gradient is the soft one.
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
    budgets: tuple[float, float] | None = None
    straight: bool = False
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
        attends = any(need.attends for stage in plan.stages for need in stage.method.needs())
        if any(stage.budget is not None and stage.budget.energy is not None for stage in plan.stages):
            raise UnsupportedCombination(
                'mode="soft" learns for a share or a count: write keep=0.5 in place of keep=energy:...'
            )
        if len(layers) != 1 or set(plan.stages) - set(modules) or on_text or attends:
            raise UnsupportedCombination(
                'mode="soft" trains stages of learned methods that act at one layer and look at no attention: a plan with such '
                "stages and no others"
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
                running.shared.policy = self._decide(running, args[0] if args else kwargs["hidden_states"], module.training)
            if running.shared.policy is None:
                return None
            return args, {**kwargs, POLICY: running.shared.policy}

        return run

    def _decide(self, running: Pass, hidden: Tensor, training: bool) -> Tensor | None:
        """M: [B, S], 1 at columns that are no stage's business."""
        self.mode.image_shares, self.mode.text_shares = [], []
        policy = torch.ones(hidden.shape[:2], device=hidden.device, dtype=at_least_float32(hidden.dtype))
        if self.image is not None and running.chooses:
            policy = self._judge_media(running, hidden, policy, self.image, training)
        if self.gate is not None and running.numbers is not None:
            policy = self._judge_answers(running, hidden, policy, self.gate, training)
        return policy

    def _judge_media(self, running: Pass, hidden: Tensor, policy: Tensor, stage: Stage, training: bool) -> Tensor:
        groups: dict[int, list[Span]] = defaultdict(list)
        for span in widen(running.left.spans, stage):
            groups[span.count].append(span)
        budget = self._budget(stage, training)
        for spans in groups.values():
            rows = torch.tensor([span.row for span in spans], device=hidden.device)[:, None]
            columns = torch.stack([span.columns for span in spans])
            asks = tuple(span.asks for span in spans) if any(span.asks for span in spans) else ()
            asked = {need: question_states(running, spans, hidden) for need in stage.method.needs()}
            kept = self._keep_media(stage, budget, hidden[rows, columns], asked, asks, training)
            policy = policy.index_put((rows, columns), kept.to(policy.dtype))
            self.mode.image_shares += list(kept.mean(1))
        return policy

    def _budget(self, stage: Stage, training: bool) -> Budget:
        """What the media of a pass keep."""
        assert stage.budget is not None
        if self.mode.budgets is None or not training:
            return stage.budget
        least, most = self.mode.budgets
        share = least * (most / least) ** float(torch.rand((), dtype=torch.float64, device="cpu"))
        return replace(stage.budget, ratio=Decimal(str(share)), count=None, threshold=None, energy=None)

    def _keep_media(
        self,
        stage: Stage,
        budget: Budget,
        features: Tensor,
        asked: Mapping[Observation, Tensor],
        asks: tuple[bool, ...],
        training: bool,
    ) -> Tensor:
        """The decision for media of [G, N, D]: [G, N] of 0 and 1; 1 for the last token of groups that ask."""
        assert isinstance(stage.method, ScoreMethod)
        module = self.modules[stage]
        groups, count = features.shape[:2]
        states = features if self.mode.draw == "chance" else features.to(_dtype(module))
        view = TokenView(
            states,
            torch.zeros(groups, count, 3, dtype=torch.long, device="cpu"),
            None,
            torch.ones(groups, count, dtype=torch.float32, device="cpu"),
            tuple(range(groups)),
            asked,
            module,
            asks=asks,
        )
        if self.mode.draw == "chance":
            noise = with_asking(self._noise((groups, count), features.device, training), view)
            return _top(noise, budget.resolve(count))
        if training:
            drawn = self._draw(module(states)) if stage.method.thresholds else self._weigh(stage.method.score(view), budget)
            return with_asking(drawn, view).clamp(max=1.0) if asks else drawn
        if self.mode.judged is not None:
            self.mode.note(stage, module(view.features))
        score = with_asking(stage.method.score(view), view)
        if budget.threshold is not None:
            return (score > budget.threshold).float()
        return _top(score, budget.resolve(count))

    def _weigh(self, score: Tensor, budget: Budget) -> Tensor:
        """Of scores [G, N] how much each token is kept, as often in all as the budget says."""
        keep = budget.resolve(score.shape[1])
        soft = soft_top_k(score, keep, self.mode.tau)
        return _top(score, keep) + (soft - soft.detach()) if self.mode.straight else soft

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
        return torch.where(answer, kept.to(policy.dtype), policy)

    def _noise(self, shape: tuple[int, ...], device: torch.device, training: bool) -> Tensor:
        """Uniform numbers. Of the CPU's generator, so that validation says the same on every device."""
        generator = None if training else torch.Generator().manual_seed(self.mode.seed)
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(device)

    def _draw(self, logits: Tensor) -> Tensor:
        """Of logits [..., 2] a decision for each token: 1 keeps. Straight through: the gradient is that of the soft sample."""
        logits = logits.to(at_least_float32(logits.dtype))
        sample = F.gumbel_softmax(logits.log_softmax(-1), tau=self.mode.tau, hard=True)
        return sample[..., 0]


def _top(score: Tensor, keep: int) -> Tensor:
    """[G, N], 1 at the largest scores and 0 elsewhere."""
    return torch.zeros_like(score).scatter(1, top_indices(score, keep), 1.0)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
