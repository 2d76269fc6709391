"""Regions, pages and pictures of what each survivor stands for: exactly the trace, nothing loaded from outside."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from foveate.core.layout import Medium
from foveate.core.shape import MediumShape
from foveate.core.trace import MediumTrace
from foveate.errors import MissingPackage
from foveate.viz import packages
from foveate.viz.film import FilmFrame, film_picture
from foveate.viz.kept import kept_film
from foveate.viz.merge_picture import merge_film, merge_stages
from foveate.viz.parts import Part, groups_of, is_film, parts_of, video_parts
from foveate.viz.regions import PALETTE, regions_of
from tests import traces
from tests.traces import BOTH, DROPS, MERGES, OVERLAPS

DRAWN = {
    "merges": lambda: traces.pictures(MERGES),
    "drops": lambda: traces.pictures(DROPS),
    "both": lambda: traces.pictures(BOTH, count=2),
    "overlaps": lambda: traces.pictures(OVERLAPS),
    "tiles": lambda: traces.pictures("partition(layer=2, keep=0.4)", family="internvl"),
    "mask": lambda: traces.pictures("fastv(layer=2, keep=0.3, effect=mask)"),
    "pool": lambda: traces.pictures("pool(site=pre_llm)"),
    "film": lambda: traces.film(BOTH),
    "video": lambda: traces.whole_video("partition(layer=1, keep=0.5) | random(layer=2, keep=0.5)"),
}


@pytest.fixture(scope="module")
def drawn_of():
    known = {}

    def get(name: str) -> traces.Drawn:
        if name not in known:
            known[name] = DRAWN[name]()
        return known[name]

    return get


@pytest.mark.parametrize("name", DRAWN)
def test_regions_are_the_rows_of_the_trace(drawn_of, name):
    for entry, parts in drawn_of(name):
        stages = regions_of(entry, parts)
        assert [regions.stage for regions in stages] == [stage for stage, _ in entry.stages]
        for regions, kept, (_, matrix) in zip(stages, entry.kept, entry.stages, strict=True):
            assert regions.kept == tuple(kept.tolist())
            assert len(regions.members) == len(regions.colors) == len(kept)
            rebuilt = torch.zeros(matrix.shape)
            for survivor, members in enumerate(regions.members):
                for token, weight in members:
                    rebuilt[survivor, token] = weight
                assert regions.kept[survivor] in dict(members) and members[0][0] == regions.kept[survivor]
            assert torch.equal(rebuilt, matrix.to_dense())
            assert sum(len(regions.in_part(part)) for part in parts) == len(kept)
            alone = [len(members) == 1 for members in regions.members]
            assert [color < 0 for color in regions.colors] == alone


def test_what_fastv_drops_has_no_host_and_what_merges_absorb_has_one(drawn_of):
    (entry, parts), *_ = drawn_of("drops")
    for regions, kept in zip(regions_of(entry, parts), entry.kept, strict=True):
        assert sorted(regions.hosts()) == kept.tolist()
    (entry, parts), *_ = drawn_of("merges")
    merged = regions_of(entry, parts)[-1]
    assert sorted(merged.hosts()) == list(range(parts[-1].stop))
    assert max(len(hosts) for hosts in merged.hosts().values()) == 1


def hand_made(rows: int, columns: int, regions: list[list[int]]) -> tuple[MediumTrace, list[Part]]:
    """A trace whose survivors are the first tokens of `regions`, each an even mean."""
    size = rows * columns
    entry = MediumTrace(Medium(0, 0, MediumShape("image", (1, rows, columns)), torch.arange(size)))
    regions = sorted(regions)
    index = torch.tensor([[at, token] for at, region in enumerate(regions) for token in region]).T
    weights = torch.tensor([1 / len(region) for region in regions for _ in region])
    entry.stages.append(("merge", torch.sparse_coo_tensor(index, weights, (len(regions), size), check_invariants=True)))
    entry.kept.append(torch.tensor([region[0] for region in regions]))
    return entry, parts_of(entry.medium.shape, "p", [Image.new("RGB", (columns * 20, rows * 20), (128, 128, 128))])


def test_regions_beside_each_other_have_different_colours():
    # Blocks of 2 x 2, seven in a row: those below each other would begin with the same of the seven colours.
    across, size = 14, 14 * 6
    blocks = [
        [at, at + 1, at + across, at + across + 1] for y in range(0, 6, 2) for at in range(y * across, (y + 1) * across, 2)
    ]
    entry, parts = hand_made(6, across, blocks)
    (regions,) = regions_of(entry, parts)
    color = {token: regions.colors[hosts[0][0]] for token, hosts in regions.hosts().items()}
    owner = {token: hosts[0][0] for token, hosts in regions.hosts().items()}
    sides = [(t, t + 1) for t in range(size) if t % across < across - 1] + [(t, t + across) for t in range(size - across)]
    assert all(color[a] != color[b] for a, b in sides if owner[a] != owner[b])
    assert len(set(color.values())) > 2


def test_the_largest_weight_is_the_host():
    entry, parts = hand_made(1, 3, [[0], [2]])
    matrix = torch.tensor([[1.0, 0.25, 0.0], [0.0, 0.75, 0.5]]).to_sparse()
    entry.stages[0] = ("merge", matrix)
    (regions,) = regions_of(entry, parts)
    assert regions.hosts()[1] == [(1, 0.75), (0, 0.25)]


def test_the_picture_shows_survivors_absorbed_and_dropped_tokens():
    entry, parts = hand_made(2, 4, [[0, 1], [3], [4, 5]])  # 2, 6 and 7 are dropped
    panel = np.asarray(merge_stages(entry, parts))[-168:, -336:].astype(int)
    (regions,) = regions_of(entry, parts)

    def middle(token: int) -> np.ndarray:
        return panel[84 * (token // 4) + 42, 84 * (token % 4) + 42]

    for token in (2, 6, 7):
        assert middle(token).max() < 80
    assert np.abs(middle(3) - 128).max() <= 2
    for survivor, tokens in ((0, (0, 1)), (2, (4, 5))):
        tint = 0.45 * 128 + 0.55 * np.array(ImageColor.getrgb(PALETTE[regions.colors[survivor]]))
        for token in tokens:
            assert np.abs(middle(token) - tint).max() <= 2
        corner = panel[84 * (tokens[0] // 4) + 4, 84 * (tokens[0] % 4) + 4]
        assert tuple(corner) == ImageColor.getrgb(PALETTE[regions.colors[survivor]])


@pytest.mark.parametrize("name", DRAWN)
def test_every_plan_is_drawn(drawn_of, name):
    groups = groups_of(drawn_of(name))
    for group in groups:
        stages = len(group[0][0].stages)
        if is_film(group):
            frames = sum(len(parts) for _, parts in group)
            for drawn in (merge_film(group), kept_film(group)):
                assert drawn.width >= 130 * frames and drawn.height >= 130 * (stages + 1)
        else:
            assert merge_stages(*group[0]).width >= 250 * (stages + 1)


def film_frames(count: int) -> list[FilmFrame]:
    shape = MediumShape("video", (count, 2, 2))
    seconds = [at / 4 for at in range(count)]
    parts = video_parts(shape, "clip", 0, [Image.new("RGB", (40, 20), (10 * at, 0, 0)) for at in range(count)], seconds)
    return [FilmFrame(part, part.picture, [part.picture], [at % 5]) for at, part in enumerate(parts)]


def test_bars_of_a_strip_are_as_long_as_what_stayed():
    picture = np.asarray(film_picture(["stage"], film_frames(5)))
    line = picture[-32, : 5 * 246]  # through the bars
    for at in range(5):
        own = line[246 * at : 246 * at + 240]
        assert (own == (0, 114, 178)).all(1).sum() == 60 * at
        assert (own == (225, 225, 230)).all(1).sum() == 240 - 60 * at


def test_long_strips_go_on_below():
    short, long = film_picture(["stage"], film_frames(8)), film_picture(["stage"], film_frames(20))
    assert long.width == short.width
    assert long.height == 3 * short.height + 2 * 8


def test_frames_that_a_model_takes_together_share_a_part():
    pictures = [Image.new("RGB", (4, 4), (at, 0, 0)) for at in range(5)]
    parts = video_parts(MediumShape("video", (3, 2, 2)), "clip.mp4", 0, pictures, [0.0, 0.5, 1.0, 1.5, 2.0])
    assert [part.title for part in parts] == [
        "clip.mp4, frames 1-2 of 5, 0.0 s",
        "clip.mp4, frames 3-4 of 5, 1.0 s",
        "clip.mp4, frame 5 of 5, 2.0 s",
    ]
    assert [part.picture.getpixel((0, 0))[0] for part in parts] == [0, 2, 4]
    assert [part.start for part in parts] == [0, 4, 8]


def test_media_are_grouped_by_picture_and_video(drawn_of):
    film, single = drawn_of("film"), drawn_of("both")
    assert [len(group) for group in groups_of([*single, *film])] == [1, 1, 4]
    assert [is_film(group) for group in groups_of([*single, *film])] == [False, False, True]


@pytest.mark.parametrize("name", DRAWN)
def test_the_page_holds_the_trace(drawn_of, name):
    drawn = drawn_of(name)
    data = traces.data_of(traces.page_of(drawn))
    media = [one for group in data["groups"] for one in group["media"]]
    assert len(media) == len(drawn)
    for shown, (entry, parts) in zip(media, drawn, strict=True):
        assert shown["tokens"] == entry.medium.shape.grid_tokens
        assert [part["start"] for part in shown["parts"]] == [part.start for part in parts]
        for stage, kept, (_, matrix) in zip(shown["stages"], entry.kept, entry.stages, strict=True):
            assert stage["kept"] == kept.tolist()
            survivors = np.repeat(np.arange(len(kept)), np.diff([0, *stage["cuts"]]))
            rebuilt = np.zeros(matrix.shape)
            rebuilt[survivors, stage["tokens"]] = stage["weights"]
            assert np.allclose(rebuilt, matrix.to_dense().numpy(), rtol=1e-4)


@pytest.mark.parametrize("name", ["both", "film"])
def test_the_page_loads_nothing(drawn_of, name):
    page = traces.page_of(drawn_of(name))
    text = re.sub(r"[A-Za-z0-9+/=]{60,}", "", page)  # base64 holds any letters
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(|fetch\(|XMLHttp|import\s", text, re.IGNORECASE)
    sources = re.findall(r'"picture": "([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "default-src 'none'" in page
    assert re.findall(r"<script[^>]*>", page) == ["<script>"]


def test_text_in_the_page_is_text(drawn_of):
    page = traces.page_of(drawn_of("drops"), plan="</title><b>", question="what is </script> & <i>?")
    assert page.count("</script>") == 1
    assert "what is &lt;/script&gt; &amp; &lt;i&gt;?" in page and "<b>" not in page
    (entry, _), *_ = drawn_of("drops")
    hostile = traces.page_of([(entry, parts_of(entry.medium.shape, "</script><b>", [None]))])
    assert hostile.count("</script>") == 1
    assert traces.data_of(hostile)["groups"][0]["media"][0]["parts"][0]["title"] == "</script><b>"


def test_a_missing_package_is_one_line_with_the_command(drawn_of, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install foveate\[view\]"):
        traces.page_of(drawn_of("drops"))
