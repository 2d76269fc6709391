"""Trained predictors: small modules that judge tokens, and how they are stored."""

from __future__ import annotations

from foveate.predictors.files import (
    IMAGE,
    INSTRUCT,
    TEXT,
    PredictorConfig,
    find_folder,
    load_predictor,
    read_config,
    save_config,
    save_predictors,
)
from foveate.predictors.modules import TextPredictor, VisionPredictor, predictor_flops

__all__ = [
    "IMAGE",
    "INSTRUCT",
    "TEXT",
    "PredictorConfig",
    "TextPredictor",
    "VisionPredictor",
    "find_folder",
    "load_predictor",
    "predictor_flops",
    "read_config",
    "save_config",
    "save_predictors",
]
