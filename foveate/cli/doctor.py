"""foveate doctor: what a model can do under a plan, and how much there is to win."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import options, startup
from foveate.cli.settings import DEFAULTS, ModelSettings, spread
from foveate.files.paths import is_folder, user_path

if TYPE_CHECKING:  # a help text needs no torch
    from PIL import Image
    from rich.console import Console

    from foveate.families import Family

_ANSWER_TOKENS = 64
_KEEP = 0.5


@spread
def doctor(
    model: Annotated[str | None, typer.Argument(help="Preset, folder or hub id; the demo model if left out.")] = None,
    image: Annotated[
        Path | None, typer.Option(callback=options.expanded, help="A picture of your kind; a grey 1024 x 768 one if left out.")
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Only try this transformers on a tiny random model of the family.")
    ] = False,
    settings: ModelSettings = DEFAULTS,
) -> None:
    """Say what works on a model, which plan to start with, and how much of the answer's time a plan can save."""
    from PIL import Image
    from rich.console import Console

    from foveate.api import default_plan, estimate, resolve_config
    from foveate.api.pictures import load_image
    from foveate.core.site import SiteKind
    from foveate.cost import presets
    from foveate.families import family_for

    console = Console(soft_wrap=True, highlight=False)
    if self_check:
        _self_check(console, model, settings)
        return
    picture = Image.new("RGB", (1024, 768), "grey") if image is None else load_image(image)
    loaded = processor = None
    if model is None or (model not in presets.preset_names() and _has_weights(model)):
        loaded, processor = startup.load_model(model, settings)
    config = loaded.config if loaded is not None else resolve_config(model, settings.trust_remote_code)
    family = family_for(config)
    windows = family.decoder_windows(config)
    suggested = default_plan(config, _KEEP)
    console.print(f"[bold]{model or 'demo model'}[/]: {family.title} ({config.model_type}), {len(windows)} decoder layers")
    sliding = sum(window is not None for window in windows)
    full, stateful = family.full_layers(config), family.stateful_layers(config)
    if sliding or stateful:
        kinds = [f"{sliding} sliding"] * bool(sliding) + [f"{len(stateful)} without attention"] * bool(stateful)
        console.print(f"layers: {', '.join(kinds)} and {len(full)} with full attention, where scores come from")
    if loaded is not None:
        backend = loaded.config.get_text_config()._attn_implementation
        console.print(f"attention backend: {backend}; plans leave it on, attention rows are computed beside it")
    theory = estimate(config, suggested, [picture.size])
    blocks = len(theory.encoder_tokens[0])
    sites = [f"vision(0..{blocks - 1})"] if blocks and SiteKind.VISION_LAYER not in family.unsupported else []
    sites += ["pre_llm", f"llm(1..{len(windows) - 1})", "decode"]
    console.print(f"sites: {', '.join(sites)}; fastv from layer {full[0] + 1} on")
    reasons: dict[str, list[str]] = {}
    for kind, reason in family.unsupported.items():
        reasons.setdefault(reason, []).append(kind.value)
    for reason, refused in reasons.items():
        console.print(f"refused: {', '.join(refused)} - {reason}")
    console.print("caches: dynamic, static and quantized after a pruned prompt; stages at decode need a dynamic one")
    console.print(f"suggested plan: [bold]{suggested}[/]")
    for work, advice in _by_work(family, config).items():
        console.print(f"  {work}: {advice}")
    console.print(f"in theory, {picture.width} x {picture.height}, 64 text and 128 new tokens: {theory.summary()}")
    if loaded is None:
        console.print("time shares: not measured (no weights here); run doctor on the loaded model, or foveate run --compare")
        return
    _print_amdahl(console, loaded, processor, picture, theory.prefill_flops.ratio.plan)


def _by_work(family: Family, config: Any) -> dict[str, str]:
    """Where to start for some kinds of work; by published comparisons, as the site's page on choosing says."""
    from foveate.core.encoder import PackedPath, RasterPath
    from foveate.core.site import SiteKind
    from foveate.errors import UnsupportedCombination

    if SiteKind.PRE_LLM in family.unsupported:
        return {}
    work = {
        "one question about a photo": "cdpruner(site=pre_llm, keep=0.25), which looks at the question",
        "a dialogue about it": "divprune(site=pre_llm, keep=0.25): later questions need other tokens than the first",
        "documents, small text": "first fewer pixels, --max-visual-tokens N; selectors without training lose most there",
    }
    path = family.encoder(config) if SiteKind.VISION_LAYER not in family.unsupported else None
    if isinstance(path, PackedPath) and not isinstance(path, RasterPath):
        work["documents, small text"] += "; pixelprune(site=vision, layer=0, keep=threshold:0.01) drops what repeats"
    try:
        family.media_of_video(config, (640, 480), 2)
    except UnsupportedCombination:
        return work
    return work | {"video": "evs(site=pre_llm, keep=0.25), after fewer frames"}


def _has_weights(model: str) -> bool:
    folder = user_path(model)
    return not is_folder(folder) or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _print_amdahl(console: Console, model: Any, processor: Any, picture: Image.Image, ratio: float) -> None:
    """Prefill's share of the answer's time, measured, and what it allows at most."""
    import torch

    from foveate.api import compare
    from foveate.cli import loading

    inputs = loading.prompt_inputs(model, processor, [picture], "Describe the image.")
    with console.status("timing the plain model"), torch.inference_mode():
        answer = compare(model, inputs, [], _ANSWER_TOKENS, repeats=3, min_new_tokens=_ANSWER_TOKENS)[0]
    decode = (answer.tpot_ms or 0.0) * (_ANSWER_TOKENS - 1)
    share = answer.ttft_ms / (answer.ttft_ms + decode)
    best = 1 / (1 - share * (1 - ratio))
    console.print(
        f"measured on this machine, plain model: first token {answer.ttft_ms:.1f} ms, then {answer.tpot_ms:.1f} ms a token"
    )
    console.print(
        f"prefill (vision encoder included) is {100 * share:.0f} % of a {_ANSWER_TOKENS}-token answer: "
        f"keep {_KEEP:g} can make the whole answer at most {best:.2f}x faster"
    )
    if share < 0.3:
        console.print("most of the time is decoding: shorter answers, or a smaller KV cache, matter more than prefill here")


def _self_check(console: Console, model: str | None, settings: ModelSettings) -> None:
    """Run the self-check of a model's family, or of every family without a model; refused where one fails."""
    import transformers

    from foveate import families
    from foveate.api import resolve_config, selfcheck
    from foveate.errors import UnsupportedModel

    chosen = families.names()
    if model is not None:
        found = type(families.family_for(resolve_config(model, settings.trust_remote_code)))
        chosen = [name for name in chosen if type(families.get(name)) is found]
    failed = []
    for name in chosen:
        reason = selfcheck.failure(name)
        console.print(f"{families.get(name).title}: {'passed' if reason is None else reason}")
        failed += [] if reason is None else [name]
    if failed:
        raise UnsupportedModel(f"transformers {transformers.__version__}: the self-check fails for {', '.join(failed)}")
