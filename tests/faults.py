"""Work that is killed at some moment, without a chance to clean up."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

# tqdm's own lock is shared by every process that comes of this one: a fork that is killed while it shows a bar would keep it,
# and the next bar anywhere would wait for ever. Its monitor is a thread that takes the lock at any time, so none runs either.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Run work in a process of its own and kill it after so many seconds; whether it had ended by itself.

    The process is a fork, so that it costs no imports; it computes on one thread, for the others are not there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads, which run nothing here
        process = os.fork()
    if process == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def duration(work: Callable[[], object]) -> float:
    """How long work takes in a process of its own, at most a minute."""
    begin = time.monotonic()
    assert killed(work, 60), "it takes more than a minute"
    return time.monotonic() - begin


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
