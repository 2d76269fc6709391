"""Shifted margins: finished decisions keep the shares that were asked for, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foveate
from foveate.predictors import IMAGE, TEXT
from foveate.train.calibration import _boundary
from foveate.train.collator import ChatCollator
from tests.train import runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with and without calibration."""
    base = tmp_path_factory.mktemp("runs")
    for rows in (0, 256):
        runs.train(base / str(rows), mode="predictors", calibrate=rows, steps=12, predictor_rate=5e-2)
    return base / "0", base / "256"


def kept(folder: Path) -> tuple[float, float, int, int]:
    """Shares of picture tokens and of long answers that the finished methods keep on the rows of the run, and how many."""
    model, processor = runs.load()
    plan = f"dynamic_image(layer=1, keep=threshold:0.5, path='{folder}') | dynamic_text(layer=1, path='{folder}')"
    collate = ChatCollator(processor, [processor.image_token_id])
    seen = total = stored = judged = 0
    with foveate.attach(model, plan) as attachment:
        for index in range(6):
            batch = collate([runs.Rows()[index]])
            labels = batch.pop("labels")[0]
            start = int((labels >= 0).nonzero()[0])
            with attachment.conversation(prompt_length=start), torch.no_grad():
                model(**batch, use_cache=True)
            for medium in attachment.last.trace.media:
                seen, total = seen + len(medium.kept_index), total + medium.medium.shape.grid_tokens
            answer = attachment.last.trace.answer_kept[0]
            if len(answer) >= runs.SETTINGS["least_answer"]:
                stored, judged = stored + int(answer.sum()), judged + len(answer)
    return seen / total, stored / judged, total, judged


@pytest.mark.full
def test_finished_decisions_keep_the_shares(folders):
    before, after = kept(folders[0]), kept(folders[1])
    assert abs(before[0] - 0.2) > 0.05 or abs(before[1] - 0.5) > 0.05  # there was something to mend
    assert after[2] >= 500 and after[3] >= 30
    # Smooth pictures have tokens alike to the last digit, which a batch of another size may round to the other side.
    assert after[0] == pytest.approx(0.2, abs=0.01)
    assert after[1] == pytest.approx(0.5, abs=1.5 / after[3])


@pytest.mark.full
def test_nothing_changes_but_one_number_of_each_predictor(folders):
    plain, shifted = (load_file(folder / "predictors.safetensors") for folder in folders)
    calibration = json.loads((folders[1] / "predictors.json").read_text())["provenance"]["calibration"]
    assert calibration["rows"] == 6
    assert json.loads((folders[0] / "predictors.json").read_text())["provenance"]["calibration"] == {}
    changed = {name: shifted[name] - plain[name] for name in plain if not torch.equal(plain[name], shifted[name])}
    assert {name.split(".")[0] for name in changed} == {IMAGE, TEXT}
    for name, difference in changed.items():
        assert name.endswith("bias") and difference.shape == (2,)
        assert difference.tolist() == pytest.approx([calibration[name.split(".")[0]], 0], abs=1e-6)


@pytest.mark.parametrize(("share", "above"), [(0.5, 2), (0.25, 1), (0.01, 1), (0.8, 3), (1.0, 4)])
def test_as_many_margins_are_above_the_boundary_as_were_asked_for(share, above):
    margins = torch.tensor([3.0, -1.0, 0.5, 0.25])
    assert int((margins > _boundary(margins, share)).sum()) == above
