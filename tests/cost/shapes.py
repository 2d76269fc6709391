"""Shapes and plans that the cost tests share, written by hand."""

from dataclasses import dataclass

from foveate.core.budget import Budget
from foveate.core.method import ScoreMethod
from foveate.core.plan import Plan, Stage
from foveate.core.shape import DecoderShape, EncoderShape, LinearShape, MediumShape, ModelShape
from foveate.core.site import Site
from foveate.core.view import AttentionRows

CLIP_L = EncoderShape(24, 1024, 4096, 16, patch_inputs=3 * 14 * 14, prefix_tokens=1)
LLAMA_7B = DecoderShape(32, 4096, 11008, 32, 32, 128, vocabulary=32064)
LLAMA_13B = DecoderShape(40, 5120, 13824, 40, 40, 128, vocabulary=32064)
LLAVA_7B = ModelShape("llava", LLAMA_7B, CLIP_L, (LinearShape(1024, 4096), LinearShape(4096, 4096)))
LLAVA_13B = ModelShape("llava", LLAMA_13B, CLIP_L, (LinearShape(1024, 5120), LinearShape(5120, 5120)))
BOTH = {"7B": LLAVA_7B, "13B": LLAVA_13B}
IMAGE = MediumShape("image", (1, 24, 24), encoder_tokens=577, encoder_sequences=(577,))


@dataclass(frozen=True)
class Ranked(ScoreMethod):
    """Any method that asks for one kind of attention rows."""

    query: str = "last"

    def needs(self):
        return (AttentionRows(self.query),)

    def score(self, view):
        raise AssertionError("cost arithmetic never scores")


def cut(layer: int, budget: Budget, **options) -> Stage:
    return Stage(Site.llm_layer(layer) if layer else Site.pre_llm(), Ranked(), budget, **options)


def fastv(layer: int, keep: float | str) -> Plan:
    return Plan((cut(layer, Budget.of_ratio(keep)),))


def keep_count(layer: int, count: int) -> Plan:
    return Plan((cut(layer, Budget.of_count(count)),))


def image_of(tokens: int) -> MediumShape:
    return MediumShape("image", (1, 1, tokens))
