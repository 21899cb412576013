"""The page in a real browser: Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from export.data import Dataset
from service.client import Client
from service.server import Server
from tests.conftest import Serve

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def transport_name() -> str:
    """The page knows nothing of gRPC: once is enough."""
    return "auto"


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    return serve(repository)


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, opened. Afterwards: nothing went wrong in it, and it asked nobody but this server."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(20_000)
    opened = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(f"http://127.0.0.1:{server.http_port}/")
    expect(opened.locator("#state")).to_have_text("ready", timeout=20_000)
    expect(opened.locator("#model")).to_be_enabled()
    yield opened
    context.close()
    assert [
        each for each in problems if not each.startswith("Failed to load resource")
    ] == []  # tests that ask for that look themselves
    own = (f"http://127.0.0.1:{server.http_port}/", "data:", "blob:")
    assert [each for each in asked if not each.startswith(own)] == []


def send(page: Page, name: str, content: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})


def test_a_chosen_picture_is_classified(page: Page, digits: Dataset) -> None:
    send(page, "digit.png", digits.test.encoded(0))
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[0]])
    expect(page.locator("#bars li")).to_have_count(10)
    expect(page.locator("#phases")).to_contain_text("inference")
    expect(page.locator("#seen-shape")).to_have_text("28 x 28 pixels, gray")
    assert page.evaluate("document.getElementById('seen').naturalWidth") == 28


def test_a_broken_picture_is_said_to_be_one_and_the_next_is_answered(page: Page, digits: Dataset) -> None:
    send(page, "broken.png", b"nonsense")
    expect(page.locator("#error")).to_contain_text("image")
    send(page, "digit.png", digits.test.encoded(1))
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[1]])
    expect(page.locator("#error")).to_be_hidden()


def test_a_drawing_is_classified(page: Page) -> None:
    """A thick upright stroke, with the mouse: among these digits that is a 1."""
    page.get_by_role("button", name="Draw").click()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 140, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 240, steps=10)
    page.mouse.up()
    expect(page.locator("#answer")).to_be_visible()
    ink = page.evaluate(
        """async () => {
            const image = document.getElementById('seen'), canvas = document.createElement('canvas');
            await image.decode();
            canvas.width = canvas.height = 28;
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const {data} = context.getImageData(0, 0, 28, 28);
            return Array.from({length: 784}, (_, index) => data[4 * index]);
        }"""
    )
    columns = [sum(ink[column::28]) for column in range(28)]
    assert max(columns[12:16]) > 20 * 200  # a stroke down the middle
    assert sum(columns[:8]) + sum(columns[20:]) == 0  # and nothing beside it


def test_it_can_be_used_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("button", name="Draw").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    expect(page.locator("#answer")).to_be_visible()
    expect(page.locator("#bars li")).to_have_count(10)


def test_the_live_figures_follow_the_load(page: Page, server: Server, digits: Dataset) -> None:
    rows = page.locator("#phase-table tbody tr")
    expect(rows).to_have_count(4)
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        for _ in range(30):
            client.classify([digits.test.encoded(0), digits.test.encoded(1)], "digits")
    inference = rows.nth(2).locator("td")
    expect(inference.nth(4)).to_have_text("30")
    assert float(inference.nth(3).inner_text()) >= float(inference.nth(1).inner_text()) > 0
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.chart canvas')].map(canvas => {
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return data.some(value => value > 0);
        })"""
    )
    assert drawn == [True] * 4
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Browser, server: Server, digits: Dataset, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.http_port}/")
    expect(page.locator("#model")).to_be_enabled(timeout=20_000)
    send(page, "digit.png", digits.test.encoded(0))
    expect(page.locator("#answer")).to_be_visible(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 64) == (scheme == "dark")
    context.close()


def test_a_server_that_goes_away_is_said_to_be_gone(page: Page, server: Server) -> None:
    server.stop()
    expect(page.locator("#state")).to_have_text("not reachable", timeout=20_000)
    page.context.close()
