"""Names of the questions with long answers. A help text lists them, so this file imports nothing."""

from __future__ import annotations

CAPTION = "caption"
TRANSCRIPT = "transcript"  # of a page
LONG_TASKS = (CAPTION, "summary", "tally", "backwards", "follow_up")
LONG_ANSWERS = (*LONG_TASKS, TRANSCRIPT)
# Those that need one turn only.
ONE_TURN_TASKS = tuple(task for task in LONG_TASKS if task != "follow_up")
