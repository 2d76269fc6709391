"""Text <-> plan <-> JSON. The only room that (de)serialises plans."""

from foveate.spec.plan import Plan, stage_text

__all__ = ["Plan", "stage_text"]
