"""The report's page in a real browser: nothing is fetched, nothing fails, and it fits on a desk and in a hand."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.report import read_run, write_page
from tests.orchestrator.report.runs import record, write_run, write_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    """The page of two runs, one with a trace, one with a long name."""
    runs = [tmp_path / "first", tmp_path / f"a-run-with-a-long-name-{'x' * 40}"]
    for folder in runs:
        write_run(folder, [record(epoch, **{"rollout/recent_return": 1e5 * epoch}) for epoch in range(1, 30)])
    write_trace(runs[0], 29)
    write_page([read_run(folder) for folder in runs], tmp_path / "report.html")
    return (tmp_path / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_shown_without_errors_and_fits(browser: Any, address: str, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url in (address, "data:,") or wrong.append(request.url))
    page.goto(address)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    assert page.locator("figure.chart").count() >= 6
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")

    # The labels of an axis do not run into each other.
    overlaps = """all => all.map(axis => {
        const boxes = [...axis.children].map(one => one.getBoundingClientRect()).filter(box => box.width);
        return boxes.slice(1).some((box, index) => box.left < boxes[index].right);
    })"""
    assert not any(page.locator(".x-labels").evaluate_all(overlaps))
    assert not wrong
    page.close()


def test_the_values_under_the_pointer_are_shown(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    canvas = page.locator(".canvas").first
    tip = canvas.locator(".tip")
    assert not tip.is_visible()
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 1, "y": box["height"] / 2})
    assert tip.locator("div").all_inner_texts() == [
        "agent steps 29k",
        "first 2.9M",
        f"a-run-with-a-long-name-{'x' * 40} 2.9M",
    ]
    tip_box = tip.bounding_box()
    assert box["x"] <= tip_box["x"]
    assert tip_box["x"] + tip_box["width"] <= box["x"] + box["width"] + 1
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    page.close()
