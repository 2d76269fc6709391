"""Text <-> plan <-> JSON. The only room that reads and stores plans; their text is in `foveate.core.text`."""

from foveate.spec.plan import PlanLike, as_plan, from_json, load_plan, parse, save_plan, to_json

__all__ = ["PlanLike", "as_plan", "from_json", "load_plan", "parse", "save_plan", "to_json"]
