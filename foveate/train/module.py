"""The module that a trainer trains: a model and its predictors under one roof, so that one optimizer and one checkpoint
hold both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import foveate
from foveate.engine.carrying import unwrap
from foveate.errors import UnsupportedCombination
from foveate.train.parts import METHODS, choose_parameters, encoders, fresh_predictors, is_learned, plan_of
from foveate.train.settings import NONE, RANDOM, TrainingConfig


class SoftModel(nn.Module):
    """A model whose forward keeps every token and weighs keys by what the predictors decide.

    In training decisions are drawn, in eval mode they are those of the finished method.

    Args:
        model: as loaded; what does not train is frozen here.
        config: of the training.
    """

    # Losses are means over a pass, as the paper's are: the trainer divides by the passes of a step.
    accepts_loss_kwargs = False

    def __init__(self, model: Any, config: TrainingConfig) -> None:
        super().__init__()
        self.config_of_training = config
        self.predictors = nn.ModuleDict(fresh_predictors(model, config) if is_learned(config) else {})
        self.encoders = encoders(model)
        self.model = choose_parameters(model, config)
        self.attachment = None
        if config.masks != NONE:
            plan = plan_of(config)
            used: dict[str, nn.Module] = {method: nn.Identity() for method in METHODS.values()}
            used |= {METHODS[name]: module for name, module in self.predictors.items()}
            self.attachment = foveate.attach(self.model, plan, mode="soft", modules=used)
            soft = self.attachment.soft
            assert soft is not None
            config.prepare(soft)
            soft.draw = "chance" if config.masks == RANDOM else "learned"
        if config.checkpointing:
            self._checkpoint()

    def _checkpoint(self) -> None:
        model = unwrap(self.model)
        if not hasattr(model, "activation_checkpointing_enable"):
            raise UnsupportedCombination("--checkpointing under a plan needs transformers >= 5.23")
        model.activation_checkpointing_enable()  # type: ignore[operator]

    @property
    def soft(self) -> Any:
        """Temperature and shares of the attachment; None where nothing is masked."""
        return None if self.attachment is None else self.attachment.soft

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        """The model's loss on the labels, and what the masks were.

        Returns:
            `loss`; `penalty`, with gradients, NaN where the training has none; `image_keep` and `text_keep`, mean shares, NaN
            where nothing was judged.
        """
        dtype = next(part.dtype for part in self.model.parameters() if part.is_floating_point())
        inputs = {
            name: value.to(dtype) if name.startswith("pixel_values") and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        soft = self.soft
        if soft is not None:
            soft.image_shares, soft.text_shares = [], []
        loss: Tensor = self.model(labels=labels, use_cache=False, **inputs).loss
        if self.training and not loss.requires_grad:  # no picture in this pass, so nothing was decided
            loss = loss + 0 * sum(part.sum() for group in self.groups().values() for _, part in group)
        nothing = loss.new_tensor(float("nan"))
        if soft is None:
            return {"loss": loss, "penalty": loss.new_zeros(()), "image_keep": nothing, "text_keep": nothing}
        paid = self.config_of_training.penalty(soft)
        penalty = nothing if paid is None else paid.to(loss.device)
        judged = [share for share, _ in soft.text_shares if share is not None]
        shares = {"image_keep": _mean(soft.image_shares, loss), "text_keep": _mean(judged, loss)}
        return {"loss": loss, "penalty": penalty, **shares}

    def train(self, mode: bool = True) -> SoftModel:
        """Training mode, but for the vision encoder, which is frozen: dropout there would be noise."""
        super().train(mode)
        for encoder in self.encoders:
            encoder.eval()
        return self

    def groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """The parameters that train, by name: those of the base and those of the predictors."""
        trained = [(name, part) for name, part in self.named_parameters() if part.requires_grad]
        return {
            "base": [(name, part) for name, part in trained if not name.startswith("predictors.")],
            "predictors": [(name, part) for name, part in trained if name.startswith("predictors.")],
        }

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: everything that trains, shared weights once."""
        return {name: part.detach().cpu().contiguous() for group in self.groups().values() for name, part in group}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Take up a checkpoint's weights.

        Raises:
            UnsupportedCombination: if they are of another training.
        """
        trained = {name: part for group in self.groups().values() for name, part in group}
        if set(trained) != set(state) or any(trained[name].shape != state[name].shape for name in trained):
            raise UnsupportedCombination(
                "this checkpoint holds other weights than this run trains: resume with its own settings"
            )
        with torch.no_grad():
            for name, part in trained.items():
                part.copy_(state[name])


def _mean(shares: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(shares).detach().mean().to(like.device) if shares else like.new_tensor(float("nan"))
