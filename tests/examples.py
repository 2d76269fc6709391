"""What methods and recipes say of themselves, placed: the plans and the options on which every suite of all methods runs.

Nothing here names a method. Texts hold `{k}` and `{k2}` for decoder layers, `{v}` for an encoder layer and `{path}` for trained
predictors; `filled` puts in those of a family's tiny model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from itertools import product
from typing import Any

from foveate import families, methods, recipes
from foveate.core.budget import Budget
from foveate.core.encoder import PackedPath, RasterPath
from foveate.core.layout import Role
from foveate.core.learned import LearnedMethod
from foveate.core.method import Method, StepMethod, TokenMethod
from foveate.core.plan import Stage
from foveate.core.site import SiteKind
from foveate.core.text import option_words
from foveate.recipes import Recipe
from foveate.spec.grammar import parse_calls
from foveate.spec.words import read_fields
from tests import tiny

_PLACES = {"layer={k}": SiteKind.LLM_LAYER, "site=pre_llm": SiteKind.PRE_LLM}
# Shares, counts and a share of energy that examples take in turn.
_KEEPS = ("0.3", "7", "0.5", "0.4", "energy:0.8, at_least=3")


def examples(kind: type[Method] = Method) -> list[Any]:
    """All examples of all methods of a kind."""
    return [one for name in methods.names() if issubclass(methods.get(name), kind) for one in methods.get(name).examples()]


def firsts(kind: type[Method] = Method) -> list[Any]:
    """The first example of each method of a kind."""
    return [methods.get(name).examples()[0] for name in methods.names() if issubclass(methods.get(name), kind)]


def acts_on_pictures(method: Method, *sites: SiteKind) -> bool:
    """Whether a method drops or merges visual tokens at all of these sites of the language model."""
    within = isinstance(method, TokenMethod) and Role.VISUAL in method.roles
    return within and set(sites) <= {*method.sites} and not method.weighs_sizes  # sizes weigh inside encoders only


def counts_by_itself(method: Method) -> bool:
    """Whether a method fixes how much stays, so that its stage has no keep."""
    return not method.takes_keep if isinstance(method, StepMethod) else method.fixed_count((1, 2, 2)) is not None


def text_of(method: Method, where: str, keep: str, *more: str) -> str:
    """A stage as text; `keep` is left out where the method counts by itself."""
    words = [where, *([] if counts_by_itself(method) else [f"keep={keep}"]), *option_words(method)]
    if isinstance(method, LearnedMethod):
        words.append("path='{path}'")
    return f"{method.name}({', '.join([*words, *more])})"


def _before() -> list[Method]:
    return [one for one in firsts(TokenMethod) if acts_on_pictures(one, SiteKind.PRE_LLM)]


def _behind() -> list[Method]:
    """Methods that may stand behind another stage."""
    return [one for one in firsts(TokenMethod) if acts_on_pictures(one, SiteKind.LLM_LAYER) and not one.needs_grid]


def single_plans() -> list[str]:
    """Every example in front of a decoder layer, or of the language model where it acts there alone."""
    plans = []
    for number, one in enumerate(examples(TokenMethod)):
        where = next((where for where, site in _PLACES.items() if acts_on_pictures(one, site)), None)
        plans += [text_of(one, where, _KEEPS[number % len(_KEEPS)])] if where else []
    return plans


def first_plans() -> list[str]:
    """The first example of every method, at each of its places within the language model."""
    every = product(firsts(TokenMethod), _PLACES.items())
    return [text_of(one, where, "0.4") for one, (where, site) in every if acts_on_pictures(one, site)]


def two_stages(*more: str) -> list[str]:
    """Every method behind one that acts in front of the language model; who stands there goes round among those that can.

    `more` is said of the second stage.
    """
    before = _before()
    return [
        f"{text_of(before[(number + 2) % len(before)], 'site=pre_llm', '0.6')} | {text_of(one, 'layer={k}', '0.5', *more)}"
        for number, one in enumerate(_behind())
    ]


def three_stages() -> list[str]:
    """Every method between two others."""
    before, behind, plans = _before(), _behind(), []
    for number, one in enumerate(behind):
        first, last = before[(number + 3) % len(before)], behind[(number + 1) % len(behind)]
        three = text_of(first, "site=pre_llm", "0.8"), text_of(one, "layer={k}", "0.6"), text_of(last, "layer={k2}", "0.4")
        plans.append(" | ".join(three))
    return plans


def gated_plans(*, firsts_only: bool = False) -> list[str]:
    """Every example of what decides which tokens of an answer are stored, or the first one of each method."""
    return [text_of(one, "layer={k}", "0.5") for one in (firsts if firsts_only else examples)(StepMethod)]


def text_plans() -> list[str]:
    """Every method that drops tokens of the instruction."""
    others = [one for one in firsts(TokenMethod) if Role.VISUAL not in one.roles]
    return [text_of(one, "layer={k}", "threshold:0.5") for one in others]


def recipe_plans() -> list[str]:
    """Every example of every recipe that stays within the language model."""
    return [text for name in recipes.names() for text in recipes.get(name).examples() if "{k" in text and "{v}" not in text]


def encoder_plans(layer: int) -> list[str]:
    """Every example in front of a layer of a vision encoder, except those that look at pixels: not all encoders see patches."""
    inside = [one for one in examples(TokenMethod) if SiteKind.VISION_LAYER in one.sites]
    inside = [one for one in inside if not any(need.given for need in one.needs())]
    return [text_of(one, f"site=vision, layer={layer}", "0.5") for one in inside]


def masked_plans() -> list[str]:
    """Every method that can hide tokens instead of dropping them."""
    return [text_of(one, "layer={k}", "0.4", "effect=mask") for one in _behind() if not one.reads_features]


def fits(text: str, family: str) -> bool:
    """Whether a family's vision encoder can be asked what the methods of a text of stages want to know of it."""
    needs = [need for method in methods_in(text) for need in method.needs()]
    path = families.get(family).encoder(tiny.probed(family))
    if any(need.given for need in needs) and (not isinstance(path, PackedPath) or isinstance(path, RasterPath)):
        return False
    return path is not None or not any(need.encodes for need in needs)


