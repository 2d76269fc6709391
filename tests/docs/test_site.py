"""Every method and recipe has a page, a new file by itself; what pages are made of needs no mkdocs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from foveate import methods, recipes
from foveate.core import registry

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = ("## How to write it", "## Options", "## What it costs", "## Measured quality")
FRESH = '''"""Fresh: keep the first tokens.

Nobody et al., arXiv:2401.00001. Written for this test.
Differs: nothing known.
"""

from dataclasses import dataclass

import torch

from foveate.core.method import TokenMethod
from foveate.core.selection import Selection


@dataclass(frozen=True)
class Fresh(TokenMethod):
    """Keep the first tokens of each group.

    Attributes:
        shift: how many tokens are passed over.
    """

    shift: int = 0
    paper = "arXiv 2401.00001"

    def select(self, view, keep):
        return Selection(torch.arange(keep).expand(view.group_count, -1))
'''


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(DOCS))
    try:
        import _method_pages
    finally:
        sys.path.remove(str(DOCS))
    yield _method_pages
    _method_pages.names.cache_clear()
    _method_pages.capabilities.cache_clear()


@pytest.mark.parametrize("name", registry.file_names(methods))
def test_every_method_has_a_page(pages, name):
    text = pages.method_page(name)
    assert all(section in text for section in (*SECTIONS, "## Where it acts"))
    costs = text.partition("## What it costs")[2].partition("## ")[0]
    uncounted = {"dynamic_instruct": "only visual tokens are counted", "selector": "demo holds no selector"}
    uncounted["pixelprune"] = "takes whole images"
    assert "| `" in costs or uncounted.get(name, "|") in costs


@pytest.mark.parametrize("name", registry.file_names(recipes))
def test_every_recipe_has_a_page(pages, name):
    text = pages.recipe_page(name)
    assert all(section in text for section in (*SECTIONS, "## What it expands to"))


def test_every_option_is_described(pages):
    for name in registry.file_names(methods):
        lines = pages.options_table(methods.get(name)).splitlines()
        assert not [line for line in lines if line.endswith("|  |")], name


def test_a_new_file_gets_a_page_by_itself(pages, tmp_path, monkeypatch):
    (tmp_path / "fresh.py").write_text(FRESH)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "foveate.methods.fresh", raising=False)
    pages.names.cache_clear()
    pages.capabilities.cache_clear()
    assert "fresh" in pages.names()[0]
    assert "[fresh](fresh.md)" in pages.index_page()
    text = pages.method_page("fresh")
    assert "| `shift` | `0` | how many tokens are passed over. |" in text
    assert "[arXiv 2401.00001](https://arxiv.org/abs/2401.00001)" in text
    assert "`fresh(site=pre_llm, keep=0.5)` | 576 -> 288" in text
    assert "Not measured" in text


def test_measured_rows_are_those_of_the_raw_files(pages):
    text = pages.method_page("partition")
    assert "| `partition(layer=2, keep=0.5)` | exact match | 0.827 | 0.731 | -9.6 points | 1,020 |" in text
    assert "benchmarks/results/2026-11-21-merging-demo.json" in text
