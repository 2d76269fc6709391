"""What other programs and papers call things, and what to write instead.

FastV says K and R, ToMe r, kvpress compression_ratio: many of them count what is removed, where a plan says what stays. Such a
word is never guessed at; the refusal says the same in the plan's own words.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal

from foveate import methods
from foveate.core.learned import LearnedMethod
from foveate.core.method import Method
from foveate.core.site import SiteKind
from foveate.errors import SpecError, plain
from foveate.spec.grammar import Bare, Call, Value
from foveate.spec.words import shown

_REMOVED, _KEPT, _LAYER = "keep = 1 - {}", "{} is keep", "{} is the layer"
# Words in small letters, by what they mean for a plan.
_MEANING = {
    _REMOVED: r"(fastv_)?r|rate|ratio|((prun|remov|drop)(e|ed|ing|)|reduction|compression|sparsity)(_rate|_ratio)?",
    _KEPT: r"(vision_)?(keep|kept|retain|retained|retention|token)_(rate|ratio|num|number|tokens)|kept|retained|retention"
    r"|budget|count|n|(n_|num_|num_visual_|visual_|top_?k_)?tokens|num_keep|top_?k|(fast_v_)?(attention_)?rank",
    _LAYER: r"(fastv_)?k|(fast_v_)?(attention_|agg_|prune_|pruning_|fastv_)layer|layer_(idx|index|id)",
}
_MOST_LAYERS = 100  # k=2 is FastV's layer, k=144 somebody's count


def refuse_foreign_words(call: Call, known: Collection[str]) -> None:
    """Say what a call with other programs' words is in a plan's own.

    Args:
        known: words that the call may have.

    Raises:
        SpecError: if a word is not known here, but elsewhere.
    """
    found = {word: _meaning(plain(word), value) for word, value in call.words.items() if word not in known}
    meanings = {word: meaning for word, meaning in found.items() if meaning}
    if not meanings:
        return
    own = {"keep": "keep", "layer": "layer" if "layer" in known else "layers"}
    written = {}
    for word, value in call.words.items():
        meaning = meanings.get(word, "")
        name = word if not meaning else own["layer" if meaning == _LAYER else "keep"]
        if name in written or (meaning and name in call.words):
            raise SpecError(
                f"{call.name}({word}={shown(value)}): {meaning.format(word)}, which is given already: leave {word} out"
            )
        written[name] = _in_our_words(value, meaning)
    said = ", ".join(f"{word}={shown(call.words[word])}" for word in meanings)
    means = ", ".join(meaning.format(word) for word, meaning in meanings.items())
    words = [f"{word}={value}" for word, value in written.items() if word in known]
    changed = [f"{word}={value}" for word, value in written.items() if word not in call.words]
    instead = changed[0] if len(changed) == 1 else f"{call.name}({', '.join(words)})"
    raise SpecError(f"{call.name}({said}): {means}: write {instead}")


def _meaning(name: str, value: Value) -> str:
    """What a word means for a plan, "" for one that is not known elsewhere either."""
    if name == "k" and isinstance(value, Bare) and not (value.text.isdigit() and int(value.text[:4]) < _MOST_LAYERS):
        return _KEPT
    return next((meaning for meaning, words in _MEANING.items() if re.fullmatch(words, name)), "")


def _in_our_words(value: Value, meaning: str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_in_our_words(item, meaning) for item in value)}]"
    text = shown(value)
    if meaning != _REMOVED:
        return text
    number = text.removesuffix("%")
    whole, sign = (1, "") if number == text else (100, "%")
    if re.fullmatch(r"[0-9]{0,3}\.?[0-9]{1,20}", number) and 0 < Decimal(number) < whole:
        return f"{whole - Decimal(number)}{sign}"
    return "0.5"  # a count of removed tokens says nothing about those that stay


def nearest_place(method: Method) -> str:
    """What to write instead of layer=0, in front of which no decoder layer has run."""
    if SiteKind.PRE_LLM in method.sites:
        return f"write {method.name}(site=pre_llm, ...) to act before the LLM"
    able = [
        name
        for name in methods.names()
        if SiteKind.PRE_LLM in methods.get(name).sites and not issubclass(methods.get(name), LearnedMethod)
    ]
    return (
        f"{method.name} cannot act before the LLM, use it with layer=1 or later, or a method that can: "
        f"{', '.join(able)}, e.g. random(site=pre_llm, keep=0.5)"
    )
