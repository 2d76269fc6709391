"""What measurements need beyond a report: the cache of an output, its bytes, and the functions that a choice consists of."""

from __future__ import annotations

from typing import Any

from foveate.engine import attention_rows, prefill
from foveate.engine.cache_kinds import lasting_bytes, stored_bytes
from foveate.engine.check import check_plan
from foveate.engine.compat import CACHE, cache_in
from foveate.engine.encoder import EncoderHooks
from foveate.engine.packed_encoder import PackedEncoderHooks

__all__ = ["CACHE", "CHOOSING", "ENCODER_CHOOSING", "cache_in", "check_plan", "lasting_bytes", "stored_bytes"]

# (owner, name) of each function, as it is looked up when called.
CHOOSING: tuple[tuple[Any, str], ...] = ((attention_rows, "attention_rows"), (prefill, "run_stage"))
ENCODER_CHOOSING: tuple[tuple[Any, str], ...] = (
    (attention_rows, "column_means"),
    (EncoderHooks, "_run"),
    (PackedEncoderHooks, "_run"),
)
