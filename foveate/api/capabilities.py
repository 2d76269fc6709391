"""What works with what, found out by trying it on tiny random models. Values are never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from foveate import families, methods, recipes
from foveate.api.attachment import attach
from foveate.api.capability_table import FILE, CapabilityTable, FamilyCapability, MethodCapability, RecipeCapability
from foveate.core import registry
from foveate.core.budget import Budget
from foveate.core.layout import Role
from foveate.core.learned import LearnedMethod
from foveate.core.method import Method, StepMethod, TokenMethod
from foveate.core.plan import Effect, Scope, Stage
from foveate.core.site import LAYERED, Site, SiteKind
from foveate.core.view import TokenView
from foveate.engine.compat import CACHE
from foveate.errors import FoveateError

_BACKENDS = ("eager", "sdpa")
_CACHES = ("dynamic", "static", "quantized")


def write_table() -> None:
    """Measure everything of ours and put it into the package, for `foveate methods`, `foveate models` and docs/models.md."""
    import transformers

    table = CapabilityTable(
        transformers=transformers.__version__,
        methods=tuple(method_capabilities(registry.file_names(methods))),
        recipes=tuple(recipe_capabilities(registry.file_names(recipes))),
        families=tuple(family_capabilities(registry.file_names(families))),
    )
    FILE.write_text(table.to_text(), encoding="utf-8")


def recipe_capabilities(names: Sequence[str] | None = None) -> list[RecipeCapability]:
    """What recipes say of themselves, of all or of those named."""
    rows = []
    for name in recipes.names() if names is None else names:
        recipe = recipes.get(name)
        options = tuple(field.name for field in fields(recipe))
        rows.append(RecipeCapability(name, _summary(recipe), recipe.notes, options))
    return rows


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def method_capabilities(names: Sequence[str] | None = None) -> list[MethodCapability]:
    """Probe methods, all or those named: build stages at every site, and let each choose among 16 tokens."""
    rows = []
    for name in methods.names() if names is None else names:
        method = methods.get(name)()
        counts_itself = isinstance(method, TokenMethod) and method.fixed_count((1, 4, 4)) is not None
        gates_itself = isinstance(method, StepMethod) and not method.takes_keep
        half = Budget(threshold=0.5) if Role.INSTRUCT in method.roles else Budget.of_ratio(0.5)
        budget = None if counts_itself or gates_itself else half
        sites = tuple(kind.value for kind in SiteKind if _works(partial(_stage_at, kind, method, budget)))
        options = ", ".join(f"{field.name}={_shown(field.default)}" for field in fields(method))
        rows.append(
            MethodCapability(
                name=name,
                summary=_summary(type(method)),
                paper=method.paper,
                options=options,
                sites=sites,
                effect=_effect(method),
                masks=_works(partial(_masked_stage, method, budget)),
                looks_at=_looked_at(method),
                published=method.published,
            )
        )
    return rows


def _looked_at(method: Method) -> str:
    seen = ", ".join(dict.fromkeys(need.what for need in method.needs()))
    if isinstance(method, TokenMethod) and method.fixed_count((1, 4, 4)) is not None:
        return seen or "places alone"
    return seen or ("the states of its tokens" if method.reads_features else "nothing")


def _stage_at(kind: SiteKind, method: Method, budget: Budget | None) -> Stage:
    return Stage(_site(kind), method, budget)


def _masked_stage(method: Method, budget: Budget | None) -> Stage:
    if method.reads_features:
        raise FoveateError("cached tokens have no hidden states to read")
    return Stage(_site(SiteKind.LLM_LAYER), method, budget, effect=Effect.MASK)


def _shown(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _site(kind: SiteKind) -> Site:
    layer = 1 if kind is SiteKind.VISION_LAYER else 2  # tiny encoders have few layers
    return Site(kind, layer if kind in LAYERED else None)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except FoveateError:
        return False
    return True


# Of what a method is shown when it is tried.
_SIZES = {"G": 1, "N": 16, "H": 2, "M": 4, "D": 8}


def _effect(method: Method) -> str:
    if isinstance(method, StepMethod):
        return "gates"
    if isinstance(method, LearnedMethod):
        return "drops"  # by a score; without its weights it cannot be asked
    assert isinstance(method, TokenMethod)
    index = torch.arange(16)
    generator = torch.Generator().manual_seed(0)
    view = TokenView(
        features=torch.randn(1, 16, 8, generator=generator),
        coords=torch.stack([index * 0, index // 4, index % 4], dim=-1)[None],
        grid=(1, 4, 4),
        sizes=torch.ones(1, 16),
        group_keys=(0,),
        observed={
            wanted: torch.rand(*(_SIZES[axis] for axis in wanted.axes), generator=generator) for wanted in method.needs()
        },
    )
    keep = method.fixed_count((1, 4, 4)) or 8
    return "merges" if method.select(view, keep).is_merge else "drops"


def family_capabilities(names: Sequence[str] | None = None) -> Iterator[FamilyCapability]:
    """Probe families, all or those named, on tiny random models of their own; yields as it goes, a second or so each."""
    for name in families.names() if names is None else names:
        family = families.get(name)
        model, inputs = tiny_model(name)
        sites, backends, refused = [], [], {kind.value: reason for kind, reason in family.unsupported.items()}
        for kind in SiteKind:
            stage = _probe_stage(kind)
            if kind.value in refused:
                continue
            if stage is None:
                refused[kind.value] = "no method acts here in this version"
                continue
            try:
                _forward(model, inputs, stage)
                sites.append(kind.value)
            except FoveateError as error:
                refused[kind.value] = str(error)
        stage = _usual_stage(family)
        for backend in _BACKENDS:
            model.set_attn_implementation(backend)
            if _works(partial(_forward, model, inputs, stage)):
                backends.append(backend)
        yield FamilyCapability(
            title=family.title,
            name=name,
            model_types=family.model_types,
            sites=tuple(sites),
            backends=tuple(backends),
            caches=tuple(kind for kind in _CACHES if _decodes(model, inputs, kind, stage)),
            video=_works(partial(family.media_of_video, model.config, (64, 64), 4)),
            refused=refused,
            notes="; ".join([family.notes, *(f"fails in transformers {a}.{b} itself" for a, b in family.broken_in)]),
        )


def _usual_stage(family: families.Family) -> Stage:
    """What backends and caches are tried with."""
    stage = _probe_stage(SiteKind.DECODE if family.is_text_only else SiteKind.LLM_LAYER)
    assert stage is not None
    return stage


def _decodes(model: Any, inputs: dict[str, torch.Tensor], kind: str, stage: Stage) -> bool:
    """Whether two tokens can be generated under a stage in a kind of cache."""
    from transformers import QuantizedCache

    options: dict[str, Any] = {"cache_implementation": kind}
    try:
        if kind == "quantized":
            options = {CACHE: QuantizedCache(backend="fp8", config=model.config)}
        with attach(model, stage):
            everything = torch.ones_like(inputs["input_ids"])
            model.generate(**inputs, **options, attention_mask=everything, max_new_tokens=2, do_sample=False, pad_token_id=0)
    except (FoveateError, ValueError):  # transformers quantizes full-attention layers only, and says so with a ValueError
        return False
    return True


def _probe_stage(kind: SiteKind) -> Stage | None:
    for name in ("fastv", "random", "random_gate"):
        method = methods.get(name)()
        if kind in method.sites:
            return Stage(_site(kind), method, Budget.of_ratio(0.5), Scope.MEDIUM)
    return None


def _forward(model: Any, inputs: dict[str, torch.Tensor], stage: Stage) -> None:
    with attach(model, stage) as attachment, torch.no_grad():
        if stage.site.kind is SiteKind.DECODE:
            everything = torch.ones_like(inputs["input_ids"])
            options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
            model.generate(**inputs, **options, attention_mask=everything)
            assert not torch.stack(attachment.trace.answer_kept).all()
            return
        model(**inputs)
        assert len(attachment.trace.media[0].kept_index) < attachment.trace.media[0].medium.shape.grid_tokens


def tiny_model(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny random model of a family and inputs, with one picture where it takes some: for probing, never for answers."""
    import transformers

    family = families.get(name)
    config = family.tiny_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, family.auto_class).from_config(config).eval()
        family.mend(model)
        return model, family.tiny_inputs(config)
