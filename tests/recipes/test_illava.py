"""The iLLaVA recipe: published settings, and what cannot be meant."""

from __future__ import annotations

import pytest

import foveate
from foveate.core.site import SiteKind
from foveate.errors import SpecError, UnknownName
from foveate.recipes.illava import PRESETS, PUBLISHED, SCALED, _scaled
from foveate.spec import parse


def counts(plan: str, patches: int, kind: SiteKind, unit: int = 1) -> list[int]:
    """Tokens behind each stage of a kind."""
    left = patches // unit
    found = []
    for stage in parse(plan).stages:
        if stage.site.kind is kind:
            whole = stage.budget is not None and stage.budget.count is not None
            left = stage.kept_of(left * unit, None) // unit if whole else stage.kept_of(left, None)
            found.append(left * unit)
    return found


def test_onevision_counts_are_those_of_the_paper() -> None:
    plan = "illava(preset=onevision-image)"
    assert counts(plan, 729, SiteKind.VISION_LAYER) == [637, 545, 453, 361]
    assert counts(plan, 361, SiteKind.LLM_LAYER) == [253]
    assert [stage.site.layer for stage in parse(plan).stages] == [6, 7, 8, 9, 8]
    assert [stage.site.layer for stage in parse("illava(preset=onevision-video)").stages] == [4, 5, 6, 7, 2]


