"""A conversion that is killed leaves the folder that was there, or the new one."""

from __future__ import annotations

import random
import shutil

import pytest

from foveate.convert import convert_dynamic_llava
from tests.convert import official
from tests.faults import content, duration, killed


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.full)])
def test_a_killed_conversion_leaves_the_old_folder_or_the_new_one(tmp_path, kills):
    source, target = official.write(tmp_path / "src", official.weights(), official.config()), tmp_path / "dst"

    def convert(most_bytes: int) -> None:
        convert_dynamic_llava(str(source), target, overwrite=True, most_bytes=most_bytes)

    took = duration(lambda: convert(30_000))
    new = content(target)
    shutil.rmtree(target)
    convert(60_000)
    old = content(target)
    assert old != new
    points = random.Random(kills)
    for _ in range(kills):
        killed(lambda: convert(30_000), took * (0.2 + 0.9 * points.random()))
        assert content(target) in (old, new)
    convert(60_000)
    assert content(target) == old
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["dst", "src"]
