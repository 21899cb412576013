"""The page, and a walkthrough's, in a real browser: Debian's chromium, driven by Playwright."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from export.data.datasets import Dataset
from export.walkthrough import network_page, subject, web_page
from service.client import Client
from service.server import Server
from tests.conftest import Serve, put
from tests.deploy import balanced
from tests.integration.access_file import token, write_auth_file

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--no-proxy-server", "--host-resolver-rules=MAP cats.example 127.0.0.1"]
        )
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


def test_an_answer_is_explained_until_the_next_one(page: Page, digits: Dataset) -> None:
    send(page, "digit.png", digits.test.encoded(0))
    page.get_by_role("button", name="Show why").click()
    expect(page.locator("#why-text")).to_contain_text(f"Red spoke for “{digits.labels[digits.test.labels[0]]}”")
    assert (
        page.evaluate("document.getElementById('overlay').decode().then(() => document.getElementById('overlay').naturalWidth)")
        == 9 * 28
    )
    expect(page.locator("#explain")).to_be_hidden()
    send(page, "other.png", digits.test.encoded(1))
    expect(page.locator("#why")).to_be_hidden()
    expect(page.locator("#explain")).to_be_visible()


def test_a_broken_picture_is_said_to_be_one_and_the_next_is_answered(page: Page, digits: Dataset) -> None:
    send(page, "broken.png", b"nonsense")
    expect(page.locator("#error")).to_contain_text("image")
    send(page, "digit.png", digits.test.encoded(1))
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[1]])
    expect(page.locator("#error")).to_be_hidden()


def test_a_drawing_is_classified(page: Page) -> None:
    """A thick upright stroke, with the mouse: among these digits that is a 1."""
    page.get_by_role("button", name="Draw").click()
    stroke(page)
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


def stroke(page: Page) -> None:
    """Draws a thick upright stroke with the mouse."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 140, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 240, steps=10)
    page.mouse.up()


def test_each_tab_has_its_own_picture_and_the_answer_to_it(page: Page, digits: Dataset) -> None:
    send(page, "digit.png", digits.test.encoded(0))
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[0]])
    of_the_file = page.locator("#seen").get_attribute("src")
    assert of_the_file is not None
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()
    stroke(page)
    expect(page.locator("#seen")).not_to_have_attribute("src", of_the_file)
    page.get_by_role("button", name="Picture").click()
    expect(page.locator("#seen")).to_have_attribute("src", of_the_file)
    page.locator("#model").dispatch_event("change")
    expect(page.locator("#seen")).to_have_attribute("src", of_the_file)


def test_a_drawing_that_is_cleared_has_no_answer_and_one_on_white_is_the_same_drawing(page: Page) -> None:
    page.get_by_role("button", name="Draw").click()
    stroke(page)
    expect(page.locator("#answer")).to_be_visible()
    light = (
        "() => canvas.getContext('2d').getImageData(0, 0, 280, 280).data.filter((value, at) => at % 4 == 0 && value > 127).length"
    )
    ink = page.evaluate(light)
    white_on_black = page.locator("#seen").get_attribute("src") or ""
    page.get_by_label("dark on white").check()
    assert page.evaluate(light) == 280 * 280 - ink
    expect(page.locator("#seen")).not_to_have_attribute("src", white_on_black)
    stroke(page)
    page.get_by_role("button", name="Clear").click()  # before the stroke is sent, which waits for the next
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#model").dispatch_event("change")
    expect(page.locator("#empty")).to_be_visible()
    page.wait_for_timeout(500)
    expect(page.locator("#answer")).to_be_hidden()
    assert not [url for url in asked if "classify" in url]


DROP = """() => {
    const dropped = new DataTransfer();
    dropped.items.add(window.held);
    document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: dropped, bubbles: true, cancelable: true}));
}"""


def test_a_picture_may_be_dropped_anywhere_and_its_file_change_afterwards(page: Page, digits: Dataset, tmp_path: Path) -> None:
    """What is held back from the page's own listeners is a file on disk, as the browser gives it."""
    file = tmp_path / "digit.png"
    file.write_bytes(digits.test.encoded(0))
    page.evaluate(
        "() => window.addEventListener('change', event => { window.held = event.target.files[0]; event.stopPropagation(); },"
        " {capture: true, once: true})"
    )
    page.locator("#file").set_input_files(file)
    page.get_by_role("button", name="Draw").click()
    page.evaluate(DROP)
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[0]])
    expect(page.locator("#preview")).to_be_visible()
    file.write_bytes(b"something else, and longer")
    answer = page.locator("#seen").get_attribute("src") or ""
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="Picture").click()
    expect(page.locator("#seen")).to_have_attribute("src", answer)
    expect(page.locator("#answer")).to_be_visible()
    page.evaluate(DROP)
    expect(page.locator("#error")).to_contain_text("cannot be read")
    expect(page.locator("#preview")).to_be_hidden()


def test_a_file_above_the_limit_is_said_to_be_too_large(browser: Browser, repository: Path, serve: Serve) -> None:
    server = serve(repository, max_message_bytes=1 << 20)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.http_port}/")
    expect(page.locator("#model")).to_be_enabled(timeout=20_000)
    send(page, "large.png", bytes(2 << 20))
    expect(page.locator("#error")).to_have_text("the body is too large: at most 1048576 bytes are accepted")
    context.close()


def test_it_can_be_used_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("button", name="Draw").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("ArrowRight")
    ring, canvas = page.locator("#ring").bounding_box(), page.locator("#canvas").bounding_box()
    assert ring is not None
    assert canvas is not None
    assert ring["x"] + ring["width"] / 2 - canvas["x"] == pytest.approx(148, abs=2)  # it is seen where the stroke will begin
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
    for name in ("Latency by phase, ms", "Images a second", "Images a batch", "Waiting, in hand"):
        expect(page.get_by_role("img", name=name)).to_be_visible()


