"""Folders appear whole or not at all, have one writer at a time, and survive a kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.errors import InputError
from foveate.files import folders
from foveate.files.folders import appearing, locked, recover


def rest(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_takes_the_place_of_the_old_one(tmp_path, monkeypatch, exchanged):
    if not exchanged:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    for text in ("first", "second"):
        with appearing(tmp_path / "a") as partial:
            (partial / "x").write_text(text)
    assert (tmp_path / "a" / "x").read_text() == "second" and rest(tmp_path) == ["a"]


def test_a_failure_leaves_the_old_folder_and_nothing_beside_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "a") as partial:
        1 / (partial / "x").write_text("")
    assert (tmp_path / "a" / "x").read_text() == "old" and rest(tmp_path) == ["a"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with appearing(tmp_path / "link") as partial:
        (partial / "x").write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x").read_text() == "new"
    assert rest(tmp_path) == ["link", "real"]


def test_two_writers_are_kept_apart(tmp_path):
    with locked(tmp_path / "a"), pytest.raises(InputError, match="another process"), appearing(tmp_path / "a"):
        pass
    with appearing(tmp_path / "a"):
        pass
    assert rest(tmp_path) == ["a"]


def test_what_was_moved_aside_comes_back(tmp_path):
    target = tmp_path / "a"
    aside = folders._aside(target)
    aside.mkdir()
    recover(target)
    assert rest(tmp_path) == ["a"]
    aside.mkdir()
    recover(target)
    assert rest(tmp_path) == ["a"]


PROGRAM = """
import sys
from pathlib import Path
from foveate.files import folders
if sys.argv[2] == "renames":
    folders._exchange = lambda one, other: False
number = 0
while True:
    number += 1
    with folders.appearing(Path(sys.argv[1])) as partial:
        for name in "xy":
            (partial / name).write_text(str(number) * 1000)
    if number == 1:
        print("ready", flush=True)
"""


@pytest.mark.full
@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path, how):
    target = tmp_path / "a"
    for number in range(6):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(target), how], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.004 * number)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
        recover(target)
        assert (target / "x").read_text() == (target / "y").read_text() != ""
    with appearing(target):
        pass
    assert rest(tmp_path) == ["a"]


def test_partials_of_living_processes_stay(tmp_path):
    with appearing(tmp_path / "a") as partial, appearing(tmp_path / "b"):
        assert partial.is_dir()
    assert os.path.isdir(tmp_path / "a")
