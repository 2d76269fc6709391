"""A headless Chromium that opens pages from files. It must not complain, and must not ask for anything else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# Nothing of the browser's own may go to the network.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = (1200, 900), (390, 800)
Opener = Callable[..., Page]


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    path = request.config.getoption("--chromium")
    if shutil.which(path) is None:
        pytest.fail(
            f"no browser at {path}: sudo apt-get install chromium, or --chromium PATH; "
            'to leave these tests out: -m "not browser", or make test-full BROWSER=no',
            pytrace=False,
        )
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, headless=True, args=_FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """`open_page(html, scheme="dark", size=NARROW)`; at the end of a test no page may have complained or loaded anything."""
    complaints: list[str] = []
    contexts = []

    def open_(html: str, scheme: str = "light", size: tuple[int, int] = WIDE) -> Page:
        path = tmp_path / f"page-{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))

        def asked(url: str) -> None:
            if not url.startswith("data:") and url != path.as_uri():
                complaints.append(f"asked for {url}")

        page.on("request", lambda request: asked(request.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
