"""The hot path says, byte for byte, what the ordinary routes say; and where it cannot, it is not taken."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.app import create_app
from server.feedback import judge
from server.hot import BODY_MAX, HEAD_BYTES_MAX, HEADS_MAX, TURN_MAX, HotProtocol
from server.protocol import HEAD_MAX, Protocol
from server.rehearsal import FakeTransport, protocol_for, trouble
from server.schemas import Decision, FeedbackRow, RecommendRequest, Verdict
from server.settings import Settings
from streaming.control import PolicyPut, PolicySpec, RewardContract
from tests.server.host_parts import Host, random_graph

KEY = "0123456789abcdef"
DATE = [(b"date", b"Sun, 22 Nov 2026 22:00:00 GMT")]


class Parts:
    """The engine of one worker without its processes: two of the same seed decide the same."""

    def __init__(self, path: Path) -> None:
        self.host = Host(path, shards=2, seed=3)
        self.host.diag("films", random_graph(), clusters_per_user=3)
        self.host.follow(PolicyPut("empty", PolicySpec("diag-linucb")))
        self.host.follow(PolicyPut("news", PolicySpec("banker"), ["a", "b", "é"]))
        self.host.follow(PolicyPut("sums", PolicySpec("ucb1", reward=RewardContract(aggregation="sum")), ["a"]))
        self.host.recommender._stream = 7
        self.counted: list[tuple[str, int]] = []
        self.hot = 0
        self.crash = False

    def recommend(self, query: RecommendRequest) -> Decision:
        if self.crash:
            raise RuntimeError("our own mistake")
        return self.host.recommender.recommend(query)

    def answer(self, body: bytes) -> bytes | None:
        return None if self.crash else self.host.recommender.answer(body)

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        if self.crash:
            raise RuntimeError("our own mistake")
        verdicts, by_shard = judge(rows, self.host.views, self.host.row)
        if by_shard:
            for _ in range(5):
                await asyncio.sleep(0)
        return verdicts

    def feed(self, row: FeedbackRow, done: Callable[[Verdict | Exception], None]) -> None:
        async def say() -> None:
            try:
                (verdict,) = await self.feedback([row])
            except Exception as error:
                done(error)
            else:
                done(verdict)

        self.feeding = asyncio.get_running_loop().create_task(say())

    def count_hot(self) -> None:
        self.hot += 1

    def count(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.counted.append((route, status))

    def left(self) -> Any:
        """What requests have left behind."""
        return self.counted, self.host.outbox.gathered(), self.host.row.refusals(), list(self.host.row.words)


class Side:
    """One of the two servers that are compared."""

    def __init__(self, path: Path, protocol: type[Protocol], **chosen: Any) -> None:
        self.engine = Parts(path)
        self.app = create_app(Settings(**chosen), self.engine)  # type: ignore[arg-type]
        self.app.state.service.limit.clock_s = lambda: 0.0
        self.config = uvicorn.Config(self.app, log_config=None, access_log=False, ws="none", lifespan="off")
        self.state = ServerState()
        self.state.default_headers = DATE
        self.protocol = protocol

    def connect(self) -> tuple[Protocol, FakeTransport]:
        protocol, transport = self.protocol(self.config, self.state, {}), FakeTransport()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        return protocol, transport

    async def exchange(self, reads: Sequence[bytes]) -> tuple[bytes, bool]:
        """What is answered to these reads, and whether the server closes."""
        protocol, transport = self.connect()
        for data in reads:
            if transport.closed:
                break
            protocol.data_received(data)
            await self.settle()
        found = bytes(transport.written), transport.closed
        protocol.connection_lost(None)
        await self.settle()
        assert not self.state.tasks
        assert not self.state.connections
        return found

    async def settle(self) -> None:
        for _ in range(100):
            if not self.state.tasks:
                return
            await asyncio.sleep(0)


class Pair(NamedTuple):
    """The ordinary server, the hot one, and a loop for both."""

    ordinary: Side
    hot: Side
    loop: asyncio.AbstractEventLoop

    def same(self, reads: Sequence[bytes]) -> bytes:
        """The answer of both, which is the same, as is what it leaves."""
        expected, closes = self.loop.run_until_complete(self.ordinary.exchange(reads))
        found, closed = self.loop.run_until_complete(self.hot.exchange(reads))
        assert found == expected
        assert closed == closes
        assert self.hot.engine.left() == self.ordinary.engine.left()
        assert self.hot.state.total_requests == self.ordinary.state.total_requests
        return found


def pair_of(path: Path, **chosen: Any) -> Iterator[Pair]:
    loop = asyncio.new_event_loop()
    try:
        yield Pair(Side(path / "o", Protocol, **chosen), Side(path / "h", HotProtocol, **chosen), loop)
    finally:
        loop.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from pair_of(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    keys = Settings.load(flags={"api_keys": f"web:recommend:{KEY},all:recommend+feedback:{KEY}{KEY}"}).api_keys
    yield from pair_of(tmp_path_factory.mktemp("guarded"), api_keys=keys, max_body_bytes=1024)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Pair]:
    yield from pair_of(tmp_path)


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Pair]:
    yield from pair_of(tmp_path, rate_limit_per_s=1.0, rate_limit_burst=3.0)


def request(
    body: bytes,
    path: bytes = b"/v1/recommend",
    method: bytes = b"POST",
    version: bytes = b"1.1",
    headers: Sequence[bytes] = (b"content-type: application/json",),
    chunked: bool = False,
) -> bytes:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    if chunked:
        half = len(body) // 2
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
        body += b"0\r\n\r\n"
    lines = [b"%b %b HTTP/%b" % (method, path, version), b"Host: x", *headers, length]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


IDS = [f'item "{i}" é' for i in range(6)] + ["a", "b", "é", "nobody", ""]
POLICIES = st.sampled_from(["films", "films", "films", "news", "news", "sums", "empty", "nobody", ""])
NUMBERS = st.floats(-3, 3, width=32) | st.integers(-1, 300) | st.just(1e308)
USERS = st.fixed_dictionaries(
    {},
    optional={
        "embedding": st.lists(NUMBERS, min_size=4, max_size=4) | st.lists(NUMBERS, max_size=5),
        "clusters": st.lists(st.integers(0, 12), max_size=4),
        "weights": st.lists(NUMBERS, max_size=4),
        "segment": st.sampled_from(["all", "sport", "é", ""]),
    },
)
QUERIES = st.fixed_dictionaries(
    {"policy": POLICIES, "user": USERS | st.just({"embedding": [1, 0.5, -0.2, 0.1]}) | st.just({})},
    optional={
        "k": st.integers(0, 12) | st.sampled_from([41, 255, 256, 1.5, "2", None]),
        "mode": st.sampled_from(["explore", "exploit", "thompson", "guess"]),
        "exclude": st.lists(st.sampled_from(IDS), max_size=4),
        "candidates": st.lists(st.sampled_from(IDS), max_size=4) | st.none(),
        "extra": st.just(1),
    },
)
REWARDS = st.fixed_dictionaries(
    {
        "decision_id": st.integers(0, 7),  # one of `tokens`
        "item": st.sampled_from(IDS),
        "reward": NUMBERS | st.just("1"),
    },
    optional={"event_id": st.sampled_from(["e", "", None]), "extra": st.just(1)},
)
LITTER = st.sampled_from(
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 2000, b" " * 1025),
        *(b'{"policy": "\\ud800"}', b'{"policy": "news", "k": NaN}', b'{"feedback": []}', b'{"feedback": 1}'),
        b'{"policy": "films", "user": {"embedding": [1, NaN, 0, 0]}}',
    ]
)
JSON = b"content-type: application/json"
SPELLINGS: list[list[bytes]] = [
    [b"CONTENT-TYPE:Application/JSON ; charset=utf-8"],
    [b"content-type: text/plain"],
    [b"content-type: text/plain", JSON],
    [JSON, b"content-type: text/plain"],
    [],
    [JSON, b"Connection: close"],
    [JSON, b"Connection: keep-alive"],
    [JSON, b"Connection: upgrade", b"Upgrade: h2c"],
    [JSON, b"Expect: 100-continue"],
    [JSON, b"X-Forwarded-For: 1.2.3.4"],
    [JSON, b"X-Folded: a", b"Accept: */*", b"content-type: \xe9"],
]
HEADERS = st.just([JSON]) | st.sampled_from(SPELLINGS)
WHO: list[list[bytes]] = [
    [],
    [b"Authorization: Bearer " + KEY.encode()],
    [b"authorization: bearer  " + KEY.encode() * 2],
    [b"AUTHORIZATION: Bearer " + KEY.encode() * 2, b"Authorization: Bearer no"],
    [b"Authorization: Bearer no", b"Authorization: Bearer " + KEY.encode() * 2],
    [b"Authorization: Bearer \xe9\xff"],
    [b"Authorization: Basic eA=="],
    [b"Authorization:"],
]
AUTHORIZED = st.sampled_from(WHO)
METHODS = st.sampled_from([b"POST"] * 12 + [b"GET", b"PUT", b"HEAD", b"OPTIONS"])
ELSEWHERE = st.sampled_from(
    [b"/v1/recommend?", b"/v1/recommend?x=1", b"/v1/recommend/", b"/v1/%72ecommend", b"/v1/feedbac", b"/V1/feedback",
     b"http://x/v1/recommend", b"//v1/recommend", b"/v1/recommend#x", b"*"]
)  # fmt: skip


@pytest.fixture(scope="module")
def tokens(pair: Pair) -> list[str]:
    """Decision ids of both sides, and one that is none."""
    found = []
    for side in (pair.ordinary, pair.hot):
        made = [side.engine.host.recommend("films", user=user, k=3) for user in FILMS_USERS]
        made += [side.engine.host.recommend(policy, k=1) for policy in ("news", "sums")]
        found.append([decision.decision_id for decision in made])
    assert found[0] == found[1]
    return [*found[0], "x" * 8]


FILMS_USERS = [msgspec.convert({"clusters": [c]}, RecommendRequest.__annotations__["user"]) for c in range(5)]


@st.composite
def requests(draw: st.DrawFn, tokens: list[str], keys: bool) -> bytes:
    path = draw(st.sampled_from([b"/v1/recommend"] * 6 + [b"/v1/feedback"] * 5) | ELSEWHERE)
    if path == b"/v1/feedback":
        rows = draw(st.lists(REWARDS, min_size=1, max_size=3))
        named = [row | {"decision_id": tokens[row["decision_id"]]} for row in rows]
        body = msgspec.json.encode(named[0] if draw(st.booleans()) else {"feedback": named})
    else:
        body = msgspec.json.encode(draw(QUERIES))
    body = draw(st.just(body) | LITTER | st.just(body[:-1]) if draw(st.integers(0, 3)) == 0 else st.just(body))
    version = draw(st.sampled_from([b"1.1"] * 9 + [b"1.0"]))
    headers = draw(HEADERS) + (draw(AUTHORIZED) if keys else [])
    chunked = version == b"1.1" and draw(st.integers(0, 9)) == 0
    return request(body, path, draw(METHODS), version, headers, chunked)


def cut(data: bytes, places: Sequence[float]) -> list[bytes]:
    ends = sorted({round(place * len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


common = partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CUTS = st.just([]) | st.lists(st.floats(0, 1), max_size=4)


@common(max_examples=250)
@given(data=st.data())
def test_any_requests(pair: Pair, tokens: list[str], data: st.DataObject) -> None:
    sent = b"".join(data.draw(st.lists(requests(tokens, False), min_size=1, max_size=4)))
    pair.same(cut(sent, data.draw(CUTS)))


@common(max_examples=150)
@given(data=st.data())
def test_any_requests_each_in_a_read_of_its_own(pair: Pair, tokens: list[str], data: st.DataObject) -> None:
    pair.same(data.draw(st.lists(requests(tokens, False), min_size=1, max_size=6)))


@common(max_examples=100)
@given(data=st.data())
def test_any_requests_with_keys_and_a_small_cap(guarded: Pair, tokens: list[str], data: st.DataObject) -> None:
    sent = b"".join(data.draw(st.lists(requests(tokens, True), min_size=1, max_size=3)))
    guarded.same(cut(sent, data.draw(CUTS)))


ASK = request(b'{"policy": "news"}')
FILM = request(b'{"policy": "films", "user": {"clusters": [1, 2]}, "k": 3}')
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


def never(*_: Any) -> None:
    raise AssertionError("the other way")


def test_the_hot_path_is_taken(pair: Pair, tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"decision_id": tokens[0], "item": "x", "reward": 1}
    monkeypatch.setattr(HotProtocol, "_hand_on", never)
    for asked in (ASK * 5, FILM, request(msgspec.json.encode(row), b"/v1/feedback"), request(b"{")):
        pair.same([asked])
        pair.same([asked[:9], asked[9:-3], asked[-3:]])


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_every_spelling_of_the_head(pair: Pair, guarded: Pair, version: bytes) -> None:
    for path in (b"/v1/recommend", b"/v1/feedback"):
        for headers in SPELLINGS:
            pair.same([request(b'{"policy": "news"}', path, version=version, headers=headers)])
        for headers in WHO:
            guarded.same([request(b'{"policy": "news"}', path, version=version, headers=[JSON, *headers])])


def test_split_at_every_byte(pair: Pair) -> None:
    for i in range(len(ASK)):
        assert pair.same([ASK[:i], ASK[i:] + ASK[:i], ASK[i:]] if i else [ASK]).count(b" 200 OK") == (2 if i else 1)
    assert pair.same([bytes([b]) for b in FILM]).count(b" 200 OK") == 1


@pytest.mark.parametrize("between", [b"", GET, request(b"{}", b"/v1/feedback"), request(b"{", chunked=True)])
def test_pipelined_answers_come_in_order(pair: Pair, tokens: list[str], between: bytes) -> None:
    row = msgspec.json.encode({"decision_id": tokens[0], "item": "x", "reward": 1})
    feedback = request(row, b"/v1/feedback")
    found = pair.same([(feedback + ASK + between + FILM + feedback) * 2 + ASK])
    assert found.count(b"HTTP/1.1 ") == 9 + 2 * bool(between)


def test_one_read_is_given_so_many_hot_answers_and_no_more(fresh: Pair) -> None:
    async def run() -> None:
        protocol, transport = fresh.hot.connect()
        protocol.data_received(ASK * (TURN_MAX + 2))
        assert bytes(transport.written).count(b" 200 OK") == TURN_MAX
        await fresh.hot.settle()
        for _ in range(50):
            await asyncio.sleep(0)
        assert bytes(transport.written).count(b" 200 OK") == TURN_MAX + 2
        protocol.connection_lost(None)

    fresh.loop.run_until_complete(run())


def test_many_in_one_read(pair: Pair) -> None:
    assert pair.same([ASK * 3 * TURN_MAX]).count(b" 200 OK") == 3 * TURN_MAX


def test_a_known_head_needs_no_parser(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.same([ASK, FILM])
    monkeypatch.setattr(HotProtocol, "on_url", never)
    for asked in (ASK, FILM, request(b"{}".ljust(len(ASK) - ASK.index(b"{")))):
        pair.same([asked] * 3)


def test_another_size_than_the_head_says_needs_one(pair: Pair) -> None:
    at = ASK.index(b"{")
    pair.same([ASK])
    for reads in ([ASK[:at], ASK[at:]], [ASK[:-1], ASK[-1:]], [ASK + ASK], [ASK + b"\r\n"], [ASK + ASK[:at], ASK[at:]]):
        pair.same([*reads, ASK])


def test_empty_lines_between_known_heads_do_not_add_up(pair: Pair) -> None:
    lines = b"\r\n" * (HEAD_MAX // 3)
    assert pair.same([ASK, ASK, lines, ASK, lines, ASK]).count(b" 200 OK") == 4
    assert pair.same([ASK, ASK, lines, lines]).count(b" 431 ") == 1


def test_heads_are_remembered_only_where_they_are_hot_and_whole(pair: Pair) -> None:
    heads = pair.hot.app.state.service.heads
    heads.clear()
    for reads in (
        [ASK[:9], ASK[9:]],
        [ASK + ASK],
        [GET, GET],
        [request(b"{", chunked=True)],
        [ASK.replace(b"POST", b"PUT")],
    ):
        pair.same(reads)
    assert not heads
    odd = ASK.replace(b"\r\n\r\n", b"\n\n", 1).replace(b'"news"', b'"\r\n\r\n"')
    for _ in range(2):
        pair.same([odd])
    assert not heads
    pair.same([request(b"{}", headers=[JSON, b"x-long: " + b"a" * HEAD_BYTES_MAX])])
    assert not heads
    for i in range(HEADS_MAX + 2):
        pair.same([request(b"{}", headers=[JSON, b"x-trace: %d" % i])])
    assert len(heads) == 2


def test_with_keys_a_head_is_known_with_its_key(guarded: Pair) -> None:
    for who in WHO * 2:
        guarded.same([request(b'{"policy": "news"}', headers=[JSON, *who])] * 2)


def test_body_cap(pair: Pair, guarded: Pair) -> None:
    for size in (BODY_MAX - 30, BODY_MAX, BODY_MAX + 1, 5 << 20):
        pair.same(cut(request(b'{"policy": "' + b"a" * size + b'"}'), [0.1, 0.2, 0.9]))
    headers = [JSON, b"authorization: bearer " + KEY.encode()]
    for size in (1023, 1024, 1025):
        pad = b" " * (size - len(b'{"policy": "news"}'))
        found = guarded.same([request(b'{"policy": "news"}' + pad, headers=headers) + ASK])
        assert found.startswith(b"HTTP/1.1 200" if size <= 1024 else b"HTTP/1.1 413")


def test_a_length_that_lies(pair: Pair) -> None:
    for length in (b"-1", b"+5", b"0x5", b"5 ", b"5, 5", b"000000000000000000005", b"99999999999999999999", b"1e1"):
        pair.same([ASK.replace(b"Content-Length: 18", b"Content-Length: " + length)])


def test_a_rate_limit_holds_on_every_connection(limited: Pair) -> None:
    limited.same([ASK])
    for _ in range(4):
        found = limited.same([ASK])
    assert found.startswith(b"HTTP/1.1 429 ")


def test_a_rate_limit_is_that_of_the_address_which_a_trusted_proxy_names(
    limited: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeTransport, "get_extra_info", lambda _, name: ("127.0.0.1", 5) if name == "peername" else None
    )
    for address in (b"9.9.9.1", b"9.9.9.2"):
        forwarded = request(b'{"policy": "news"}', headers=[JSON, b"X-Forwarded-For: " + address])
        assert limited.same([forwarded] * 4).count(b" 429 ") == 1
    assert limited.same([ASK] * 4).count(b" 429 ") == 1


def test_rate_limit(limited: Pair) -> None:
    found = limited.same([ASK, FILM, ASK, ASK, FILM, request(b"{}", b"/v1/feedback")])
    assert found.count(b" 429 ") == 3
    assert b"retry-after: 1\r\n" in found


def test_a_crash_is_told_and_ends_the_connection(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    for asked in (ASK, request(b'{"feedback": [{"decision_id": "d", "item": "i", "reward": 1}]}', b"/v1/feedback")):
        pair.hot.engine.crash = pair.ordinary.engine.crash = True
        try:
            found = pair.same([asked, ASK])
        finally:
            pair.hot.engine.crash = pair.ordinary.engine.crash = False
        assert found.startswith(b"HTTP/1.1 500 ")
        assert "our own mistake" in caplog.text


@pytest.mark.parametrize("side", ["ordinary", "hot"])
@pytest.mark.parametrize("end", ["shutdown", "lost"])
def test_the_end_comes_while_a_body_is_on_its_way(pair: Pair, side: str, end: str) -> None:
    it: Side = getattr(pair, side)
    before = len(it.engine.counted)

    async def run() -> bytes:
        protocol, transport = it.connect()
        protocol.data_received(ASK[:-5])
        await asyncio.sleep(0)
        if end == "lost":
            protocol.connection_lost(ConnectionResetError())
        else:
            protocol.shutdown()
            assert not transport.closed
            protocol.data_received(ASK[-5:])
        for _ in range(50):
            await asyncio.sleep(0)
        if end == "shutdown":
            assert transport.closed
            protocol.connection_lost(None)
        return bytes(transport.written)

    found = pair.loop.run_until_complete(run())
    assert (b"connection: close\r\n" in found) == (end == "shutdown")
    assert it.engine.counted[before:] == [("/v1/recommend", 200 if end == "shutdown" else 400)]
    assert not it.state.tasks
    assert not it.state.connections


@pytest.mark.parametrize("side", ["ordinary", "hot"])
@pytest.mark.parametrize("end", ["shutdown", "lost"])
def test_the_end_comes_while_a_reward_is_being_appended(pair: Pair, side: str, end: str) -> None:
    it: Side = getattr(pair, side)
    before = it.engine.hot
    decision = it.engine.host.recommend("news", k=1)
    row = {"decision_id": decision.decision_id, "item": decision.items[0].id, "reward": 1}

    async def run() -> bytes:
        protocol, transport = it.connect()
        protocol.data_received(request(msgspec.json.encode(row), b"/v1/feedback"))
        await asyncio.sleep(0)
        assert it.state.tasks
        protocol.shutdown() if end == "shutdown" else protocol.connection_lost(None)
        await it.settle()
        assert transport.closed
        if end == "shutdown":
            protocol.connection_lost(None)
        return bytes(transport.written)

    found = pair.loop.run_until_complete(run())
    assert (b" 202 " in found and b"connection: close\r\n" in found) == (end == "shutdown")
    assert it.engine.counted[-1] == ("/v1/feedback", 202)
    assert it.engine.hot - before == (side == "hot")
    assert not it.state.tasks


@pytest.mark.parametrize("side", ["ordinary", "hot"])
def test_who_does_not_read_is_not_written_to_without_end(pair: Pair, side: str) -> None:
    it: Side = getattr(pair, side)

    async def run() -> None:
        protocol, transport = it.connect()
        protocol.data_received(ASK)
        await it.settle()
        written = len(transport.written)
        assert written
        protocol.pause_writing()
        for asked in (ASK, ASK * 2):
            protocol.data_received(asked)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(transport.written) == written
        protocol.resume_writing()
        await it.settle()
        assert bytes(transport.written).count(b" 200 OK") == 4
        protocol.connection_lost(None)

    pair.loop.run_until_complete(run())


async def ended(transport: FakeTransport) -> None:
    for _ in range(1000):
        if transport.closed:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody has closed the connection")


@pytest.mark.parametrize("side", ["ordinary", "hot"])
@pytest.mark.parametrize("last", [ASK, GET, request(b"{}", b"/v1/feedback")])
def test_idle_connections_are_closed(pair: Pair, side: str, last: bytes) -> None:
    it: Side = getattr(pair, side)

    async def run() -> None:
        protocol, transport = it.connect()
        protocol.timeout_keep_alive = 0.5  # type: ignore[assignment]
        for asked in (ASK, ASK, GET, last):
            protocol.data_received(asked)
            await it.settle()
            await asyncio.sleep(0.02)
        assert not transport.closed
        await ended(transport)
        protocol.connection_lost(None)

    pair.loop.run_until_complete(run())


def test_each_answer_puts_the_end_of_an_idle_connection_off(pair: Pair) -> None:
    async def run() -> None:
        protocol, transport = pair.hot.connect()
        assert isinstance(protocol, HotProtocol)
        for _ in range(3):
            protocol.data_received(ASK)
            protocol._look_if_idle()  # as if the timer of an earlier answer rang
            assert not transport.closed
            assert protocol._timer is not None
        protocol._answered_at -= protocol.timeout_keep_alive
        protocol._look_if_idle()
        assert transport.closed
        protocol.connection_lost(None)

    pair.loop.run_until_complete(run())


def test_a_known_head_stops_the_clock_of_the_answer_before_it_and_starts_its_own(
    fresh: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[float] = []
    monkeypatch.setattr(
        fresh.hot.app.state.service,
        "count",
        lambda _route, _status, seconds, hot=False: took.append(seconds),  # noqa: ARG005
    )

    async def run() -> None:
        protocol, _ = fresh.hot.connect()
        assert isinstance(protocol, HotProtocol)
        for asked in (ASK, GET):
            protocol.data_received(asked)
            await fresh.hot.settle()
        assert protocol.timeout_keep_alive_task is not None
        protocol._began -= 1000
        protocol.data_received(ASK)
        assert protocol.timeout_keep_alive_task is None
        protocol.connection_lost(None)

    fresh.loop.run_until_complete(run())
    assert took
    assert max(took) < 100


@pytest.mark.parametrize("side", ["ordinary", "hot"])
def test_a_known_head_behind_a_request_that_waits_is_not_answered_before_it(fresh: Pair, side: str) -> None:
    it: Side = getattr(fresh, side)
    decision = it.engine.host.recommend("news", k=1)
    row = {"decision_id": decision.decision_id, "item": decision.items[0].id, "reward": 1}

    async def run() -> bytes:
        protocol, transport = it.connect()
        protocol.data_received(ASK)
        await it.settle()
        protocol.data_received(request(msgspec.json.encode(row), b"/v1/feedback"))
        protocol.data_received(ASK)
        assert bytes(transport.written).count(b"HTTP/1.1 ") == 1
        for _ in range(50):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return bytes(transport.written)

    found = fresh.loop.run_until_complete(run())
    assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"200", b"202", b"200"]


@pytest.mark.parametrize("side", ["ordinary", "hot"])
def test_a_connection_in_the_middle_of_a_request_is_not_idle(pair: Pair, side: str) -> None:
    it: Side = getattr(pair, side)

    async def run() -> None:
        protocol, transport = it.connect()
        protocol.timeout_keep_alive = 0.05  # type: ignore[assignment]
        protocol.data_received(ASK)
        await it.settle()
        protocol.data_received(ASK[:20])
        await asyncio.sleep(0.15)
        assert not transport.closed
        protocol.data_received(ASK[20:])
        await it.settle()
        assert bytes(transport.written).count(b" 200 OK") == 2
        await ended(transport)
        protocol.connection_lost(None)

    pair.loop.run_until_complete(run())


def nothing(*_: Any) -> None:
    """Does less than uvicorn does."""


BREAKS: dict[str, Any] = {
    "a method is gone": lambda patch: patch.delattr(HttpToolsProtocol, "on_response_complete"),
    "the scope is made elsewhere": lambda patch: patch.setattr(HttpToolsProtocol, "on_message_begin", nothing),
    "the cycle is made elsewhere": lambda patch: patch.setattr(HttpToolsProtocol, "on_headers_complete", nothing),
    "bodies are read elsewhere": lambda patch: patch.setattr(HttpToolsProtocol, "on_body", nothing),
    "a header is kept elsewhere": lambda patch: patch.setattr(HttpToolsProtocol, "on_header", nothing),
    "requests are counted elsewhere": lambda patch: patch.setattr(HttpToolsProtocol, "on_response_complete", nothing),
    "flow control is another": lambda patch: patch.setattr(FlowControl, "__init__", nothing),
}


def test_it_fits_the_uvicorn_that_is_installed() -> None:
    assert asyncio.run(trouble()) is None
    assert asyncio.run(protocol_for(Settings())) is HotProtocol


@pytest.mark.parametrize("what", BREAKS)
def test_another_uvicorn_is_noticed(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    BREAKS[what](monkeypatch)
    with caplog.at_level(logging.WARNING, "server"):
        assert asyncio.run(protocol_for(Settings())) is Protocol
    (line,) = [r.getMessage() for r in caplog.records if r.name == "server.rehearsal"]
    assert line.startswith(f"The hot path is off: it does not fit uvicorn {uvicorn.__version__} (")


@pytest.mark.parametrize("chosen", [{"hot_path": False}, {"access_log": True}])
def test_it_can_be_turned_off(chosen: dict[str, bool], caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(protocol_for(Settings(**chosen))) is Protocol  # type: ignore[arg-type]
    assert not caplog.records
