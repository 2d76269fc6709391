"""Raw result files: one per run, never overwritten, always whole."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch

from foveate.demo.evaluation import versions
from foveate.files.writing import write_file

FOLDER = Path(__file__).parent / "results"


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on besides the code."""
    found: dict[str, Any] = {
        "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load_average_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def header(benchmark: str, what: str, device: torch.device) -> dict[str, Any]:
    """The beginning of a raw file."""
    return {
        "benchmark": benchmark, "what": what, "date": date.today().isoformat(), "complete": False,
        "device": device.type, "machine": machine(device), "versions": versions(),
    }  # fmt: skip


def free_name(benchmark: str, device: str, folder: Path = FOLDER) -> Path:
    """`DATE-BENCHMARK-DEVICE-N.json` with the first N that is free."""
    number = 1
    while (path := folder / f"{date.today().isoformat()}-{benchmark}-{device}-{number}.json").exists():
        number += 1
    return path


def write_results(path: Path, result: dict[str, Any]) -> None:
    """Write a raw file, whole or not at all; lists of numbers stand on one line."""
    text = json.dumps(result, indent=1, allow_nan=False)
    write_file(path, re.sub(r"\[[^\[\]{}\"]+\]", lambda found: " ".join(found[0].split()), text) + "\n")


class ResultFile:
    """A raw file that grows with the run. It is reserved at once, and every `save` replaces it as a whole.

    Raises:
        FileExistsError: if the file exists: results are never overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        with path.open("x", encoding="utf-8"):
            pass

    def save(self, result: dict[str, Any]) -> None:
        """Write what is known so far."""
        write_results(self.path, result)

    def drop_if_empty(self) -> None:
        """Take the reservation back if nothing was measured."""
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()


def load(path: Path, benchmarks: tuple[str, ...]) -> dict[str, Any]:
    """Read a raw file.

    Raises:
        ValueError: if it is none, or of another benchmark.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(result, dict) or result.get("benchmark") not in benchmarks:
        raise ValueError(f"{path}: no raw file of {' or '.join(benchmarks)}")
    return {**result, "file": path.name}
