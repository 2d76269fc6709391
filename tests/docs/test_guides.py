"""The code of the guides runs, and prints what the guides show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foveate.spec import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "guides").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *(DOCS / name for name in ("index.md", "plans.md")), *sorted((DOCS / "guides").glob("*.md"))]


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(tmp_path, path):
    # A process of its own: a family is registered there, and entry points are read once.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "notebook.py"), str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def blocks(path: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What the guides take for granted: a model, its processor, a picture and a question about it."""
    from PIL import Image

    from foveate.demo.loading import load_demo

    model, processor = load_demo()
    picture = Image.open(ROOT / "foveate" / "demo" / "assets" / "pictures" / "position.png")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is the color of the object at the right?"}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return {"model": model, "processor": processor, "picture": picture, "messages": messages, "inputs": inputs}


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(given, path):
    space = dict(given)
    for number, block in enumerate(blocks(path)):
        exec(compile(block, f"{path.name}, block {number}", "exec"), space)


@pytest.mark.parametrize("path", sorted({*PAGES, *DOCS.glob("*.md")}), ids=lambda path: path.stem)
def test_every_plan_in_quotes_can_be_read(path):
    text = re.sub(r"^```python\n.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)  # those run
    for plan in re.findall(r'"((?:fastv|random|uniform|pool|staged|partition|random_gate|stride_gate)\([^"`]*\))"', text):
        parse(plan.replace(r"\|", "|"))
