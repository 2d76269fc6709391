"""Sites: layers where the place has layers, and only there."""

from __future__ import annotations

import pytest

from foveate.core.site import LAYERED, Site, SiteKind
from foveate.errors import PlanError


@pytest.mark.parametrize("kind", SiteKind)
def test_a_site_has_a_layer_where_the_place_has_layers(kind):
    good, bad = ({"layer": 3}, {}) if kind in LAYERED else ({}, {"layer": 3})
    assert Site(kind, **good).kind is kind
    with pytest.raises(PlanError, match="needs a layer" if kind in LAYERED else "takes no layer"):
        Site(kind, **bad)


def test_layer_0_of_the_decoder_is_refused_with_the_site_to_write_instead():
    with pytest.raises(PlanError, match="site=pre_llm"):
        Site.llm_layer(0)


def test_layer_0_of_the_encoder_is_a_place():
    assert Site(SiteKind.VISION_LAYER, 0).layer == 0


@pytest.mark.parametrize("kind", LAYERED)
def test_a_negative_layer_is_refused(kind):
    with pytest.raises(PlanError, match="layer=-1"):
        Site(kind, -1)


def test_where_in_the_decoder_a_stage_acts():
    assert Site.pre_llm().decoder_layer == 0
    assert Site.llm_layer(7).decoder_layer == 7
    assert Site(SiteKind.VISION_LAYER, 7).decoder_layer is None


def test_text():
    assert [str(site) for site in (Site.pre_llm(), Site.llm_layer(2), Site(SiteKind.DECODE, 5))] == [
        "pre_llm",
        "llm(2)",
        "decode(5)",
    ]


@pytest.mark.parametrize("layer", [1.5, "2", True, 10**6, 10**5_000, -(10**5_000)], ids=lambda layer: type(layer).__name__)
def test_what_is_no_layer_of_any_model_is_refused(layer):
    with pytest.raises(PlanError, match=r"whole number|no model has 1,000,000 layers|never negative"):
        Site.llm_layer(layer)
