"""The pages, as a client fetches them and as a real browser shows them."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from test_openapi import a_document

from orchestrator import api as http
from orchestrator import openapi, web
from orchestrator.web.curl import curl

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DOCUMENT = a_document()
OPERATIONS = [
    (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]


async def ping(request: Request) -> Response:
    return JSONResponse({"ping": "pong"})


def an_app() -> Starlette:
    return Starlette(routes=[*web.routes(DOCUMENT), Route("/ping", ping)])


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(an_app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def reference(client: httpx2.AsyncClient) -> str:
    return (await client.get("/redoc")).text


async def test_the_document_is_served_as_it_is(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    assert answer.json() == DOCUMENT
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc", "/web/pages.css"])
async def test_what_the_client_has_is_not_sent_again(client: httpx2.AsyncClient, path: str) -> None:
    first = await client.get(path)
    again = await client.get(path, headers={"If-None-Match": f'"old", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    changed = await client.get(path, headers={"If-None-Match": '"old"'})
    assert changed.status_code == 200


async def test_a_file_is_packed_only_for_who_can_unpack_it(client: httpx2.AsyncClient) -> None:
    packed = await client.get("/redoc", headers={"Accept-Encoding": "gzip"})
    plain = await client.get("/redoc", headers={"Accept-Encoding": "identity"})
    refused = await client.get("/redoc", headers={"Accept-Encoding": "gzip;q=0"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) * 4 < int(plain.headers["content-length"])
    assert packed.text == plain.text == refused.text
    assert packed.headers["etag"] != plain.headers["etag"] == refused.headers["etag"]
    assert {packed.headers["vary"], plain.headers["vary"]} == {"Accept-Encoding"}


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_every_file_that_a_page_names_is_served(
    client: httpx2.AsyncClient, page: str
) -> None:
    text = (await client.get(page)).text
    named = re.findall(r'(?:src|href)="(/(?:web|docs/assets)/[^"]+)"', text)
    assert named
    for path in named:
        assert (await client.get(path)).status_code == 200


async def test_a_file_with_its_version_in_the_path_is_kept_for_ever(
    client: httpx2.AsyncClient,
) -> None:
    answer = await client.get(f"{web.ASSETS}/swagger-ui.css")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert re.search(r"/swagger-ui-\d+\.\d+\.\d+$", web.ASSETS)


@pytest.mark.parametrize(
    "name",
    ["__init__.py", "docs.html", "../errors.py", "..%2ferrors.py", "%2e%2e/%2e%2e/setup.cfg", ""],
)
async def test_no_path_reaches_a_file_that_is_not_meant_to_be_served(
    client: httpx2.AsyncClient, name: str
) -> None:
    for folder in ("/web", web.ASSETS, "/docs/assets"):
        assert (await client.get(f"{folder}/{name}")).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/web/icon.svg"])
async def test_no_page_may_load_anything_from_elsewhere(
    client: httpx2.AsyncClient, path: str
) -> None:
    policy = (await client.get(path)).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; frame-ancestors 'none'; base-uri 'none'")
    sources = {word for rule in policy.split("; ") for word in rule.split()[1:]}
    assert sources <= {"'none'", "'self'", "data:"}


async def test_the_reference_has_no_script(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/redoc")
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert " style=" not in answer.text


async def test_a_browser_that_asks_for_an_icon_unread_gets_none(
    client: httpx2.AsyncClient,
) -> None:
    assert (await client.get("/favicon.ico")).status_code == 204


async def test_every_operation_is_in_the_reference(client: httpx2.AsyncClient) -> None:
    text = await reference(client)
    for method, path, operation in OPERATIONS:
        article = text.partition(f'id="{operation["operationId"]}"')[2].partition("</article>")[0]
        assert operation["summary"] in article
        assert f"<code>{path}</code>" in article
        assert f">{method}</span>" in article


def test_a_call_sends_one_body_whatever_kinds_its_route_takes() -> None:
    document = openapi.document("t", "1", "t", http.ENDPOINTS)
    log_in = document["paths"]["/auth/token"]["post"]
    assert len(log_in["requestBody"]["content"]) == 2
    line = curl("post", "/auth/token", log_in)
    assert line.count(" -d ") == line.count("Content-Type") == 1
    assert "application/json" in line and '"username": "ann"' in line


async def test_every_link_inside_the_reference_leads_somewhere(
    client: httpx2.AsyncClient,
) -> None:
    text = await reference(client)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


async def test_every_error_code_has_its_place_and_a_way_out(client: httpx2.AsyncClient) -> None:
    text = await reference(client)
    for kind in openapi.catalogue():
        article = text.partition(f'id="error-{kind.code}"')[2].partition("</article>")[0]
        assert all(f">{status}<" in article for status in kind.statuses)
        assert 'class="remedy"' in article


async def test_a_type_inside_itself_is_unfolded_once(client: httpx2.AsyncClient) -> None:
    text = await reference(client)
    article = text.partition('id="plant_tree"')[2].partition("</article>")[0]
    assert article.count("<code>branches</code>") == 1


async def test_what_a_description_says_is_text_and_never_markup(
    client: httpx2.AsyncClient,
) -> None:
    text = await reference(client)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<code>name</code>" in text


async def test_headings_go_down_one_level_at_a_time(client: httpx2.AsyncClient) -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)", await reference(client))]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


class Browser:
    """A headless Chromium, spoken to over its debugging pipe, that notes all it complains of."""

    def __init__(self, folder: str) -> None:
        inward, self.to = os.pipe()
        self.back, outward = os.pipe()
        pipes = ["bash", "-c", f'exec "$@" 3<&{inward} 4>&{outward}', "-"]
        options = (
            "--headless --no-sandbox --disable-gpu --disable-background-networking"
            " --remote-debugging-pipe"
        )
        self.process = subprocess.Popen(
            [*pipes, str(CHROMIUM), *options.split(), f"--user-data-dir={folder}"],
            pass_fds=(inward, outward),
            stderr=subprocess.DEVNULL,
        )
        os.close(inward)
        os.close(outward)
        self.buffer = b""
        self.count = 0
        self.session = ""
        self.events: list[dict[str, Any]] = []

    def open(self, url: str, width: int = 1280, scheme: str = "light") -> None:
        self.session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=media)
        self.ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.hear())

    def look(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        found = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        self.look(
            f"""new Promise(done => {{
              const look = () => ({condition}) && done();
              new MutationObserver(look).observe(document, {{
                attributes: true, childList: true, subtree: true }});
              look();
            }})"""
        )

    def complaints(self) -> list[str]:
        """What scripts print or throw, and what the browser says of loading and of the policy."""
        found: list[str] = []
        for event in self.events:
            match event:
                case {"method": "Log.entryAdded", "params": {"entry": entry}}:
                    found.append(f"{entry['level']}: {entry['text']}")
                case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": thrown}}:
                    found.append(json.dumps(thrown))
                case {"method": "Runtime.consoleAPICalled", "params": {"type": kind, "args": args}}:
                    words = [str(one.get("value", one.get("description"))) for one in args]
                    found.append(f"{kind}: {' '.join(words)}")
        return found

    def hosts(self) -> set[str]:
        """Where requests went."""
        urls = [
            urlsplit(event["params"]["request"]["url"])
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {url.netloc for url in urls if url.scheme != "data"}

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self.hear()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def hear(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], 20)
            assert ready, "Chromium has said nothing for 20 s"
            self.buffer += os.read(self.back, 1 << 20)
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def close(self) -> None:
        self.session = ""
        self.ask("Browser.close")
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The pages on a free port; connections wait in the socket until the server is up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(an_app(), log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield "http://{}:{}".format(*listening.getsockname())
        server.should_exit = True
        thread.join(20)


def all_shown(browser: Browser) -> None:
    browser.wait(f"document.querySelectorAll('.opblock').length === {len(OPERATIONS)}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_interactive_page_shows_every_operation_and_asks_no_other_host(
    browser: Browser, site: str, scheme: str
) -> None:
    browser.open(f"{site}/docs", scheme=scheme)
    all_shown(browser)
    shown = browser.look("[...document.querySelectorAll('.opblock-summary-path')].length")
    assert shown == len(OPERATIONS)
    assert browser.look("document.documentElement.className") == (
        "dark-mode" if scheme == "dark" else ""
    )
    assert browser.complaints() == []
    assert browser.hosts() == {urlsplit(site).netloc}


def test_the_interactive_page_opens_everything_without_a_complaint(
    browser: Browser, site: str
) -> None:
    browser.open(f"{site}/docs")
    all_shown(browser)
    browser.look("document.querySelectorAll('.opblock-summary-control').forEach(b => b.click())")
    browser.wait(f"document.querySelectorAll('.opblock-body').length === {len(OPERATIONS)}")
    assert browser.complaints() == []


def test_the_interactive_page_sends_a_request_and_shows_the_answer(
    browser: Browser, site: str
) -> None:
    browser.open(f"{site}/docs#/ping/ping")
    browser.wait("document.querySelector('.execute') && document.querySelector('.response')")
    browser.look("document.querySelector('.execute').click()")
    browser.wait("document.querySelector('.live-responses-table .response-col_description pre')")
    assert "pong" in browser.look("document.querySelector('.live-responses-table').textContent")
    assert browser.complaints() == []
    assert browser.hosts() == {urlsplit(site).netloc}


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (360, "light")])
def test_the_reference_fits_its_screen_without_a_complaint(
    browser: Browser, site: str, width: int, scheme: str
) -> None:
    browser.open(f"{site}/redoc", width=width, scheme=scheme)
    shown = browser.look("[...document.querySelectorAll('.operation')].map(one => one.id)")
    assert sorted(shown) == sorted(operation["operationId"] for _, _, operation in OPERATIONS)
    assert browser.look("document.scrollingElement.scrollWidth") <= width
    assert browser.complaints() == []
    assert browser.hosts() == {urlsplit(site).netloc}


def test_the_link_of_a_problem_leads_to_its_error(browser: Browser, site: str) -> None:
    browser.open(f"{site}/redoc#error-not_found")
    top = browser.look("document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= top < 900


def test_a_breach_of_the_policy_would_be_noticed(browser: Browser, site: str) -> None:
    browser.open(f"{site}/redoc")
    browser.look("document.body.setAttribute('style', 'color: red')")
    browser.look("new Image().src = 'http://elsewhere.invalid/'")
    assert len([one for one in browser.complaints() if "Content Security Policy" in one]) == 2
