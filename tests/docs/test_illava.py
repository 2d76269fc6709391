"""The page about iLLaVA says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.illava_counts import with_table
from foveate.recipes.illava import PRESETS
from foveate.spec import parse

PAGE = Path(__file__).parents[2] / "docs" / "illava.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_table_of_counts_is_the_generated_one():
    assert with_table(TEXT) == TEXT, "run `python -m benchmarks.illava_counts --page docs/illava.md`"


def test_every_plan_on_the_page_can_be_read():
    plans = re.findall(r"illava\((?:preset|variant)=[^`\"]*\)", TEXT)
    assert len(plans) >= 4
    for plan in plans:
        parse(plan)


def test_every_preset_is_listed():
    listed = re.findall(r"^\| (`[^|]*`) \| (?:\*\*ours|the authors)", TEXT, re.MULTILINE)
    assert sorted(name for cell in listed for name in re.findall(r"`([^`]+)`", cell)) == sorted(PRESETS)