@pytest.mark.parametrize(
    ("patches", "inside", "behind"),
    [
        (256, [216, 184, 156, 132], [30, 27, 24]),
        (1024, [864, 728, 612, 516], [116, 104, 94]),
        (4096, [3444, 2896, 2436, 2048], [461, 415, 374]),
        (5120, [4304, 3616, 3040, 2556], [575, 518, 466]),
        (16384, [13764, 11564, 9716, 8164], [1837, 1653, 1488]),
    ],
)
def test_qwen2_vl_counts_are_those_of_the_authors_program(patches: int, inside: list[int], behind: list[int]) -> None:
    plan = "illava(preset=qwen2-vl-7b)"
    assert counts(plan, patches, SiteKind.VISION_LAYER, unit=4) == inside
    assert counts(plan, inside[-1] // 4, SiteKind.LLM_LAYER) == behind
    assert [stage.site.layer for stage in parse(plan).stages] == [13, 14, 15, 16, 6, 7, 8]


def test_qwen3_vl_counts_are_rounded_as_in_the_authors_program() -> None:
    plan = "illava(preset=qwen3-vl-8b)"
    left, expected = 70, []
    for _ in range(4):
        left = round(left * 0.85)
        expected.append(left)
    assert expected[0] == 60 and counts(plan, 70, SiteKind.VISION_LAYER) == expected  # 59.5
    left = counts(plan, 75, SiteKind.LLM_LAYER)
    assert left[0] == round(75 * 0.9) == 68  # 67.5, to even
    assert counts("illava(preset=qwen3-vl-8b, rounding=floor)", 75, SiteKind.LLM_LAYER)[0] == 67
    with pytest.raises(SpecError, match="Did you mean 'half_even'"):
        parse("illava(preset=qwen3-vl-8b, rounding=half-even)")


def test_qwen3_vl_counts_are_the_nominal_ones() -> None:
    plan = "illava(preset=qwen3-vl-8b)"
    assert counts(plan, 1024, SiteKind.LLM_LAYER) == [922, 830, 747, 672]
    assert counts("illava(preset=qwen3-vl-8b, llm_keep=[0.85, 0.85, 0.85, 0.85])", 1024, SiteKind.LLM_LAYER) == [
        870,
        740,
        629,
        535,
    ]


@pytest.mark.parametrize(
    ("name", "inside", "kept", "behind"),
    [
        ("llava-next-13b", [5, 6, 7, 8], [503, 431, 358, 285], 11),
        ("llava-next-34b", [5, 6, 7, 8], [503, 431, 358, 285], 17),
        ("internvl2.5-8b", [5, 6, 7, 8], [896, 764, 636, 508], 9),
        ("internvl2.5-26b", [9, 10, 11, 12], [896, 764, 636, 508], 14),
        ("internvl3-8b", [5, 6, 7, 8], [896, 764, 636, 508], 8),
    ],
)
def test_presets_of_ours_follow_onevision_by_depth(name: str, inside: list[int], kept: list[int], behind: int) -> None:
    stages = parse(f"illava(preset={name})").stages
    assert [stage.site.layer for stage in stages] == [*(layer + 1 for layer in inside), behind]
    assert [stage.budget.count for stage in stages[:4] if stage.budget] == kept
    assert {stage.method.name for stage in stages} == {"illava_v1"}
    assert name in SCALED and name not in PUBLISHED


def test_the_scaling_gives_onevision_itself_back() -> None:
    assert _scaled(26, 28, 729) == PUBLISHED["onevision-image"]


def test_a_preset_fits_the_model_it_is_named_after() -> None:
    for name, model in (("internvl3-8b", "internvl3-8b"), ("qwen2-vl-7b", "qwen2-vl-7b"), ("qwen3-vl-8b", "qwen3-vl-8b")):
        cost = foveate.estimate(model, f"illava(preset={name})", images=[(896, 896)]).to_json()
        assert cost["encoder_flops_ratio"]["plan"] < 0.85
        assert cost["llm_prefill_flops_ratio"]["plan"] < 0.85


@pytest.mark.parametrize(("only", "layers"), [("vit", [6, 7, 8, 9]), ("llm", [8])])
def test_each_part_of_a_preset_can_run_alone(only: str, layers: list[int]) -> None:
    stages = parse(f"illava(preset=onevision-image, only={only})").stages
    assert [stage.site.layer for stage in stages] == layers


@pytest.mark.parametrize("options", ["variant=v1, ramp=even", "variant=v2, mode=2", "variant=v2, mode=1, query=all"])
def test_every_option_reaches_the_stages(options: str) -> None:
    plan = parse(f"illava({options}, vit_layers=5..6, vit_keep=[0.9, 0.9], llm_layers=8, llm_keep=144)")
    text = options.partition(", ")[2]
    assert len(plan.stages) == 3
    assert all(text in str(stage) for stage in plan.stages)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stores_its_stages_and_reads_them_back(name: str) -> None:
    plan = parse(f"illava(preset={name})")
    assert parse(str(plan)) == plan
    assert "preset" not in str(plan)


def test_words_change_a_preset() -> None:
    plan = parse("illava(preset=qwen2-vl-2b, variant=partition, vit_layers=[3, 4], vit_keep=[0.5, 0.5])")
    assert [stage.method.name for stage in plan.stages] == ["partition", "partition"]
    assert [stage.site.layer for stage in plan.stages] == [4, 5]


def test_variants_are_methods_with_their_options() -> None:
    plan = parse("illava(variant=v2, recycle=0.1, partners=3, llm_layers=8, llm_keep=0.7)")
    (stage,) = plan.stages
    assert (stage.method.name, stage.method.recycle, stage.method.partners) == ("illava_v2", 0.1, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        ("illava()", SpecError, "merges nowhere"),
        ("illava(preset=onevision)", UnknownName, "onevision-image"),
        ("illava(vit_layers=5..8, vit_keep=0.8)", SpecError, "as many of each"),
        ("illava(variant=v3, llm_layers=8, llm_keep=0.7)", SpecError, "v1, v2, partition"),
        ("illava(variant=v1, recycle=0.2, llm_layers=8, llm_keep=0.7)", SpecError, "recycle is an option of variant=v2"),
        ("illava(variant=v2, ramp=even, llm_layers=8, llm_keep=0.7)", SpecError, "ramp is an option of variant=v1"),
        ("illava(preset=onevision-image, only=encoder)", SpecError, "vit and llm are known"),
        ("illava(only=vit, llm_layers=8, llm_keep=0.7)", SpecError, "merges nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(plan: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        parse(plan)


def test_the_estimate_counts_whole_squares_of_patches() -> None:
    ratio, count = (
        foveate.estimate("qwen2-vl-7b", plan, images=[(896, 896)], text_tokens=10).to_json()
        for plan in ("illava(preset=qwen2-vl-2b)", "partition(site=vision, layer=13, keep=512)")
    )
    assert ratio["encoder_tokens_per_layer"]["plan"][12:17] == [4096, 3444, 2896, 2436, 2048]
    assert set(ratio["visual_tokens_per_layer"]["plan"]) == {512}
    assert count["encoder_tokens_per_layer"]["plan"][12:14] == [4096, 512]
    assert set(count["visual_tokens_per_layer"]["plan"]) == {128}


def test_the_estimate_counts_each_tile_and_frame_of_onevision() -> None:
    preset, sizes = "llava-onevision-7b", {(384, 384): 2, (2304, 2304): 37}
    for size, tiles in sizes.items():
        cost = foveate.estimate(preset, "illava(preset=onevision-image)", images=[size], text_tokens=10)
        assert cost.encoder_tokens[1][5:11] == tuple(tiles * left for left in (729, 637, 545, 453, 361, 361))
        plain, plan = (tokens[0] for tokens in cost.visual_tokens_per_layer)
        # 361 of 729 patches of each tile, and the same share of the 81 x 81 tokens that 36 tiles are shrunk to.
        newlines, grid = (27, 729) if tiles == 2 else (81, 81 * 81)
        assert (plain, plan) == (729 + grid + newlines, 361 + round(grid * 361 / 729) + newlines)
    video = foveate.estimate(preset, "illava(preset=onevision-video)", images=[(640, 360)], frames=8, text_tokens=10)
    assert video.encoder_tokens[1][3:8] == tuple(8 * left for left in (729, 637, 545, 453, 361))
    # 14 x 14 tokens of each frame keep the share of its patches, half up.
    assert [tokens[0] for tokens in video.visual_tokens_per_layer] == [8 * 196 + 1, 8 * 97 + 1]
