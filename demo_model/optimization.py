"""Optimizers of the demo training: Muon on the matrices of the layers, AdamW on the rest, in float32 or bfloat16."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

GRADIENT_NORM = 1.0
LAST_SCALE = 0.02  # the learning rate never reaches zero, so the last minutes still train


def learning_rate_scale(step: int, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Return the factor on the learning rate: a ramp, then flat, then linear to almost zero over the last `decay_steps`."""
    return min(1.0, (step + 1) / warmup_steps, max(LAST_SCALE, (steps - step) / decay_steps))


# Of the polynomial that brings singular values near 1 (Jordan et al., Muon, 2024).
_NEWTON_SCHULZ, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, orthogonalised in float32 and in batches of one shape.

    torch's own works in bfloat16, which takes 25 times as long on a CPU without instructions for it: longer than the rest of
    a step.
    """

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[tuple(matrix.shape)].append(matrix)
            for matrices in alike.values():
                self._update(matrices, group)

    def _update(self, matrices: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        steps = []
        for matrix in matrices:
            assert matrix.grad is not None
            buffer = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            buffer.lerp_(matrix.grad, 1 - group["momentum"])
            steps.append(matrix.grad.lerp(buffer, group["momentum"]))  # Nesterov
        # Matched to the step of AdamW, so that one learning rate fits both (Liu et al., arXiv 2502.16982, section 2.2).
        rate = group["lr"] * 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, step in zip(matrices, _orthogonal(torch.stack(steps)), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly, of a stack [K, A, B]."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


class MasterWeights:
    """Trains a module in `dtype` through float32 copies of its weights, because bfloat16 cannot hold small updates.

    The module's buffers stay float32: rounding the rotary frequencies would make training and inference differ.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module = module
        self._dtype, self._is_copy = dtype, dtype != torch.float32
        self._names = [name for name, _ in module.named_parameters()]
        self.masters: list[torch.Tensor] = list(module.parameters())
        if self._is_copy:
            self.masters = [p.detach().clone().requires_grad_() for p in module.parameters()]
            _convert_weights(module, dtype)
        self._weights: list[torch.Tensor] = list(module.parameters())

    def optimizers(self, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices inside transformer layers and AdamW for everything else."""
        pairs = list(zip(self._names, self.masters, strict=True))
        matrices = [p for name, p in pairs if p.ndim == 2 and ".layers." in name]
        rest = [p for name, p in pairs if not (p.ndim == 2 and ".layers." in name)]
        adam = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        return [Muon(matrices, learning_rate, weight_decay), adam]

    def step(self, optimizers: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
        """Step every optimizer on the masters, copy the result to the module and drop the gradients."""
        if self._is_copy:
            for weight, master in zip(self._weights, self.masters, strict=True):
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, GRADIENT_NORM)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        if self._is_copy:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self.masters)

    def release(self) -> None:
        """Put the float32 values back into the module."""
        if self._is_copy:
            self._module.to(torch.float32)
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self.masters)

    def values(self) -> dict[int, torch.Tensor]:
        """Return the float32 value of each weight, by the weight's identity."""
        return {id(weight): master for weight, master in zip(self._weights, self.masters, strict=True)}


def _convert_weights(module: nn.Module, dtype: torch.dtype) -> None:
    buffers = [(name, b.clone()) for name, b in module.named_buffers(remove_duplicate=False) if b.is_floating_point()]
    module.to(dtype)
    for name, buffer in buffers:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer)
