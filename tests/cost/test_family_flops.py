"""What every family file says about FLOPs and KV bytes, against torch's FlopCounterMode on its tiny model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from foveate import families
from foveate.core.plan import Plan
from foveate.cost.estimate import estimate_cost
from foveate.engine.attachment import Attachment
from foveate.engine.cache_kinds import stored_bytes
from foveate.engine.compat import CACHE, cache_in
from foveate.spec import parse
from tests import tiny

STEPS = 4
PROJECTIONS = (torch.ops.aten.mm, torch.ops.aten.addmm)
TOLERANCE = 1e-3  # agrees to the last FLOP today; some versions build rotary tables with matrix products
WINDOWS = 5e-3  # windows are taken to shrink in proportion, though each loses its own
# The method that cuts the states in front of layers that need the last token alone.
LAST_ONLY = "_maybe_slice_kv_shared_inputs"


class Counted:
    """A tiny model with one picture or video, its inputs and shapes; counts what a call executes under eager attention."""

    def __init__(self, name: str, kind: str = "image") -> None:
        family = families.get(name)
        self.decoder = family.decoder
        torch.manual_seed(0)
        config = family.tiny_config()
        kernels = {"attn_implementation": "eager", "experts_implementation": "eager"}  # grouped products are not counted
        self.model = AutoModelForImageTextToText.from_config(config, **kernels).eval()
        maker = tiny.Maker(name)
        self.inputs = maker.inputs([tiny.Row([maker.text(5), maker.picture(0, kind), maker.text(5)])], mask=False)
        self.shape = family.model_shape(config)
        ids = self.inputs["input_ids"]
        columns = {kind: int((ids == token).sum()) for kind, token in family.placeholder_ids(config).items()}
        self.media = [shape for shapes in family.media(config, self.inputs, columns).values() for shape in shapes]
        self.text = ids.shape[1] - sum(columns.values())

    def estimate(self, new_tokens: int = 0):
        return estimate_cost(self.shape, Plan(), self.media, self.text, new_tokens, dtype_bytes=4)

    @torch.no_grad()
    def call(self, **inputs):
        with FlopCounterMode(display=False) as counter:
            output = self.model(**inputs, logits_to_keep=1, use_cache=True)
        # A recurrence runs in chunks here, token after token by our count: of those layers only the projections are compared.
        mixers = (".linear_attn", ".conv")
        layers = f"{self.decoder}.layers."
        inside = [ops for name, ops in counter.get_flop_counts().items() if layers in name and name.endswith(mixers)]
        chunks = sum(flops for ops in inside for op, flops in ops.items() if op not in PROJECTIONS)
        return counter.get_total_flops() - chunks, cache_in(output)

    def recurrence(self, tokens: int) -> int:
        """FLOPs of what layers without attention do besides their projections."""
        layers = [self.shape.decoder.layer(layer).state for layer in range(self.shape.decoder.layers)]
        return sum(2 * tokens * (state.convolution + state.recurrence) for state in layers if state is not None)


@pytest.mark.parametrize(
    "name", [name if name in tiny.FAMILIES else pytest.param(name, marks=pytest.mark.full) for name in tiny.ALL_FAMILIES]
)
def test_prefill_and_decoding_cost_what_eager_attention_executes(name):
    counted = Counted(name)
    if counted.shape.decoder.last_only is not None and not hasattr(tiny.decoder_of(counted.model), LAST_ONLY):
        pytest.skip("this version of transformers runs all layers for all tokens")
    measured, cache = counted.call(**counted.inputs)
    tokens = counted.inputs["input_ids"].shape[1]
    assert counted.estimate().prefill_flops.plain - counted.recurrence(tokens) == pytest.approx(measured, rel=TOLERANCE)
    assert counted.estimate().kv_bytes.plain == stored_bytes(cache)
    total = 0
    for _ in range(STEPS):
        flops, cache = counted.call(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        total += flops
    decoding = counted.estimate(STEPS + 1).decode_flops.plain - counted.recurrence(STEPS)
    assert decoding == pytest.approx(total, rel=TOLERANCE)
    assert counted.estimate(STEPS + 1).kv_bytes.plain == stored_bytes(cache)


@pytest.mark.parametrize(
    "name",
    [
        name if name in tiny.FAMILIES else pytest.param(name, marks=pytest.mark.full)
        for name in tiny.ALL_FAMILIES
        if tiny.encoder_layer(name) is not None
    ],
)
def test_a_stage_inside_the_encoder_saves_what_eager_attention_no_longer_executes(name):
    counted = Counted(name)
    layer = tiny.encoder_layer(name)
    plan = parse(f"random(site=vision, layer={layer}, keep=0.5)")
    plain, _ = counted.call(**counted.inputs)
    with Attachment(counted.model, plan):
        pruned, cache = counted.call(**counted.inputs)
    estimate = estimate_cost(counted.shape, plan, counted.media, counted.text, 0, dtype_bytes=4)
    gone = estimate.visual_tokens_per_layer[0][0] - estimate.visual_tokens_per_layer[1][0]
    saved = estimate.prefill_flops.plain - estimate.prefill_flops.plan - counted.recurrence(gone)
    assert saved == pytest.approx(plain - pruned, rel=TOLERANCE if not counted.shape.encoder.windowed_layers else WINDOWS)
    assert estimate.encoder_flops.plan < estimate.encoder_flops.plain
    assert estimate.kv_bytes.plan == stored_bytes(cache)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in families.names() if "video" in families.get(name).placeholders])
def test_the_prefill_of_a_video_costs_what_eager_attention_executes(name):
    counted = Counted(name, "video")
    measured, cache = counted.call(**counted.inputs)
    tokens = counted.inputs["input_ids"].shape[1]
    assert counted.estimate().prefill_flops.plain - counted.recurrence(tokens) == measured
    assert counted.estimate().kv_bytes.plain == stored_bytes(cache)
