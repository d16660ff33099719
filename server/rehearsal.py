"""Whether the hot path works with the installed uvicorn: a few requests through it, without a socket, at start."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from server.hot import HotProtocol
from server.protocol import Protocol
from server.routes.common import Service
from server.schemas import ACCEPTED, Decision, FeedbackRow, RecommendRequest, Verdict
from server.settings import Settings

log = logging.getLogger(__name__)
_TURNS = 50  # of the loop, which is more than any of this takes

_HEAD = b"%b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_ASK = b'{"policy":"p"}'
_REWARD = b'{"decision_id":"d","item":"i","reward":1}'
_RECOMMEND = _HEAD % (b"POST /v1/recommend", len(_ASK)) + _ASK
_FEEDBACK = _HEAD % (b"POST /v1/feedback", len(_REWARD)) + _REWARD
_ORDINARY = _HEAD % (b"POST /v1/recommend?", len(_ASK)) + _ASK
_READS = (
    _RECOMMEND * 2,
    _ORDINARY + _RECOMMEND,  # what is pipelined behind one that waits is ordinary too
    _FEEDBACK + _RECOMMEND,
    _RECOMMEND[:-5],
    _RECOMMEND[-5:] + _RECOMMEND[:7],
    _RECOMMEND[7:],
)
_OK = b"HTTP/1.1 %d %b\r\nserver: x\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%b"
_DECISION = b'{"decision_id":"d","policy":"p","version":1,"items":[]}'
_VERDICT = b'{"results":[{"status":"accepted"}]}'
_DECIDED = _OK % (200, b"OK", len(_DECISION), _DECISION)
_TAKEN = _OK % (202, b"Accepted", len(_VERDICT), _VERDICT)
_ORDINARILY = b"HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n"
_ANSWERS = _DECIDED * 2 + _ORDINARILY * 2 + _TAKEN + _ORDINARILY + _DECIDED * 2


async def protocol_for(settings: Settings) -> type[Protocol]:
    """The protocol of a worker; a line in the log where the hot path is wanted and cannot be used."""
    if not settings.hot_path or settings.access_log:
        return Protocol
    why = await trouble()
    if why is None:
        return HotProtocol
    log.warning("The hot path is off: it does not fit uvicorn %s (%s). Answers are slower.", uvicorn.__version__, why)
    return Protocol


async def trouble() -> str | None:
    """What is wrong with the hot path on this uvicorn, None where it works."""
    try:
        return await _rehearse()
    except Exception as error:  # whatever has changed
        return f"{type(error).__name__}: {error}"


async def _rehearse() -> str | None:
    service = Service(Settings(), _Engine())  # type: ignore[arg-type]
    app: Any = _App(service)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", proxy_headers=False)
    state = ServerState()
    state.default_headers = [(b"server", b"x")]
    protocol, transport = HotProtocol(config, state, {}), FakeTransport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for data in _READS:
        protocol.data_received(data)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
    found = bytes(transport.written)
    protocol.shutdown()
    closed = transport.closed
    protocol.connection_lost(None)
    if app.asked != 3:
        return f"{app.asked} of 8 requests went the ordinary way, and not 3"
    if found != _ANSWERS:
        return "the answers are not those of the ordinary way"
    if state.total_requests != 8 or state.tasks or state.connections or not closed:
        return "requests, tasks or connections are counted in another way"
    return None


class FakeTransport:
    """What uvicorn asks of a transport; keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def get_extra_info(self, name: str) -> None:
        del name

    def write(self, data: bytes) -> None:
        if not self.closed:
            self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _App:
    """Answers 204 the ordinary way."""

    def __init__(self, service: Service) -> None:
        self.state = SimpleNamespace(service=service)
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/recommend":
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
            self.asked += body == _ASK
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})


class _Engine:
    def recommend(self, query: RecommendRequest) -> Decision:
        return Decision("d", query.policy, 1, [])

    def answer(self, body: bytes) -> None:
        del body

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        return [ACCEPTED for _ in rows]

    def feed(self, row: FeedbackRow, done: Callable[[Verdict | Exception], None]) -> None:
        del row
        asyncio.get_running_loop().call_soon(done, ACCEPTED)

    def count_hot(self) -> None: ...

    def count(self, route: str, status: int, seconds: float) -> None:
        pass
