"""The server on a port: the page in a browser, and clients that send what no library of clients would."""

import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import screenshots
from fake_engine import HOSTILE, LIMITS, FakeEngine

from retro_lab.errors import ConfigurationError
from retro_lab.serving.app import build_app
from retro_lab.serving.server import address, bound, build_server
from retro_lab.serving.worker import Worker

REQUIRED = "RETRO_LAB_REQUIRE_CHROMIUM"
"""Environment variable with which tests in a browser fail rather than being skipped."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server in a thread of this process."""
    engine = FakeEngine()
    worker = Worker(engine, LIMITS.max_waiting)
    with bound("127.0.0.1", 0) as taken:
        url, server = address(taken), build_server(build_app(engine, worker, LIMITS, []))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        yield url
        server.should_exit = True
        thread.join(20)
        worker.close()
    assert not thread.is_alive()


def test_the_page_in_a_browser(url: str) -> None:
    path = screenshots.chromium()
    if path is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(
            "not installed: Chromium (Debian's package chromium)"
        )
    requests: list[str] = []
    complaints: list[str] = []
    with screenshots.browser(path) as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(url)
        assert page.title() == "my run"

        page.get_by_label("Text to").fill("<b>Curie")
        page.get_by_label("Neighbors").fill("3")
        page.get_by_role("button", name="Search").click()
        page.locator("#answer h3").first.wait_for()
        assert page.inner_text(".row pre >> nth=0") == "<b>Curie"
        assert page.locator(".found section").count() == 3
        assert page.text_content(".found pre >> nth=2") == f"<b>Curie 2{HOSTILE}"
        assert "document of <b>Curie" in page.inner_text(".found .note >> nth=0")

        page.get_by_role("button", name="Generate").click()
        page.locator("#answer h3", has_text="Part 2").wait_for()
        assert page.text_content("#answer .row pre >> nth=0") == "<b>Curiee"
        assert page.text_content("#answer .new >> nth=0") == "e"
        assert page.text_content("#answer .new >> nth=1") == f"iruC>b<{HOSTILE}"
        assert page.text_content(".found pre") == f"{HOSTILE} more"
        assert "8 tokens (end)" in page.inner_text("#status")
        assert page.locator("#answer img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert complaints == []

        page.get_by_label("Text to").fill("poison")  # what goes wrong is told
        page.get_by_role("button", name="Search").click()
        page.locator("#status.error").wait_for()
        assert "The server failed" in page.inner_text("#status")
        assert page.get_by_role("button", name="Search").is_enabled()

        # A page of another site learns nothing and starts nothing.
        page.goto("about:blank")
        refused = "fetch(url, {method: 'POST', headers: {'Content-Type': kind}, body: '{\"query\": \"a\"}'})"
        for kind in ("application/json", "text/plain"):
            read = f"([url, kind]) => {refused}.then((answer) => answer.text()).catch(() => 'refused')"
            assert page.evaluate(read, [f"{url}/search", kind]) == "refused"
    assert requests
    assert all(request.startswith((url, "data:")) for request in requests)


def test_requests_of_eight_clients_are_all_answered(url: str) -> None:
    def ask(number: int) -> str:
        body = json.dumps({"query": f"text {number}"}).encode()
        request = urllib.request.Request(f"{url}/search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["results"]["passages"][0][0])

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(ask, range(200))) == [f"text {number} 0" for number in range(200)]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,  # the beginning of TLS
        b"\x00\r\n\r\n",
    ],
    ids=lambda raw: ascii(raw[:50]),
)
def test_what_no_client_sends_by_itself_is_refused(url: str, raw: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(raw)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"root:" not in answer
    with urllib.request.urlopen(f"{url}/health", timeout=20) as healthy:  # and the server goes on
        assert healthy.status == 200


def test_a_client_that_goes_away_costs_nobody_else_anything(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    for _ in range(20):
        socket.create_connection((host, int(port)), timeout=20).sendall(head)
    begun = time.monotonic()
    with urllib.request.urlopen(f"{url}/health", timeout=20) as healthy:
        assert healthy.status == 200
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70])
def test_an_address_that_is_not_there_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^task\.host={host} task\.port=0: [^\n]*\.$"):
        bound(host, 0)


def test_a_port_in_use_is_refused() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigurationError, match=rf"task\.port={port}: another program listens there; choose"):
            bound("127.0.0.1", port)
    bound("127.0.0.1", port).close()  # at once, as the one before is gone
