"""Peak memory of a stretch of work: what CUDA allocated, or how far the process grew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Filled when the work is done.

    Attributes:
        bytes: on CUDA the most that was allocated; elsewhere by how much resident memory grew at most; None where the system
            does not tell.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block on a device."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    before = _start()
    yield peak
    peak.bytes = None if before is None else max(0, _resident("VmHWM") - before)


def _start() -> int | None:
    """Resident bytes now, from which on the high-water mark counts; None where there is no such mark."""
    try:
        _CLEAR.write_text("5")  # Linux: the peak of the whole process would hide those of later rows
        return _resident("VmRSS")
    except OSError:
        return None


def _resident(name: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
