"""Versions: which lengths `crop` speaks of."""

from __future__ import annotations

import pytest

from foveate.engine import compat


def test_crop_counts_columns_as_the_installed_version_does(monkeypatch):
    assert compat.columns_to_crop(-3, 10) == 3
    monkeypatch.setattr(compat, "_CROP_TAKES_A_LENGTH", True)
    assert compat.columns_to_crop(7, 10) == 3
    assert compat.columns_to_crop(12, 10) == 0
    monkeypatch.setattr(compat, "_CROP_TAKES_A_LENGTH", False)
    with pytest.raises(ValueError, match="negative"):
        compat.columns_to_crop(7, 10)