def filled(text: str, family: str, path: str = "") -> str:
    """A text with the layers of a family's tiny model, and the folder of predictors for it."""
    return text.format(k=tiny.FIRST_LAYER[family], k2=tiny.SECOND_LAYER[family], v=tiny.encoder_layer(family), path=path)


def with_path(method: Method, path: str) -> Method:
    """A method, and one with trained weights with those of a folder."""
    return replace(method, path=path) if isinstance(method, LearnedMethod) else method


def stages_named(text: str) -> list[str]:
    """The methods and recipes that a plan's text begins its stages with."""
    return re.findall(r"(\w+)\(", text)


def methods_in(text: str) -> list[Method]:
    """The first examples of the methods that a text of stages names."""
    return [methods.get(name).examples()[0] for name in stages_named(text) if name in methods.names()]


def everything_kept(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The same stages with nothing to do."""
    return tuple(replace(stage, budget=Budget.of_ratio("1")) for stage in stages)


def unused_options(cls: type[Method] | type[Recipe]) -> list[str]:
    """Options that no example of a method or recipe uses. Where trained weights lie is none: tests bring their own."""
    shown = [one if isinstance(one, Method) else _recipe(cls, one) for one in cls.examples()]
    unused = []
    for field in fields(cls):
        usual = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name != "path" and all(getattr(one, field.name) == usual for one in shown):
            unused.append(field.name)
    return unused


def _recipe(cls: Any, text: str) -> Any:
    (call,) = parse_calls(text.format(k=2, k2=3, v=1, path="folder"))
    return read_fields(cls, call.words, call.name)
