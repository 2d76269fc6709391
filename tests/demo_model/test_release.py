from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from demo_model.examples import make_examples
from demo_model.release import answers_correctly, markdown_table
from foveate.demo.loading import MODEL_FOLDER, PICTURES_FOLDER, load_demo
from foveate.demo.samples import TASKS


def test_the_shipped_pictures_can_be_made_again(tmp_path: Path) -> None:
    make_examples(tmp_path, answers_correctly(*load_demo()))
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in PICTURES_FOLDER.iterdir())
    assert (tmp_path / "examples.json").read_text() == (PICTURES_FOLDER / "examples.json").read_text()
    for picture in tmp_path.glob("*.png"):
        with Image.open(picture) as new, Image.open(PICTURES_FOLDER / picture.name) as old:
            assert new.tobytes() == old.tobytes()


def test_the_model_card_shows_the_shipped_evaluation() -> None:
    table = markdown_table(json.loads((MODEL_FOLDER / "evaluation.json").read_text()))
    assert table.count("\n") == 2 + len(TASKS)
    assert table in (MODEL_FOLDER / "README.md").read_text()