def test_the_last_ten_seconds_are_seconds_and_not_looks(page: Page, server: Server, digits: Dataset) -> None:
    page.clock.install()
    inference = page.locator("#phase-table tbody tr").nth(2).locator("td").nth(4)
    expect(inference).to_have_text("0")
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        for _ in range(30):
            client.classify([digits.test.encoded(0)], "digits")
    expect(inference).to_have_text("30")
    page.clock.fast_forward(30_000)  # as for a tab that was in the background
    expect(inference).to_have_text("0")


def test_a_pause_stops_the_charts_and_nothing_else(page: Page, server: Server, repository: Path, model_file: Path) -> None:
    table = page.locator("#phase-table")
    page.get_by_role("button", name="Pause").click()
    before = table.inner_text()
    put(model_file, repository, "more", 1)
    expect(page.locator("#model-cards h3")).to_have_text(["digits", "more"], timeout=20_000)
    page.locator("#live-model").select_option("digits")
    assert table.inner_text() == before
    server.stop()
    expect(page.locator("#state")).to_have_text("not reachable", timeout=20_000)
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


def test_a_walkthrough_with_a_long_label_fits_a_phone(browser: Browser, model_file: Path, digits: Dataset, tmp_path: Path) -> None:
    found = subject.load_subject(model_file)
    found = dataclasses.replace(found, labels=tuple(120 * label for label in found.labels))
    pixels = digits.test.pixels[0]
    web_page.write(network_page.build_page(found, pixels, pixels.repeat(3, 2), "digit.png"), tmp_path)
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((tmp_path / web_page.PAGE).as_uri())
    expect(page.locator("h1")).to_contain_text("digit.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_a_server_that_goes_away_is_said_to_be_gone(page: Page, server: Server) -> None:
    server.stop()
    expect(page.locator("#state")).to_have_text("not reachable", timeout=20_000)
    page.context.close()


def test_a_token_is_asked_for_and_kept_in_the_tab(
    browser: Browser, repository: Path, serve: Serve, digits: Dataset, tmp_path: Path
) -> None:
    server = serve(repository, auth=write_auth_file(tmp_path / "auth.toml"))
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.http_port}/")
    expect(page.locator("#token-note")).to_have_text("This server wants to know who asks.")
    expect(page.locator("#state")).to_have_text("ready")
    for name, note in (("nobody", "does not know this token"), ("read", "does not have the right 'metrics'")):
        page.locator("#token-text").fill(token(name))
        page.locator("#token-form button").click()
        expect(page.locator("#token-note")).to_contain_text(note, timeout=20_000)
    expect(page.locator("#model")).to_be_enabled()
    page.evaluate("sessionStorage.setItem('convoy-token', 'convoy_admin')")
    page.reload()
    expect(page.locator("#model")).to_be_enabled(timeout=20_000)
    expect(page.locator("#token")).to_be_hidden()
    send(page, "digit.png", digits.test.encoded(0))
    expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[0]])
    assert page.evaluate("localStorage.length") == 0
    page.close()


PROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen cats
    bind 127.0.0.1:{port}
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    http-request set-header Host upstream.internal
    {path_rule}
    server convoy 127.0.0.1:{http_port}
"""


@pytest.mark.parametrize(
    "path_rule", ["", r"http-request replace-path /convoy(/.*) \1"], ids=["prefix passed on", "prefix cut off"]
)
def test_the_page_works_behind_a_proxy_that_rewrites_the_host(
    browser: Browser, repository: Path, serve: Serve, digits: Dataset, tmp_path: Path, path_rule: str
) -> None:
    """Over plain HTTP under a name: browsers send no Sec-Fetch-Site there."""
    haproxy = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert haproxy is not None, "haproxy is not installed: apt-get install haproxy"
    server = serve(repository, root_path="/convoy", trusted_proxies=("127.0.0.1",), allowed_hosts=("cats.example",))
    [port] = balanced.free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(PROXY.format(port=port, path_rule=path_rule, http_port=server.http_port))
    with balanced.running([haproxy, "-db", "-f", config], port, tmp_path / "haproxy.log"):
        page = browser.new_page()
        page.goto(f"http://cats.example:{port}/convoy/")
        expect(page.locator("#state")).to_have_text("ready", timeout=20_000)
        expect(page.locator("#model")).to_be_enabled()
        send(page, "digit.png", digits.test.encoded(0))
        expect(page.locator("#best")).to_have_text(digits.labels[digits.test.labels[0]], timeout=20_000)
        expect(page.locator("#phase-table tbody tr")).to_have_count(4)
        page.close()


def test_a_page_of_an_allowed_origin_reads_the_answer(
    browser: Browser, repository: Path, serve: Serve, digits: Dataset, tmp_path: Path
) -> None:
    """A page of another web server asks: for the browser, which asks first, these are two origins."""
    (tmp_path / "index.html").write_text("<!doctype html><title>cats</title>")
    other = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=other.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{other.server_port}"
    answering = serve(repository, allowed_origins=(origin,))
    page = browser.new_page()
    page.goto(f"{origin}/index.html")
    ask = """async ([url, picture]) => {
        const headers = {'Inference-Header-Content-Length': '0', 'Content-Type': 'image/png'};
        const response = await fetch(url, {method: 'POST', headers, body: Uint8Array.from(picture)});
        return [response.status, (await response.json()).model_name];
    }"""
    url = f"http://127.0.0.1:{answering.http_port}/v2/models/digits/infer"
    try:
        assert page.evaluate(ask, [url, list(digits.test.encoded(0))]) == [200, "digits"]
    finally:
        page.close()
        other.shutdown()
        other.server_close()
