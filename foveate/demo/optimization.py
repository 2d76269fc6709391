"""Optimizers of the demo training: bfloat16 weights with float32 masters, Muon on the matrices, AdamW on the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from foveate.errors import FoveateError

GRADIENT_NORM = 1.0
LAST_SCALE = 0.02  # the learning rate never reaches zero, so the last minutes still train


def learning_rate_scale(fraction: float, warmup: float, decay: float) -> float:
    """Return the factor on the learning rate after `fraction` of the phase: ramp, flat, linear decay over the last `decay`."""
    return min(1.0, fraction / warmup, max(LAST_SCALE, (1 - fraction) / decay))


class MasterWeights:
    """Trains a bfloat16 module through float32 copies, because bfloat16 cannot hold small updates.

    The module's buffers stay float32: rounding the rotary frequencies would make training and inference differ.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._names = [name for name, _ in module.named_parameters()]
        self.masters = [p.detach().clone().float().requires_grad_() for p in module.parameters()]
        buffers = [(name, b.clone()) for name, b in module.named_buffers(remove_duplicate=False) if b.is_floating_point()]
        module.to(torch.bfloat16)
        for name, buffer in buffers:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, buffer)
        self._weights = list(module.parameters())

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices inside transformer layers and AdamW for everything else."""
        if not hasattr(torch.optim, "Muon"):
            raise FoveateError(f"training the demo model needs torch 2.9 or newer (found {torch.__version__})")
        pairs = list(zip(self._names, self.masters, strict=True))
        matrices = [p for name, p in pairs if p.ndim == 2 and ".layers." in name]
        rest = [p for name, p in pairs if not (p.ndim == 2 and ".layers." in name)]
        muon = torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]

    def step(self, optimizers: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
        """Move the gradients to the masters, step every optimizer and copy the result back."""
        for weight, master in zip(self._weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, GRADIENT_NORM)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self.masters)

    def release(self) -> None:
        """Put the float32 values back into the module."""
        self._module.to(torch.float32)
        with torch.no_grad():
            torch._foreach_copy_(list(self._module.parameters()), self.masters)

    def values(self) -> dict[int, torch.Tensor]:
        """Return the float32 value of each weight, by the weight's identity."""
        return {id(weight): master for weight, master in zip(self._weights, self.masters, strict=True)}
