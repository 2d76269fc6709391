"""Prompts and models that the tests of calls share."""

from __future__ import annotations

import torch

from tests import tiny
from tests.tiny import Maker, Row

LOGITS = 1e-4
MODELS = tiny.Models()
FASTV = "fastv(layer={layer}, keep=0.25)"


def plan_of(family: str, text: str) -> str:
    return text.format(layer=tiny.FIRST_LAYER[family])


def prompt(family: str = "llava", seed: int = 1) -> dict[str, torch.Tensor]:
    maker = Maker(family, seed)
    return maker.inputs([Row([maker.text(5), maker.picture(0), maker.text(7)])])
