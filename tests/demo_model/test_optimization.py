from __future__ import annotations

import torch

from demo_model.optimization import Muon


def test_muon_takes_the_steps_of_torchs_own() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 64), (64, 24), (24, 64), (32, 32))]
    ours, theirs = ([matrix.clone().requires_grad_() for matrix in start] for _ in range(2))
    optimizers = [
        Muon(ours, 0.02, 0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradients = [torch.randn_like(matrix) for matrix in start]
        for matrices, optimizer in zip((ours, theirs), optimizers, strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (other - before).norm()
        assert moved > 0.1
        assert (mine - other).norm() < 0.02 * moved  # theirs is rounded to bfloat16
