"""Live bytes and the largest outputs of every operation in a block, seen at the dispatcher."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Use as a context manager.

    Args:
        flag_elements: outputs with at least this many elements of their own are flagged.

    Attributes:
        flagged: how often each (operation, shape) with such an output was seen. Views count: an expanded view is a promise
            to make the tensor.
        live, peak: bytes of storages that were made within the block and are alive, and their largest sum.
    """

    def __init__(self, flag_elements: int) -> None:
        super().__init__()
        self.flag_elements = flag_elements
        self.flagged: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.live = self.peak = 0
        self._tensors: Counter[int] = Counter()  # tensors alive on each storage
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(str(func), leaf, given)
        return out

    def _see(self, name: str, tensor: Tensor, given: set[int]) -> None:
        if tensor.numel() >= self.flag_elements:
            self.flagged[name, tuple(tensor.shape)] += 1
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._bytes:
            if key in given:
                return  # a view of something older than the block
            self._bytes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._gone, key)

    def _gone(self, key: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            self.live -= self._bytes.pop(key)
            del self._tensors[key]


def observe(block: Any, flag_elements: int) -> LiveBytes:
    """Run a function without gradients and return what was seen."""
    with torch.no_grad(), LiveBytes(flag_elements) as seen:
        result = block()
    del result
    return seen
