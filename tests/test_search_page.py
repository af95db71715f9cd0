"""The search page in a browser: what is shown of answers, and that nothing else happens."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from endpoint import GENERATION
from playwright.sync_api import Browser, Page, expect, sync_playwright
from searched import SCRIPT, encoder_of, searched_index, searcher_of
from small_index import History

from actors.encoder import Encoder
from pipelines.endpoint.api import create_api
from pipelines.endpoint.config import parse_endpoint_config
from pipelines.endpoint.search_service import SearchService
from pipelines.endpoint.service import Service
from pipelines.search.searcher import Searcher

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return searched_index(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def encoder(history: History) -> Encoder:
    return encoder_of(history)


@pytest.fixture(scope="module")
def searcher(history: History, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return searcher_of(history.index, tmp_path_factory.mktemp("files"))


@contextmanager
def served(
    history: History, encoder: Encoder, searcher: Searcher | None, *keys: str
) -> Iterator[str]:
    """The URL of an endpoint, in a thread."""
    chunk = history.config.chunk.model_dump()
    config = parse_endpoint_config({"model": {"name": "builtin:tiny-m3"}, "chunk": chunk})
    service = Service(encoder, config, config.chunk)
    search = SearchService(service, searcher, GENERATION) if searcher else None

    async def collect() -> Mapping[str, Any]:
        return {}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free.listen()
        settings = uvicorn.Config(
            create_api(service, keys, collect, search), log_level="warning", ws="none"
        )
        server = uvicorn.Server(settings)

        async def run() -> None:
            await service.warm_up()
            await server.serve([free])

        thread = threading.Thread(target=asyncio.run, args=[run()])
        thread.start()
        try:
            yield "http://{}:{}".format(*free.getsockname())
        finally:
            server.should_exit = True
            thread.join(20)
            service.close()
            if search:
                search.close()


@pytest.fixture(scope="module")
def url(history: History, encoder: Encoder, searcher: Searcher) -> Iterator[str]:
    with served(history, encoder, searcher) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, origin: str, path: str = "/", **options: Any) -> Iterator[Page]:
    """A page; at the end nothing else was asked than its origin, and no script failed."""
    page = browser.new_page(**options)
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else 0)
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((origin, "data:")) else wrong.append(request.url)
        ),
    )
    try:
        page.goto(origin + path)
        yield page
        # What the endpoint refuses on purpose is a console's error too.
        assert not [text for text in wrong if "Failed to load resource" not in text]
    finally:
        page.close()


def test_page_shows_what_a_typed_query_finds(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        expect(page.locator("#facts")).to_contain_text("7 passages · generation 7")
        expect(page.locator("#q")).to_be_focused()
        page.keyboard.type("the stone bridge")
        page.keyboard.press("Enter")
        expect(page.locator(".hit")).to_have_count(7)
        expect(page.locator("#status")).to_contain_text("7 passages by hybrid")
        assert "q=the+stone+bridge" in page.url
        first = page.locator(".hit").first
        parts = [text.split() for text in first.locator(".part").all_inner_texts()]
        assert [name for name, _ in parts] == ["dense", "sparse", "colbert"]
        mean = sum(float(number) for _, number in parts) / 3
        assert float(first.locator(".sum").inner_text().split()[0]) == pytest.approx(mean, abs=2e-3)
        expect(page.locator("#query-words .word").first).to_be_visible()
        expect(page.locator(".hit .words .word").first).to_be_visible()
        assert page.locator(".text [class^=s]").count() > 3
        assert page.locator(".text .shared").count() > 0


def test_page_shows_texts_whole_and_as_text(browser: Browser, url: str, history: History) -> None:
    texts = {row["doc_id"]: row for row in history.index.to_table().to_pylist()}
    with opened(browser, url, "/?q=a+bridge+of+markup") as page:
        expect(page.locator(".hit")).to_have_count(7)
        for node in page.locator(".hit").all():
            doc_id = (node.locator(".id").inner_text()).partition("#")[0]
            assert node.locator(".text").text_content() == texts[doc_id]["text"]
        assert page.locator(".text img, .text script").count() == 0
        assert page.evaluate("window.harmed") is None
        shown = page.locator(".text", has_text="<script>")
        assert shown.text_content() == SCRIPT
        right = page.locator(".text", has_text="الجسر")
        assert right.evaluate("node => getComputedStyle(node).direction") == "rtl"


def test_page_marks_the_best_token_of_each_passage(browser: Browser, url: str) -> None:
    with opened(browser, url, "/?q=stone+東京") as page:
        buttons = page.locator("#tokens button")
        expect(buttons.first).to_be_visible()
        assert "東京" in buttons.all_inner_texts()
        assert page.locator(".best").count() == 0
        buttons.first.hover()
        marked = page.locator(".text .best").count()
        assert marked >= 1  # in some passages it is of the title, or of the end
        buttons.first.click()
        expect(buttons.first).to_have_attribute("aria-pressed", "true")
        page.mouse.move(0, 0)
        assert page.locator(".text .best").count() == marked
        page.keyboard.press("Enter")
        expect(buttons.first).to_have_attribute("aria-pressed", "false")


def test_page_mode_is_switched_and_kept_in_the_address(browser: Browser, url: str) -> None:
    with opened(browser, url, "/?q=bridge") as page:
        expect(page.locator("#status")).to_contain_text("by hybrid")
        page.get_by_label("sparse", exact=True).check(force=True)
        expect(page.locator("#status")).to_contain_text("by sparse")
        assert "mode=sparse" in page.url
        page.locator("#by").select_option("document")
        expect(page.locator("#status")).to_contain_text("document")
        page.locator("#top").select_option("50")  # too many to be explained
        expect(page.locator("#seen")).to_be_hidden()
        page.go_back()
        page.go_back()
        expect(page.locator("#status")).to_contain_text("passages by sparse")
        page.go_back()
        expect(page.locator("#status")).to_contain_text("by hybrid")
        page.goto(f"{url}/?q=qqqq&mode=sparse")
        expect(page.locator("#status")).to_contain_text("Nothing found")
        expect(page.locator(".hit")).to_have_count(0)


@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_its_window(browser: Browser, url: str, width: int) -> None:
    viewport = {"width": width, "height": 740}
    with opened(browser, url, "/?q=the+old+bridge", viewport=viewport) as page:
        expect(page.locator(".hit")).to_have_count(7)
        for node in ("document.documentElement", "document.body"):
            assert page.evaluate(f"{node}.scrollWidth") <= width
        beyond = "nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth).length"
        assert page.locator("main *:visible").evaluate_all(beyond) == 0


def test_page_is_dark_where_the_reader_is(browser: Browser, url: str) -> None:
    found = {}
    for scheme in ("light", "dark"):
        with opened(browser, url, "/?q=bridge", color_scheme=scheme) as page:
            expect(page.locator(".hit")).to_have_count(7)
            colours = (
                "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
            )
            found[scheme] = page.locator("body").evaluate(colours)
    assert found["light"][0] != found["dark"][0]
    assert found["light"][1] != found["dark"][1]


def test_page_asks_for_a_key_where_there_is_one_and_keeps_it_for_the_tab(
    history: History, encoder: Encoder, searcher: Searcher, browser: Browser
) -> None:
    with (
        served(history, encoder, searcher, "secret") as url,
        opened(browser, url, "/?q=bridge") as page,
    ):
        expect(page.locator("#secret")).to_be_visible()
        page.locator("#secret").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("does not accept this key")
        page.locator("#secret").fill("secret")
        page.keyboard.press("Enter")
        expect(page.locator(".hit")).to_have_count(7)
        expect(page.locator("#key")).to_be_hidden()
        page.reload()
        expect(page.locator(".hit")).to_have_count(7)


def test_page_without_search_says_how_to_switch_it_on(
    history: History, encoder: Encoder, browser: Browser
) -> None:
    with served(history, encoder, None) as url, opened(browser, url) as page:
        expect(page.locator("#off")).to_contain_text("search: {}")
        expect(page.locator("#q")).to_be_disabled()


def test_page_says_what_went_wrong_and_asks_again(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        expect(page.locator("#facts")).to_contain_text("passages")
        error = '{"error": {"code": "shard_down", "message": "gone"}}'
        page.route(
            "**/search",
            lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, body=error),
            times=1,
        )
        page.locator("#q").fill("bridge")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Retrying in 1 s")
        expect(page.locator(".hit")).to_have_count(7)
        page.route("**/search", lambda route: route.abort(), times=1)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("does not answer")
        expect(page.locator(".hit")).to_have_count(0)
