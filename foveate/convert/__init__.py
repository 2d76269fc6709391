"""Checkpoints of other programs, made into Hugging Face models with predictors, and back."""

from __future__ import annotations

from foveate.convert.dynamic_llava import Converted, convert_dynamic_llava, restore_dynamic_llava

__all__ = ["Converted", "convert_dynamic_llava", "restore_dynamic_llava"]
