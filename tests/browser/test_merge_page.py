"""The page of `foveate view merge` in a browser: it counts as the trace does, tells what it is asked, and can be read."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from playwright.sync_api import Page

from foveate.core.layout import Medium
from foveate.core.shape import MediumShape
from foveate.core.trace import MediumTrace
from foveate.viz.parts import Part, video_parts
from foveate.viz.regions import PALETTE, regions_of
from tests import traces
from tests.browser.conftest import NARROW, Opener
from tests.traces import BOTH, DROPS, MERGES, OVERLAPS

pytestmark = pytest.mark.browser

DRAWN = {
    "merges": lambda: traces.pictures(MERGES),
    "several": lambda: traces.pictures(BOTH, count=3),
    "drops": lambda: traces.pictures(DROPS),
    "overlaps": lambda: traces.pictures(OVERLAPS),
    "tiles": lambda: traces.pictures("partition(layer=2, keep=0.4)", family="internvl"),
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


def show(page: Page, stage: int) -> None:
    slider = page.locator("#stage")
    slider.focus()
    slider.press("Home")
    for _ in range(stage):
        slider.press("ArrowRight")
    page.evaluate("document.activeElement.blur()")


def point(page: Page, part: int, entry: Part, token: int) -> None:
    """Move the mouse to the middle of a token."""
    canvas = page.locator(".stage canvas").nth(part)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    y, x = divmod(token - entry.start, entry.columns)
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / entry.columns, box["y"] + box["height"] * (y + 0.5) / entry.rows)


def shot(page: Page, selector: str = "body") -> np.ndarray:
    """[H, W, 3] as it is shown."""
    with Image.open(io.BytesIO(page.locator(selector).first.screenshot())) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("name", DRAWN)
def test_regions_are_as_many_as_in_the_trace_at_every_stage(open_page: Opener, drawn_of, name):
    drawn = drawn_of(name)
    page = open_page(traces.page_of(drawn))
    parts = [(entry, part) for entry, parts in drawn for part in parts]
    figures = page.locator("figure")
    assert figures.count() == len(parts)
    for stage in range(len(drawn[0][0].stages) + 1):
        show(page, stage)
        for number, (entry, part) in enumerate(parts):
            tokens = np.arange(part.start, part.stop)
            kept, alive = tokens, tokens
            if stage:
                kept = np.intersect1d(tokens, entry.kept[stage - 1].numpy())
                alive = np.intersect1d(tokens, entry.stages[stage - 1][1].coalesce().indices()[1].numpy())
            figure = figures.nth(number)
            assert figure.get_attribute("data-regions") == str(len(kept))
            assert figure.get_attribute("data-dropped") == str(len(tokens) - len(alive))
            assert (
                figure.locator(".count").inner_text().startswith(f"{len(kept)} of {len(tokens)}" if stage else f"{len(tokens)}")
            )


def test_the_slider_moves_by_keyboard_and_mouse(open_page: Opener, drawn_of):
    page = open_page(traces.page_of(drawn_of("merges")))
    name, slider = page.locator("#stage-name"), page.locator("#stage")
    assert name.inner_text() == "2. partition(layer=2, keep=0.5)"  # the end is what people come for
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("ArrowLeft")
    assert name.inner_text().startswith("1. partition(site=vision")
    assert slider.get_attribute("aria-valuetext") == name.inner_text()
    page.keyboard.press("Home")
    assert name.inner_text() == "before any stage"
    page.keyboard.press("End")
    assert name.inner_text().startswith("2.")
    box = slider.bounding_box()
    assert box is not None
    for share, says in ((0.01, "before any stage"), (0.5, "1. partition"), (0.99, "2. partition")):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert name.inner_text().startswith(says)
    page.mouse.down()
    page.mouse.move(box["x"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert name.inner_text() == "before any stage"


def largest(entry: MediumTrace, parts: list[Part], stage: int = -1):
    """(token, (token, weight) of what it is made of) of the survivor with the largest region."""
    regions = regions_of(entry, parts)[stage]
    members = max(regions.members, key=len)
    assert len(members) > 1
    return members[0][0], members


def told(weight: float) -> str:
    return f"{float(f'{weight:.3g}'):g}"


def check_region(page: Page, members) -> None:
    read, patches = page.locator(".read").first, page.locator("figure").first.locator(".patches li")
    assert f"made of {len(members)} tokens" in read.inner_text()
    assert f"its own weight is {told(members[0][1])}" in read.inner_text()
    assert patches.all_inner_texts() == [told(weight) for _, weight in members]
    assert patches.first.get_attribute("class") == "host"
    titles = [patch.get_attribute("title") for patch in patches.all()]
    assert [int(title.split()[1]) for title in titles] == [token for token, _ in members]


def test_hovering_shows_source_patches_sizes_and_weights(open_page: Opener, drawn_of):
    ((entry, parts),) = drawn_of("merges")
    page = open_page(traces.page_of([(entry, parts)]))
    read = page.locator(".read").first
    before = read.inner_text()
    assert before.startswith(f"{len(entry.kept_index)} survive")
    token, members = largest(entry, parts)
    point(page, 0, parts[0], token)
    assert read.inner_text().startswith(f"token {token} (row {token // 6}, column {token % 6}) survives")
    check_region(page, members)
    absorbed, weight = members[-1]
    point(page, 0, parts[0], absorbed)
    assert f"token {absorbed}" in read.inner_text() and f"went into token {token}" in read.inner_text()
    assert f"with weight {told(weight)}" in read.inner_text()
    check_region(page, members)
    # The patches are cut out of the picture.
    patch = page.locator("figure").first.locator(".patches canvas").first
    seen = np.asarray(
        traces.picture(0).crop((16 * (token % 6), 16 * (token // 6), 16 * (token % 6) + 16, 16 * (token // 6) + 16))
    )
    mean = patch.evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, 40, 40).data, s = [0, 0, 0];"
        " for (let i = 0; i < d.length; i += 4) for (let k = 0; k < 3; k++) s[k] += d[i + k] / 1600; return s }"
    )
    assert np.abs(np.array(mean) - seen.mean((0, 1))).max() < 8
    page.mouse.move(2, 2)
    assert read.inner_text() == before
    assert page.locator(".patches li").count() == 0


def test_dropped_tokens_say_so(open_page: Opener, drawn_of):
    ((entry, parts),) = drawn_of("drops")
    page = open_page(traces.page_of([(entry, parts)]))
    kept = entry.kept_index.tolist()
    gone = next(token for token in range(36) if token not in kept)
    point(page, 0, parts[0], gone)
    assert page.locator(".read").first.inner_text() == f"token {gone} (row {gone // 6}, column {gone % 6}) was dropped"
    point(page, 0, parts[0], kept[0])
    assert "made of itself alone" in page.locator(".read").first.inner_text()
    show(page, 0)
    point(page, 0, parts[0], gone)
    assert "no stage has acted yet" in page.locator(".read").first.inner_text()


def by_hand(grid: tuple[int, int, int], matrix: torch.Tensor) -> MediumTrace:
    """One stage, whose survivors are the first tokens."""
    shape = MediumShape("video", grid)
    entry = MediumTrace(Medium(0, 0, shape, torch.arange(shape.grid_tokens)))
    entry.stages.append(("merge", matrix.to_sparse()))
    entry.kept.append(torch.arange(len(matrix)))
    return entry


def test_a_token_that_feeds_several_says_so(open_page: Opener):
    matrix = torch.tensor([[0.75, 0.0, 0.0, 0.25], [0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]])
    part = Part("p", traces.picture(0), 2, 2, 0)
    page = open_page(traces.page_of([(by_hand((1, 2, 2), matrix), [part])]))
    point(page, 0, part, 3)
    read = page.locator(".read").first.inner_text()
    assert "went into token 1 (row 0, column 1) with weight 0.5, and into 1 more; that survivor is made of 2 tokens" in read


def test_everything_can_be_reached_with_the_keyboard(open_page: Opener, drawn_of):
    drawn = drawn_of("several")
    page = open_page(traces.page_of(drawn))
    read = page.locator(".read")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        # Where the focus is can be seen.
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["stage", "tint", "CANVAS", "CANVAS", "CANVAS"]
    page.locator(".stage canvas").first.focus()
    assert read.first.inner_text().startswith("token 0 (row 0, column 0)")
    for key, name in (
        ("ArrowRight", "token 1 (row 0, column 1)"),
        ("ArrowDown", "token 7 (row 1, column 1)"),
        ("ArrowLeft", "token 6 (row 1, column 0)"),
        ("ArrowLeft", "token 6 (row 1, column 0)"),
        ("ArrowUp", "token 0 (row 0, column 0)"),
        ("ArrowUp", "token 0 (row 0, column 0)"),
    ):
        page.keyboard.press(key)
        assert read.first.inner_text().startswith(name)
    for key, stage in (("PageDown", "1."), ("PageDown", "before"), ("PageDown", "before"), ("PageUp", "1."), ("PageUp", "2.")):
        page.keyboard.press(key)
        assert page.locator("#stage-name").inner_text().startswith(stage)
    page.keyboard.press("Tab")
    assert read.first.inner_text().startswith(f"{len(drawn[0][0].kept_index)} survive")
    assert read.nth(1).inner_text().startswith("token 0 (row 0, column 0)")


def test_a_survivor_s_sources_are_marked_in_other_frames_too(open_page: Opener):
    # Eight tokens in two frames; token 0 is made of itself and of the last one.
    matrix = torch.eye(8)[:7]
    matrix[0, [0, 7]] = 0.5
    entry = by_hand((2, 2, 2), matrix)
    parts = video_parts(entry.medium.shape, "clip", 0, [traces.picture(0), traces.picture(1)], [0.0, 1.0])
    page = open_page(traces.page_of([(entry, parts)]))
    far = page.locator(".stage canvas").nth(1)
    before = far.evaluate("c => c.toDataURL()")
    point(page, 0, parts[0], 0)
    assert far.evaluate("c => c.toDataURL()") != before
    titles = [patch.get_attribute("title") for patch in page.locator(".patches li").all()]
    assert titles == ["token 0 (row 0, column 0), weight 0.5", "frame 2 of 2, 1.0 s: token 3 (row 1, column 1), weight 0.5"]
    point(page, 1, parts[1], 7)
    read = page.locator(".read").nth(1).inner_text()
    assert read.startswith("token 3 (row 1, column 1) went into frame 1 of 2, 0.0 s: token 0 (row 0, column 0) with weight 0.5")


@pytest.mark.parametrize("name", ["film", "video"])
def test_a_video_is_a_strip_with_a_timeline(open_page: Opener, drawn_of, name):
    drawn = drawn_of(name)
    page = open_page(traces.page_of(drawn), size=(700, 800))
    parts = [(entry, part) for entry, parts in drawn for part in parts]
    assert page.locator("h2").all_inner_texts() == ["clip.mp4"]
    buttons = page.locator(".timeline button")
    assert buttons.count() == len(parts)
    for stage in range(len(drawn[0][0].stages) + 1):
        show(page, stage)
        for number, (entry, part) in enumerate(parts):
            size = part.stop - part.start
            kept = size
            if stage:
                kept = int(((entry.kept[stage - 1] >= part.start) & (entry.kept[stage - 1] < part.stop)).sum())
            label = buttons.nth(number).get_attribute("aria-label")
            assert label == f"{part.moment.label}: {kept} of {size} tokens"
            bar, track = (buttons.nth(number).locator(f".{which}").bounding_box() for which in ("bar", "track"))
            assert bar["height"] == pytest.approx((track["height"] - 2) * kept / size, abs=1)
    assert buttons.first.inner_text() == "0.0 s"
    last = page.locator(".stage canvas").last
    box = last.bounding_box()
    assert box is not None
    buttons.last.click()
    page.wait_for_function("document.activeElement.tagName === 'CANVAS'")
    box = last.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 700
    assert last.evaluate("c => c === document.activeElement")


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str) -> float:
    """WCAG contrast of the text of an element and what is behind it."""
    ink, back = page.locator(selector).first.evaluate(
        """e => { const ink = getComputedStyle(e).color; let back = e;
        while (back && getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)") back = back.parentElement;
        return [ink, getComputedStyle(back).backgroundColor]; }"""
    )
    light, dark = sorted((luminance(ink), luminance(back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TEXTS = ("h1", "header p", "header .soft", "#stage-name", ".legend span", "figcaption strong", ".count", ".read", "footer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["merges", "film"])
def test_both_schemes_can_be_read(open_page: Opener, drawn_of, name, scheme):
    drawn = drawn_of(name)
    page = open_page(traces.page_of(drawn), scheme)
    entry, parts = drawn[0]
    point(page, 0, parts[0], int(entry.kept_index[0]))
    texts = (*TEXTS, "h2", ".timeline .time") if name == "film" else TEXTS
    for selector in (*texts, ".patches li"):
        assert contrast(page, selector) >= 4.5, selector
    corner = shot(page)[5, 5]
    assert corner.max() < 60 if scheme == "dark" else corner.min() > 230


def test_tokens_look_as_the_legend_says(open_page: Opener):
    ((entry, parts),) = traces.pictures("partition(site=vision, layer=1, keep=0.7) | random(layer=2, keep=0.5)")
    grey = [Part("p", Image.new("RGB", (96, 96), (128, 128, 128)), 6, 6, 0)]
    page = open_page(traces.page_of([(entry, grey)]))
    picture = shot(page, ".stage")
    cell = len(picture) / 6
    regions = regions_of(entry, parts)[-1]
    hosts = regions.hosts()
    seen = set()
    for token in range(36):
        y, x = divmod(token, 6)
        # Off the middle, where no hatching runs.
        at = picture[int((y + 0.35) * cell), int((x + 0.35) * cell)]
        color = regions.colors[hosts[token][0][0]] if token in hosts else None
        seen.add("dropped" if color is None else "alone" if color < 0 else "merged")
        if color is None:
            assert at.max() < 70
        elif color < 0:
            assert np.abs(at - 128).max() < 6
        else:
            assert np.abs(at - 0.45 * 128 - 0.55 * np.array(ImageColor.getrgb(PALETTE[color]))).max() < 6
    assert seen == {"dropped", "alone", "merged"}
    # The second slider sets how strong the colours are.
    tint = page.locator("#tint")
    tint.focus()
    tint.press("Home")
    merged = next(token for token, found in hosts.items() if regions.colors[found[0][0]] >= 0)
    y, x = divmod(merged, 6)
    assert np.abs(shot(page, ".stage")[int((y + 0.35) * cell), int((x + 0.35) * cell)] - 128).max() < 6


@pytest.mark.parametrize("size", [NARROW, (1200, 900)])
@pytest.mark.parametrize("name", ["merges", "several", "film"])
def test_nothing_is_cut_off(open_page: Opener, drawn_of, name, size):
    page = open_page(traces.page_of(drawn_of(name), plan="partition(site=vision, layer=12, keep=0.5) | " * 3), size=size)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    figures = [figure.bounding_box() for figure in page.locator("figure").all()]
    for a, b in pairwise(figures):
        assert b["x"] >= a["x"] + a["width"] or b["y"] >= a["y"] + a["height"]
    for inner in ("figcaption", ".stage", ".read"):
        box, outer = page.locator(inner).first.bounding_box(), figures[0]
        assert outer["x"] <= box["x"] and box["x"] + box["width"] <= outer["x"] + outer["width"]
    if name == "several" and size != NARROW:
        assert len({round(figure["y"]) for figure in figures}) == 1  # beside each other


def test_a_picture_that_is_not_known_is_a_grey_grid(open_page: Opener, drawn_of):
    ((entry, parts),) = drawn_of("merges")
    blank = [Part("p", None, 6, 6, 0)]
    page = open_page(traces.page_of([(entry, blank)]))
    token, members = largest(entry, parts)
    point(page, 0, blank[0], token)
    check_region(page, members)
