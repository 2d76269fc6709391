"""Schedules by name: the published layers and shares, moved to a model's depth."""

from __future__ import annotations

import pytest

from foveate.errors import SpecError
from foveate.spec import parse


def stages(text: str) -> list[tuple[int | None, str, str]]:
    return [(stage.site.layer, stage.method.name, str(stage.budget)) for stage in parse(text).stages]


def test_pyramiddrop_halves_three_times():
    assert stages("staged(preset=pyramiddrop)") == [(8, "fastv", "0.5"), (16, "fastv", "0.5"), (24, "fastv", "0.5")]
    left, counts = 576, []
    for stage in parse("staged(preset=pyramiddrop)").stages:
        left = stage.kept_of(left, None)
        counts.append(left)
    assert counts == [288, 144, 72]


@pytest.mark.parametrize(
    ("preset", "counts", "average"),
    [("sparsevlm", [300, 200, 110], 192), ("sparsevlm128", [303, 110, 36], 128), ("sparsevlm64", [66, 30, 17], 64)],
)
def test_sparsevlm_keeps_the_published_counts(preset, counts, average):
    assert [layer for layer, _, _ in stages(f"staged(preset={preset})")] == [2, 6, 15]
    assert {method for _, method, _ in stages(f"staged(preset={preset})")} == {"sparsevlm"}
    for tokens in (576, 2 * 576, 5 * 576):
        left = tokens
        for stage, count in zip(parse(f"staged(preset={preset})").stages, counts, strict=True):
            left = stage.kept_of(left, None)
            assert left == count * tokens // 576
    spent = 2 * 576 + 4 * counts[0] + 9 * counts[1] + 17 * counts[2]
    assert average * 0.96 < spent / 32 < average


def test_adsc_halves_three_times_without_a_score():
    assert stages("staged(preset=adsc)") == [(8, "uniform", "0.5"), (16, "uniform", "0.5"), (24, "uniform", "0.5")]
    assert [layer for layer, _, _ in stages("staged(preset=adsc, depth=28)")] == [7, 14, 21]


def test_layers_of_a_shallow_decoder_are_all_different():
    for preset in ("sparsevlm", "v2drop", "pyramiddrop"):
        for depth in range(4, 40):
            layers = [layer for layer, _, _ in stages(f"staged(preset={preset}, depth={depth})")]
            assert layers == sorted({*layers})
            assert 1 <= layers[0] <= layers[-1] < depth


@pytest.mark.parametrize(("depth", "layers"), [(28, [7, 14, 21]), (40, [10, 20, 30]), (80, [20, 40, 60]), (4, [1, 2, 3])])
def test_layers_move_with_the_depth(depth, layers):
    assert [layer for layer, _, _ in stages(f"staged(preset=pyramiddrop, depth={depth})")] == layers


def test_what_is_said_holds_instead_of_the_preset():
    assert stages("staged(preset=v2drop)") == [(3, "v2drop", "0.5"), (17, "v2drop", "0.5"), (22, "v2drop", "1tok")]
    assert stages("staged(preset=horizon, keep=[0.1])") == [(20, "random", "0.1")]
    assert stages("staged(preset=pyramiddrop, method=uniform)")[0] == (8, "uniform", "0.5")


def test_vscan_leaves_a_ninth_of_the_tokens_on_average():
    first, second = parse("vscan()").stages
    assert (first.method.name, second.method.name, second.site.layer) == ("global_local", "fastv", 16)
    entering, left = first.kept_of(576, None), second.kept_of(96, None)
    assert (entering, left) == (96, 32)
    assert (entering * 16 + left * 16) / 32 == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("staged(preset=pyramid)", "Did you mean 'pyramiddrop'"),
        ("staged(layers=[2], keep=[0.5], depth=28)", "moves the layers of a preset"),
        ("staged(preset=v2drop, depth=2)", "4 to 1000"),
        ("staged(preset=v2drop, layers=[2])", "staged has 1 layers and 3 budgets"),
    ],
)
def test_a_schedule_without_meaning_is_refused(text, said):
    with pytest.raises(SpecError, match=said):
        parse(text)
