"""Trained predictors: small modules that judge tokens, and how they are stored."""

from __future__ import annotations

from foveate.predictors.files import (
    IMAGE,
    INSTRUCT,
    QUESTION_SELECTOR,
    SELECTOR,
    TEXT,
    PredictorConfig,
    described_predictor,
    find_folder,
    load_predictor,
    read_config,
    save_config,
    save_predictors,
)
from foveate.predictors.modules import TextPredictor, VisionPredictor, predictor_flops
from foveate.predictors.scorer import Scorer, scorer_flops

__all__ = [
    "IMAGE",
    "INSTRUCT",
    "QUESTION_SELECTOR",
    "SELECTOR",
    "TEXT",
    "PredictorConfig",
    "Scorer",
    "TextPredictor",
    "VisionPredictor",
    "described_predictor",
    "find_folder",
    "load_predictor",
    "predictor_flops",
    "read_config",
    "save_config",
    "save_predictors",
    "scorer_flops",
]
