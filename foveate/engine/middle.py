"""Encoder stages between the attention and the MLP of a block, where the authors of iLLaVA merge.

A block computes x = x + attention(norm(x)), then x + mlp(norm(x)). The stage takes x in between: the second norm and the MLP
see what is left of it, and what leaves the block is put together here, for the block's own sum has the full length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Middle:
    """The hooks around the second half of one block.

    Args:
        block: the encoder layer.
        norm, mlp: paths of its second norm and its MLP.
        run: shortens the states [B, n, D] of the call that is running; returns its argument where nothing is to be done.
    """

    def __init__(self, block: nn.Module, norm: str, mlp: str, run: Callable[[Tensor], Tensor]) -> None:
        self.block, self.norm, self.mlp, self.run = block, block.get_submodule(norm), block.get_submodule(mlp), run
        # What the block will add the MLP's output to; and what the stage left of it, then with the MLP's output.
        self._running: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("foveate_middle", default=None)

    def install(self) -> list[RemovableHandle]:
        """Register the hooks."""
        return [
            self.norm.register_forward_pre_hook(self._before_norm),
            self.mlp.register_forward_hook(self._after_mlp),
            self.block.register_forward_hook(self._after_block, always_call=True),
        ]

    def settle(self) -> None:
        """Forget a call that was interrupted."""
        self._running.set(None)

    def _before_norm(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        self.settle()
        states = args[0]
        left = self.run(states)
        if left is states:
            return None
        self._running.set((states, left))
        return (left, *args[1:])

    def _after_mlp(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        running = self._running.get()
        if running is None:
            return None
        whole, left = running
        self._running.set((whole, left + output))  # as the block would
        return output.new_zeros(1, 1, 1).expand(whole.shape)

    def _after_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        running = self._running.get()
        self.settle()
        if running is None or output is None:
            return None
        left = running[1]
        return (left, *output[1:]) if isinstance(output, tuple) else left
