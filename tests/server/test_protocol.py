"""A request's head is bounded, whoever sends it; what is whole gets through."""

import json
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import pytest

from server.app import create_app
from server.protocol import HEAD_MAX
from server.settings import Settings
from tests.server.conftest import serving
from tests.server.memory import MemoryEngine


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(), MemoryEngine())) as url:
        yield url


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=10)) as connection:
        yield connection


def answered(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset counts as that."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


ENDLESS = {
    "headers": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n", b"x-more: " + b"a" * 1000 + b"\r\n"),
    "one header": (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: ", b"a" * 1000),
    "request line": (b"GET /healthz?", b"a" * 1000),
    "trailers": (
        b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        b"x-more: " + b"a" * 1000 + b"\r\n",
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_is_cut_off(url: str, what: str) -> None:
    begin, more = ENDLESS[what]
    with connected(url) as connection:
        connection.sendall(begin)
        sent = 0
        try:
            while sent < 100 * HEAD_MAX:
                connection.sendall(more)
                sent += len(more)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 100 * HEAD_MAX, "the server went on reading"


def test_it_says_why(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: ")
        for _ in range(100):
            connection.sendall(b"a" * 1000)
            if select.select([connection], [], [], 0.005)[0]:
                break
        head, _, body = answered(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["type"] == "urn:croupier:problem:headers-too-large"


def test_requests_one_after_another_and_large_bodies_get_through(url: str) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"
    body = b'{"policy": "' + b"a" * (8 * HEAD_MAX) + b'"}'
    post = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    end = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with connected(url) as connection:
        connection.sendall(ask * 10 + post % len(body) + body + ask * 10 + end)
        found = answered(connection)
    assert found.count(b"HTTP/1.1 200 OK") == 21
    assert found.count(b"HTTP/1.1 422 ") == 1
