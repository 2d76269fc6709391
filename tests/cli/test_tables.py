"""Tables fit the width they are printed at: no number is cut or broken, in a terminal, in a pipe, with COLUMNS."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.cli import tables

NUMBERS = ("0.0004 ± 0.0001", "1,234.5 MiB", "-12.3 [-14.0, -10.5]")


def _printed(width: int, table: Table) -> str:
    console = Console(file=io.StringIO(), width=width)
    tables.show(console, table)
    out = console.file.getvalue()
    assert max(map(len, out.splitlines())) <= width
    return out


def _table(columns: int) -> Table:
    table = Table(title="a table")
    table.add_column("a plan of several stages", overflow="ellipsis")
    for number in range(columns):
        table.add_column(f"heading {number}\nof numbers", justify="right")
    for row in range(3):
        table.add_row(
            f"random(site=pre_llm, keep=0.{row}) | fastv(layer=8, keep=0.5)",
            *[Text(NUMBERS[(row + n) % 3]) for n in range(columns)],
        )
    return table


@pytest.mark.parametrize("width", [60, 80, 100, 130, 200])
@pytest.mark.parametrize("columns", [1, 3, 5, 9])
def test_no_number_is_cut_or_broken_at_any_width(width, columns):
    out = _printed(width, _table(columns))
    assert "…" not in out and "a table" in out
    for number in NUMBERS[: min(3, columns)]:
        assert out.count(number) == sum(NUMBERS[(row + n) % 3] == number for row in range(3) for n in range(columns))


def test_a_table_that_fits_stays_a_table_and_one_that_does_not_becomes_rows():
    assert "┃" in _printed(130, _table(3))
    assert "┃" not in _printed(60, _table(5))


@pytest.mark.parametrize(("given", "width"), [(None, 130), ("80", 80), ("200", 200), ("x", 130), ("0", 130), ("9" * 30, 130)])
def test_a_pipe_is_as_wide_as_columns_says(monkeypatch, given, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if given is not None:
        monkeypatch.setenv("COLUMNS", given)
    assert tables.make_console().width == width


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "fastv(layer=2, keep=0.5) | random_gate(layer=2, keep=0.5)", "--vs", "llava-1.5-13b", "--grid"],
        ["methods"],
        ["models"],
    ],
)
def test_commands_are_readable_in_80_columns(command, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(*arguments)
    assert code == 0 and "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_comparison_is_readable_in_80_columns(command, monkeypatch, model_folder, picture):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command("run", picture, "what?", "--model", model_folder, "--compare", "--max-new-tokens", "2")
    assert code == 0 and "…" not in out and max(map(len, out.splitlines())) <= 80
    assert re.search(r"^plan +fastv\(layer=2, keep=0\.5\) *$", out, re.MULTILINE)
    assert len(re.findall(r"^TTFT +[\d.]+ ms *$", out, re.MULTILINE)) == 5
