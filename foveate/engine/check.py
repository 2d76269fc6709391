"""Whether a plan fits a model, from its config alone. Neither torch nor transformers is needed for that."""

from __future__ import annotations

from typing import Any

from foveate.core.encoder import PackedPath, RasterPath
from foveate.core.plan import Effect, Plan, Scope, Stage
from foveate.core.site import Point, SiteKind
from foveate.errors import PlanError, UnsupportedCombination
from foveate.families import Family


def check_plan(plan: Plan, family: Family, config: Any) -> dict[int, int]:
    """Check a plan against a model; returns, for each stage's layer, the layer whose attention it can observe.

    Raises:
        PlanError: for a layer beyond the model, or one without a full-attention layer below.
        UnsupportedCombination: for a site that the family does not serve.
    """
    windows = family.decoder_windows(config)
    full, stateful = family.full_layers(config), family.stateful_layers(config)
    probes = {}
    for stage in plan.stages:
        reason = family.unsupported.get(stage.site.kind)
        if reason is not None:
            raise UnsupportedCombination(f"{family.title} cannot serve site {stage.site}: {reason}")
        if any(need.asks for need in stage.method.needs()) and stage.site.kind is not SiteKind.PRE_LLM:
            raise PlanError(
                f"{stage.method.name} at {stage.site}: the question is known in front of the language model only; use "
                "site=pre_llm"
            )
        if any(need.encodes for need in stage.method.needs()):
            _check_measured_encoder(stage, family, config)
        if stage.site.kind is SiteKind.VISION_LAYER:
            _check_encoder_stage(stage, family, config)
            continue
        if any(need.given for need in stage.method.needs()):
            raise PlanError(
                f"{stage.method.name} looks at pixels, which only stages inside the vision encoder see: site=vision"
            )
        if stage.method.weighs_sizes:
            raise UnsupportedCombination(
                f"{stage.method.name} at {stage.site}: attention weighs sizes in vision encoders only; leave proportional out"
            )
        if stage.site.kind not in (SiteKind.PRE_LLM, SiteKind.LLM_LAYER, SiteKind.DECODE):
            raise UnsupportedCombination(f"site {stage.site} has no engine yet; use site=pre_llm or layer=k")
        layer = stage.site.layer if stage.site.kind is SiteKind.DECODE else stage.site.decoder_layer
        assert layer is not None
        if layer >= len(windows):
            raise PlanError(f"layer={layer}: this model has {len(windows)} decoder layers, write 1..{len(windows) - 1}")
        reason = family.refuse_layer(config, layer)
        if reason is not None:
            raise PlanError(f"layer={layer}: {reason}")
        below = [candidate for candidate in full if candidate < layer]
        if any(need.attends for need in stage.method.needs()) and not below:
            smallest = full[0] + 1 if full else None
            advice = f"the smallest valid layer is {smallest}" if smallest else "this model has no full-attention layer"
            raise PlanError(
                f"{stage.method.name}(layer={layer}): no layer below {layer} attends to the whole prompt, so none says "
                f"anything about the whole picture; {advice}"
            )
        if below:
            probes[layer] = below[-1]
        if stage.effect is Effect.MASK and any(at >= layer for at in stateful):
            raise UnsupportedCombination(
                f"{family.title} has layers without attention, whose state no mask hides a token from: use effect=drop"
            )
        if stage.effect is Effect.MASK and stage.method.reads_features:
            raise PlanError(
                f"{stage.method.name} reads hidden states, which cached tokens no longer have: effect=mask works with "
                "methods that rank by attention or position"
            )
    _check_probed(plan, family, config)
    return probes


def _check_measured_encoder(stage: Stage, family: Family, config: Any) -> None:
    """What a stage of the decoder asks of the vision encoder can be measured there, and once is enough."""
    if family.encoder(config) is None:
        raise UnsupportedCombination(
            f"{stage.method.name} ranks by what happens inside the vision encoder, and where that of {family.title} keeps its "
            "tokens is not described: choose by features alone or by the decoder's attention; `foveate methods` says which do"
        )
    if stage.effect is Effect.MASK:
        raise PlanError(f"{stage.method.name} ranks by one call of the vision encoder: leave effect=mask out")


def _check_probed(plan: Plan, family: Family, config: Any) -> None:
    """Between the encoder layer whose attention a stage ranks by and the stage itself no other stage may act."""
    path = family.encoder(config) if plan.encoder_stages else None
    if not isinstance(path, PackedPath):
        return
    for layer, stage in plan.encoder_stages.items():
        if _measures(stage):
            probed = max(at for at in range(layer) if at not in path.windowed)
            between = [at for at in plan.encoder_stages if probed < at < layer]
            if between:
                raise PlanError(
                    f"{stage.method.name} at {stage.site} ranks by layer {probed}, the last one below that looks at the whole "
                    f"picture, but the stage at layer {between[0]} acts in between: move it to layer {probed} or below"
                )


def _measures(stage: Stage) -> bool:
    """Whether a stage inside the encoder ranks by what happens in a layer below it."""
    return any(not need.given for need in stage.method.needs())


def _check_encoder_stage(stage: Stage, family: Family, config: Any) -> None:
    path, layer = family.encoder(config), stage.site.layer
    assert layer is not None
    if path is None:
        raise UnsupportedCombination(f"{family.title} cannot serve site {stage.site}: its encoder is not described")
    if layer >= path.used:
        raise PlanError(
            f"site={stage.site}: the language model reads what leaves encoder layer {path.used - 1}, a later stage changes "
            f"nothing; write layer=0..{path.used - 1}"
        )
    if stage.method.weighs_sizes and isinstance(path, PackedPath):
        raise UnsupportedCombination(
            f"{family.title} packs all pictures into one sequence, whose kernels take no log(size): leave proportional out"
        )
    if stage.site.point is Point.MID and getattr(path, "middle", None) is None:
        raise UnsupportedCombination(
            f"point=mid: the encoder blocks of {family.title} are not split between attention and MLP; leave point out"
        )
    if any(need.given for need in stage.method.needs()) and (not isinstance(path, PackedPath) or isinstance(path, RasterPath)):
        raise UnsupportedCombination(
            f"{stage.method.name} looks at pixels patch by patch, and the encoder of {family.title} takes whole images: choose "
            "by states instead"
        )
    full = [at for at in range(path.used) if at not in getattr(path, "windowed", ())]
    if _measures(stage) and not any(at < layer for at in full):
        raise PlanError(
            f"{stage.method.name}(site={stage.site}): no layer below has looked at the whole picture yet; the first layer that "
            f"works is {full[0] + 1}"
        )
    if stage.scope is not Scope.MEDIUM:
        raise PlanError(
            f"scope={stage.scope.value} at {stage.site}: the encoder sees one crop or frame at a time; leave scope out"
        )
    if stage.effect is Effect.MASK:
        raise PlanError(f"effect=mask at {stage.site}: encoder stages drop or merge")
    count = stage.budget.count if stage.budget is not None else None
    if count is not None and count % path.unit**2:
        raise PlanError(
            f"{stage.method.name} at {stage.site}: {path.unit} x {path.unit} patches become one visual token and stay "
            f"together: keep a multiple of {path.unit**2} patches, not {count}"
        )
