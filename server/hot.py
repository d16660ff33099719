"""The two hot routes, answered inside uvicorn's protocol: no scope, no middleware, no task for a recommendation.

    bytes -> httptools -> url, headers -> hot? -- yes --> body -> the route's own function -> one write
                                             `--- no ---> uvicorn, as if nothing had happened

The same client sends the same head again and again. So a head that was found hot is remembered, byte for byte with the
size of its body, and a request that has it, alone in its read, needs no parser:

    bytes -> known head? -> body -> the route's own function -> one write

Hot is a POST with exactly the path of a hot route, over HTTP/1.1 on a connection that stays open, whose head alone has
nothing wrong, with a body of a known and usual size, while no request before it waits for its answer. All else goes to
the ordinary route, and so does a hot request whose body is not there yet when the connection or the server ends.
What a caller sees is the same, byte for byte (tests/server/test_hot.py).

This leans on more of uvicorn than it promises to keep, so a worker rehearses it at its start (server/rehearsal.py).
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from server import errors
from server.protocol import Protocol
from server.routes.common import JSON, Service, is_json, problem_response
from server.routes.feedback import ONE_ACCEPTED, feedback_bytes, problem_of, quick_row
from server.routes.recommend import recommend_bytes
from server.schemas import ACCEPTED, Verdict

log = logging.getLogger(__name__)
RECOMMEND, FEEDBACK = "/v1/recommend", "/v1/feedback"
ROLES = {RECOMMEND.encode(): "recommend", FEEDBACK.encode(): "feedback"}
BODY_MAX = 64 << 10  # from here on uvicorn holds back the sender
TURN_MAX = 16  # hot answers to one read; the ordinary route lets other connections in between
HEADS_MAX, HEAD_BYTES_MAX = 1024, 4096  # of what is remembered
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
        self._heads = self._service.heads
        self._between = True  # no part of a request has come since the last one
        self._first: bytes | None = None  # the read, while its first request, which it begins with, is not over
        self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self._between and (cycle is None or cycle.response_complete):
            end = data.find(b"\r\n\r\n") + 4
            known = self._heads.get(data[:end])
            if (
                known is not None
                and len(data) == end + known[1]
                and not self.flow.write_paused
                and not self.transport.is_closing()
            ):
                if self.timeout_keep_alive_task is not None:
                    self._unset_keepalive_if_required()
                self._unused = 0
                self._began = time.perf_counter()
                if known[0]:
                    self._recommend(data[end:])
                else:
                    self._feed_back(data[end:])
                return
            self._first = data
        self._turns = TURN_MAX
        super().data_received(data)
        self._first = None

    def on_message_begin(self) -> None:
        self._between = False
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
        first, self._first = self._first, None
        if self._parts is None:
            self._between = not self.parser.should_upgrade()
            super().on_message_complete()
            return
        self._between = True
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = None
        self._turns -= 1
        is_recommend = len(self.url) == len(RECOMMEND)
        if first is not None and self._caller is None:
            self._remember(first, is_recommend, body)
        if is_recommend:
            self._recommend(body)
        else:
            self._feed_back(body)

    def _remember(self, read: bytes, is_recommend: bool, body: bytes) -> None:
        end = read.find(b"\r\n\r\n") + 4
        if (
            end <= HEAD_BYTES_MAX and read[end:] == body
        ):  # the parser saw the same end of the head, and nothing after it
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[read[:end]] = is_recommend, len(body)

    def shutdown(self) -> None:
        self._give_up()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up()
        if self._timer is not None:
            self._timer.cancel()
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
            engine = service.engine
            answer = engine.answer(body) or recommend_bytes(engine, body)
        except Exception as error:
            status = self._refuse_with(error, RECOMMEND, keep_alive=True)
        else:
            status = 200
            self.transport.write(OK.of(self.server_state.default_headers, len(answer)) + answer)
        now = time.perf_counter()
        service.count(RECOMMEND, status, now - self._began, hot=True)
        self._end_of_answer(now)

    def _end_of_answer(self, now: float) -> None:
        """uvicorn's `on_response_complete` where nothing waits behind the request."""
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self._answered_at = now
        if self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _look_if_idle(self) -> None:
        """uvicorn's timer for connections nobody uses, but one that is looked at when it rings and not moved before."""
        self._timer = None
        if not self._between or self.timeout_keep_alive_task is not None:
            return  # after its answer there is another
        if self.cycle is not None and not self.cycle.response_complete:
            return
        left = self._answered_at + self.timeout_keep_alive - time.perf_counter()
        if left > 0.0:
            self._timer = self.loop.call_later(left, self._look_if_idle)
        else:
            self.timeout_keep_alive_handler()

    def _feed_back(self, body: bytes) -> None:
        self.cycle = cycle = Answering(self.transport)  # type: ignore[assignment]
        self.tasks.add(cycle)  # type: ignore[arg-type]
        row = quick_row(body) if self._caller is None else None
        if row is None:
            self._later(self._feedback(cycle, body, self._began, self._caller))
        else:
            self._service.engine.feed(row, partial(self._fed, cycle, self._began))

    def _later(self, answering: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(answering)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _fed(self, cycle: "Answering", began: float, outcome: Verdict | Exception) -> None:
        """The answer to one reward, with fewer steps where it is the usual one."""
        if outcome is ACCEPTED and cycle.keep_alive and not (cycle.disconnected or self.flow.write_paused):
            head = TAKEN.of(self.server_state.default_headers, len(ONE_ACCEPTED))
            self.transport.write(head + ONE_ACCEPTED)
            self._fed_back(cycle, 202, began)
        elif isinstance(outcome, Exception):
            self._later(self._answer(cycle, outcome, began))
        else:
            answer = ONE_ACCEPTED if outcome is ACCEPTED else problem_of(outcome)
            self._later(self._answer(cycle, answer, began))

    async def _feedback(self, cycle: "Answering", body: bytes, began: float, caller: str | None) -> None:
        service = self._service
        answer: bytes | Exception
        try:
            if caller is not None:
                service.limit.check(caller)
            answer = await feedback_bytes(service.engine, service.settings.max_batch, body)
        except Exception as error:
            answer = error
        except asyncio.CancelledError:  # the time to finish in is over
            self.transport.close()
            self._fed_back(cycle, 500, began)
            raise
        await self._answer(cycle, answer, began)

    async def _answer(self, cycle: "Answering", answer: bytes | Exception, began: float) -> None:
        status = 500
        try:
            if self.flow.write_paused and not cycle.disconnected:
                await self.flow.drain()
            if isinstance(answer, Exception):
                status = self._refuse_with(answer, FEEDBACK, cycle.keep_alive, cycle.disconnected)
            else:
                status = 202
                if cycle.keep_alive and not cycle.disconnected:
                    self.transport.write(TAKEN.of(self.server_state.default_headers, len(answer)) + answer)
                elif not cycle.disconnected:
                    self._write(Response(answer, status, media_type=JSON), keep_alive=False)
        finally:
            self._fed_back(cycle, status, began)

    def _fed_back(self, cycle: "Answering", status: int, began: float) -> None:
        self.tasks.discard(cycle)
        now = time.perf_counter()
        self._service.count(FEEDBACK, status, now - began, hot=True)
        cycle.response_complete = True
        if not cycle.disconnected:
            self._end_of_answer(now)

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
    """Stands where uvicorn has a cycle while a hot request waits: so that what is pipelined behind it is held back.

    And among its tasks, whose end a server that stops waits for; the time is over when they are cancelled.
    """

    __slots__ = ("_transport", "disconnected", "keep_alive", "more_body", "response_complete")
    message_event = asyncio.Event()  # nobody waits for it

    def __init__(self, transport: Any) -> None:
        self.response_complete = self.disconnected = self.more_body = False
        self.keep_alive = True
        self._transport = transport

    def cancel(self, msg: str | None = None) -> None:
        del msg
        self._transport.close()


def _lines(headers: Headers) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in headers])


class _Head:
    """The head of a usual answer: uvicorn makes its own headers anew once a second, and only then are they joined."""

    rest = b"%d\r\ncontent-type: " + JSON.encode() + b"\r\n\r\n"

    def __init__(self, status: int) -> None:
        self._status = STATUS_LINE[status]
        self._of: Headers | None = None
        self._begin = b""

    def of(self, default_headers: Headers, size: int) -> bytes:
        if default_headers is not self._of:
            self._of = default_headers
            self._begin = self._status + _lines(default_headers) + b"content-length: "
        return self._begin + self.rest % size


OK, TAKEN = _Head(200), _Head(202)
