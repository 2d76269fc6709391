"""Versions: the one-time warning, and which lengths `crop` speaks of."""

from __future__ import annotations

import warnings

import pytest

from foveate.engine import compat
from foveate.version import NEWEST_TESTED_TRANSFORMERS


def test_a_newer_transformers_gives_one_warning_and_not_two(monkeypatch):
    monkeypatch.setattr(compat, "_TRANSFORMERS", (NEWEST_TESTED_TRANSFORMERS[0], NEWEST_TESTED_TRANSFORMERS[1] + 1))
    monkeypatch.setattr(compat, "_warned", set())
    with pytest.warns(UserWarning, match="tested up to transformers"):
        compat.warn_if_untested()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.warn_if_untested()


def test_the_newest_tested_version_gives_no_warning(monkeypatch):
    monkeypatch.setattr(compat, "_TRANSFORMERS", NEWEST_TESTED_TRANSFORMERS)
    monkeypatch.setattr(compat, "_warned", set())
    compat.warn_if_untested()


def test_crop_counts_columns_as_the_installed_version_does(monkeypatch):
    assert compat.columns_to_crop(-3, 10) == 3
    monkeypatch.setattr(compat, "_CROP_TAKES_A_LENGTH", True)
    assert compat.columns_to_crop(7, 10) == 3
    assert compat.columns_to_crop(12, 10) == 0
    monkeypatch.setattr(compat, "_CROP_TAKES_A_LENGTH", False)
    with pytest.raises(ValueError, match="negative"):
        compat.columns_to_crop(7, 10)
