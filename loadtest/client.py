"""HTTP/1.1 over asyncio, as cheap as Python allows: the load generator shares its cores with the server it measures.

What a connection holds: a transport, an httptools parser, the answer being read (status, body parts, retry_after_s)
and whom to tell when it is whole. One request is outstanding per connection, so an answer needs no number.

`Wire` is the protocol with callbacks (the open-loop driver); `Connection` awaits one answer (the simulated users).
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools
import msgspec


class Unreachable(ConnectionError):
    """The server could not be connected to; nothing was sent."""


class Lost(Unreachable):
    """The request was sent, and no answer came: it may have been carried out, or not."""


class Address(NamedTuple):
    """Where the server listens, from a URL such as `http://127.0.0.1:8000`.

    >>> Address.of("http://127.0.0.1:8000/")
    Address(host='127.0.0.1', port=8000, tls=False, base='')
    """

    host: str
    port: int
    tls: bool
    base: str

    @classmethod
    def of(cls, url: str) -> "Address":
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {url!r}: give a whole address such as http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """The bytes of one request, ready to be written as often as wanted."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"host: {host}:{self.port}"]
        if body or method in ("POST", "PUT", "PATCH"):
            lines += [f"content-type: {content_type}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def connect(self, factory: Callable[[], "Wire"]) -> "Wire":
        """A connected wire; `Unreachable` when nobody listens."""
        loop = asyncio.get_running_loop()
        try:
            context = ssl.create_default_context() if self.tls else None
            _, wire = await loop.create_connection(factory, self.host, self.port, ssl=context)
        except OSError as e:
            raise Unreachable(f"no connection to {self.host}:{self.port}: {e}") from e
        return wire


class Answer(NamedTuple):
    """A whole response. `retry_after_s` is the header's number, or None."""

    status: int
    body: bytes
    retry_after_s: float | None = None

    def json(self) -> object:
        return msgspec.json.decode(self.body)


class Wire(asyncio.Protocol):
    """One connection: `answered(wire, answer)` after each response, `lost(wire)` once, when it closes."""

    __slots__ = ("_answered", "_body", "_lost", "_parser", "_retry_after_s", "open", "tag", "transport")

    transport: asyncio.Transport

    def __init__(self, answered: Callable[["Wire", Answer], None], lost: Callable[["Wire"], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._retry_after_s: float | None = None
        self.tag = -1  # the driver's own: number of the request that is out, or -1
        self.open = False

    def send(self, request: bytes, tag: int = 0) -> None:
        self.tag = tag
        self.transport.write(request)

    def close(self) -> None:
        if self.open:
            self.transport.close()

    # asyncio calls these.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()  # not HTTP: the same to a client as a lost connection

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self.open = False
        self._lost(self)

    # httptools calls these.
    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            try:
                self._retry_after_s = float(value)
            except ValueError:
                self._retry_after_s = None

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue: the answer itself is still to come
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        answer = Answer(status, body, self._retry_after_s)
        self._body, self._retry_after_s = [], None
        if not self._parser.should_keep_alive():
            self.open = False  # the driver sees it at once, before the socket has closed
            self.transport.close()
        self._answered(self, answer)


class Connection:
    """One keep-alive connection to await answers on; it connects on the first request and again after a loss.

    It repeats nothing by itself: whether a request may be sent twice is for the caller to know.
    """

    def __init__(self, address: Address, headers: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.headers = dict(headers or {})
        self._wire: Wire | None = None
        self._waiting: asyncio.Future[Answer] | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout_s: float = 10.0,
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request and return the answer, whatever its status; raises `Unreachable` or `Lost`."""
        data = self.address.request(method, path, body, self.headers, content_type)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if self._wire is None or not self._wire.open:
                    self._wire = await self.address.connect(lambda: Wire(self._answered, self._lost))
                self._waiting = loop.create_future()
                self._wire.send(data)
                return await self._waiting
        except TimeoutError:
            if self._waiting is None:
                raise Unreachable(f"no connection to {self.address.host} within {timeout_s:g} s") from None
            raise Lost(f"{method} {path}: no answer within {timeout_s:g} s") from None
        finally:
            if self._waiting is not None and not (self._waiting.done() and not self._waiting.cancelled()):
                self.close()  # an answer that comes now would be taken for the next request's
            self._waiting = None

    @property
    def local_port(self) -> int | None:
        """Our end's port, by which the server's end can be told apart; None when not connected."""
        if self._wire is None or not self._wire.open:
            return None
        port: int = self._wire.transport.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _answered(self, wire: Wire, answer: Answer) -> None:
        if wire is self._wire and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def _lost(self, wire: Wire) -> None:
        if wire is self._wire and self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Lost("the server closed the connection before it answered"))
