"""The two hot routes, answered inside uvicorn's protocol: no scope, no middleware, no task for a recommendation.

    bytes -> httptools -> url, headers -> hot? -- yes --> body -> the route's own function -> one write
                                             `--- no ---> uvicorn, as if nothing had happened

Hot is a POST with exactly the path of a hot route, over HTTP/1.1 on a connection that stays open, whose head alone has
nothing wrong, with a body of a known and usual size, while no request before it waits for its answer. All else goes to
the ordinary route, and so does a hot request whose body is not there yet when the connection or the server ends.
What a caller sees is the same, byte for byte (tests/server/test_hot.py).

This leans on more of uvicorn than it promises to keep, so a worker rehearses it at its start (server/rehearsal.py).
"""

import asyncio
import logging
import time
from typing import Any

import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from server import errors
from server.protocol import Protocol
from server.routes.common import JSON, Service, is_json, problem_response
from server.routes.feedback import feedback_bytes
from server.routes.recommend import recommend_bytes

log = logging.getLogger(__name__)
RECOMMEND, FEEDBACK = "/v1/recommend", "/v1/feedback"
ROLES = {RECOMMEND.encode(): "recommend", FEEDBACK.encode(): "feedback"}
BODY_MAX = 64 << 10  # from here on uvicorn holds back the sender
TURN_MAX = 16  # hot answers to one read; the ordinary route lets other connections in between
Headers = list[tuple[bytes, bytes]]


class HotProtocol(Protocol):
    """uvicorn's protocol for an app of `create_app`, with the hot routes in it."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], **more: Any):
        super().__init__(config, server_state, app_state, **more)
        self._service: Service = config.app.state.service  # type: ignore[union-attr]
        able = not (config.access_log or self.root_path or self.limit_concurrency)
        self._roles = ROLES if able else {}
        self._body_max = min(BODY_MAX, self._service.settings.max_body_bytes)
        self._parts: list[bytes] | None = None  # of the body of the hot request that is being read
        self._caller: str | None = None  # whose rate limit it is, where there is one
        self._began = 0.0
        self._turns = 0

    def data_received(self, data: bytes) -> None:
        self._turns = TURN_MAX
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._unused = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        role = self._roles.get(self.url)
        if role is not None and self._is_hot(role):
            self._unused = 0
            self._parts = []
            self._began = time.perf_counter()
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        """What has been read of this request's head, to uvicorn."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers  # the list that the scope has
        super().on_headers_complete()

    def _is_hot(self, role: str) -> bool:
        parser, cycle = self.parser, self.cycle
        if (
            (cycle is not None and not cycle.response_complete)
            or not self._turns
            or self.flow.write_paused
            or self.expect_100_continue
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or self.transport.is_closing()
        ):
            return False
        found = dict(reversed(self.headers))  # the first of several counts
        size = found.get(b"content-length", b"")
        if not size.isdigit() or len(size) > 9 or int(size) > self._body_max or b"transfer-encoding" in found:
            return False
        return is_json(found.get(b"content-type", b"").decode("latin-1")) and self._is_let_in(role, found)

    def _is_let_in(self, role: str, headers: dict[bytes, bytes]) -> bool:
        service = self._service
        key = None
        if service.gate.keys:
            authorization = headers.get(b"authorization")
            try:
                key = service.gate.admit(None if authorization is None else authorization.decode("latin-1"), role)
            except errors.Problem:
                return False
        self._caller = None
        if service.limit.rate_per_s:
            if b"x-forwarded-for" in headers:  # uvicorn says whether that is believed
                return False
            self._caller = service.caller(key, self.client[0] if self.client else None)
        return True

    def on_body(self, body: bytes) -> None:
        if self._parts is None:
            super().on_body(body)
        else:
            self._unused = 0
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._parts is None:
            super().on_message_complete()
            return
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = None
        self._turns -= 1
        if len(self.url) == len(RECOMMEND):
            self._recommend(body)
        else:
            self.cycle = cycle = Answering()  # type: ignore[assignment]
            task = self.loop.create_task(self._feedback(cycle, body, self._began, self._caller))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    def shutdown(self) -> None:
        self._give_up()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        """The hot request whose body is not there yet becomes an ordinary one."""
        if self._parts is not None:
            parts, self._parts = self._parts, None
            self._hand_on()
            for part in parts:
                super().on_body(part)

    # ------------------------------------------------------------------------------------------------------ answers

    def _recommend(self, body: bytes) -> None:
        service = self._service
        try:
            if self._caller is not None:
                service.limit.check(self._caller)
            answer = recommend_bytes(service.engine, body)
        except Exception as error:
            status = self._refuse_with(error, RECOMMEND, keep_alive=True)
        else:
            status = 200
            self.transport.write(OK.begin(self.server_state.default_headers) + OK.rest % len(answer) + answer)
        service.count(RECOMMEND, status, time.perf_counter() - self._began)
        self.on_response_complete()

    async def _feedback(self, cycle: "Answering", body: bytes, began: float, caller: str | None) -> None:
        service, status = self._service, 500
        try:
            try:
                if caller is not None:
                    service.limit.check(caller)
                answer = await feedback_bytes(service.engine, service.settings.max_batch, body)
                await self._writable(cycle)
            except Exception as error:
                await self._writable(cycle)
                status = self._refuse_with(error, FEEDBACK, cycle.keep_alive, cycle.disconnected)
            else:
                status = 202
                if not cycle.disconnected:
                    self._write(Response(answer, status, media_type=JSON), cycle.keep_alive)
        except asyncio.CancelledError:  # the time to finish in is over
            self.transport.close()
            raise
        finally:
            service.count(FEEDBACK, status, time.perf_counter() - began)
            cycle.response_complete = True
        if not cycle.disconnected:
            self.on_response_complete()

    async def _writable(self, cycle: "Answering") -> None:
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()

    def _refuse_with(self, error: Exception, path: str, keep_alive: bool, disconnected: bool = False) -> int:
        """Answers with a problem; after a mistake of our own the connection ends. Returns the status."""
        problem = error if isinstance(error, errors.Problem) else errors.internal()
        if not disconnected:
            self._write(problem_response(problem), keep_alive)
        if problem is not error:
            log.error("POST %s failed", path, exc_info=error)
            self.transport.close()
        return problem.status

    def _write(self, response: Response, keep_alive: bool) -> None:
        """An answer that is not the usual one, as uvicorn writes it."""
        headers = _lines(self.server_state.default_headers) + _lines(response.raw_headers)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[response.status_code] + headers + end + bytes(response.body))
        if not keep_alive:
            self.transport.close()


class Answering:
    """Stands where uvicorn has a cycle while a hot request waits: so that what is pipelined behind it is held back."""

    def __init__(self) -> None:
        self.response_complete = self.disconnected = self.more_body = False
        self.keep_alive = True
        self.message_event = asyncio.Event()


def _lines(headers: Headers) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in headers])


class _Ok:
    """The head of a 200: uvicorn makes its own headers anew once a second, and only then are they joined again."""

    rest = b"%d\r\ncontent-type: " + JSON.encode() + b"\r\n\r\n"

    def __init__(self) -> None:
        self._of: Headers | None = None
        self._begin = b""

    def begin(self, default_headers: Headers) -> bytes:
        if default_headers is not self._of:
            self._of = default_headers
            self._begin = STATUS_LINE[200] + _lines(default_headers) + b"content-length: "
        return self._begin


OK = _Ok()
