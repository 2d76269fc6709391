"""The model types that this version of transformers maps to vision-language models, against what the family files say."""

from __future__ import annotations

from transformers.models.auto import modeling_auto

from foveate import families


def test_every_model_type_of_transformers_is_served_or_refused_by_name():
    """A type that a new version brings is reported here: it wants a family file, or its reason in families/_refused.py."""
    mapped = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    served = {model_type for name in families.names() for model_type in families.get(name).model_types}
    assert not served & set(families.refused())
    assert not sorted(set(mapped) - served - set(families.refused()))
