"""The stream behind the live page, and the page's files."""

import asyncio
import contextlib
import copy
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from starlette.requests import ClientDisconnect

from server import metrics
from server.app import create_app
from server.live import Pulse
from server.local import local_engine
from server.plays import Plays
from server.replica import ShardImage
from server.routes import live as routes
from server.routes.live import FILES, FOLDER, PAGE, WATCHERS_MAX, Watch
from server.settings import Settings
from streaming.control import GraphPut, PolicyDelete, PolicyPut, PolicySpec
from tests.server.host_parts import Host, random_graph
from tests.server.processes import Server, make_policy, serving, wait_for

BANK = {"algorithm": "thompson-beta", "arms": ["a", "b", "<img src=x>"], "reward": {"window": "1m", "default": 0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("live") / "data") as server:
        with httpx.Client(base_url=server.url) as http:
            make_policy(http, "news", BANK)
        yield server


def events(url: str, n: int, headers: dict[str, str] | None = None, **query: str) -> list[dict[str, Any]]:
    """The next n events of a stream."""
    found: list[dict[str, Any]] = []
    with httpx.stream("GET", f"{url}/v1/live", params=query, headers=headers, timeout=30) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                if len(found) == n:
                    break
    return found


def test_the_stream_says_what_happened(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        shown = []
        for mode in ("explore", "explore", "exploit"):
            ask = {"policy": "news", "user": {"segment": "all"}, "mode": mode}
            decision = http.post("/v1/recommend", json=ask).raise_for_status().json()
            shown.append(decision["items"][0]["id"])
            row = {"decision_id": decision["decision_id"], "item": shown[-1], "reward": 0.5}
            for _ in range(2):
                http.post("/v1/feedback", json=row).raise_for_status()

    def last() -> list[float]:
        (event,) = events(server.url, 1, policy="news")
        return event["policy"]["history"][-1][1:]

    wait_for(lambda: last()[-1] == 6, 10)
    assert last() == [0, 1, 2, 0.0, 0.5, 1.0, 3, 6]  # shown and sums by mode, decisions, rewards; Thompson explores so
    first, second = events(server.url, 2, policy="news")
    assert first["parts"] == {"log": True, "store": True, "agent": True, "learner": True}
    assert first["workers"] == 1
    assert first["requests"] == 9
    policy = first["policy"]
    assert policy["outcomes"]["applied"] == policy["outcomes"]["duplicate"] == 3
    assert policy["segments"] == ["all"]
    assert policy["mode"] == "thompson"
    assert {arm["id"]: arm["plays"] for arm in policy["arms"]} == {each: shown.count(each) for each in BANK["arms"]}
    plays = [arm["plays"] for arm in policy["arms"]]
    assert plays == sorted(plays, reverse=True)
    assert {line["name"]: line["shown"] for line in first["policies"]} == {"news": 3}
    times = [row[0] for row in policy["history"] + second["policy"]["history"]]
    assert times == sorted(set(times)), "what was sent is not sent again"


def test_no_such_policy_is_none_and_no_name_is_the_first(server: Server) -> None:
    assert events(server.url, 1, policy="nobody")[0]["policy"] is None
    found = events(server.url, 2)
    assert found[0]["policy"]["name"] == "news"


def test_a_stream_is_counted_as_answered_when_it_begins(server: Server) -> None:
    events(server.url, 3, policy="news")

    def spent_s() -> float | None:
        text = httpx.get(f"{server.url}/metrics").text
        found = re.search(r'croupier_request_seconds_sum\{outcome="2xx",route="/v1/live"\} (\S+)', text)
        count = re.search(r'croupier_request_seconds_count\{outcome="2xx",route="/v1/live"\} (\S+)', text)
        assert found is not None
        assert count is not None
        return float(found[1]) / float(count[1]) if float(count[1]) else None

    wait_for(lambda: spent_s() is not None, 10)
    assert spent_s() < 1  # type: ignore[operator]


async def test_so_many_may_watch_and_who_goes_away_is_noticed(server: Server) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        streams = [await session.get(f"{server.url}/v1/live") for _ in range(WATCHERS_MAX)]
        for stream in streams:
            assert stream.status == 200
            await stream.content.readline()
        refused = await session.get(f"{server.url}/v1/live")
        assert refused.status == 503
        assert str(WATCHERS_MAX) in (await refused.json())["detail"]
        for stream in streams:
            stream.close()
        async with asyncio.timeout(20):
            while (again := await session.get(f"{server.url}/v1/live")).status == 503:
                await asyncio.sleep(0.2)
        assert again.status == 200
        again.close()


async def test_who_leaves_before_the_first_event_gives_the_place_back(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    async with local_engine(settings) as engine:
        app = create_app(settings, engine)
        scope = {
            "type": "http", "method": "GET", "path": "/v1/live", "raw_path": b"/v1/live", "query_string": b"",
            "headers": [], "client": ("127.0.0.1", 1), "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        begun = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            begun.append((message["status"], app.state.watch.watchers))
            raise OSError("the connection is gone")

        with contextlib.suppress(ClientDisconnect):
            await app(scope, receive, send)
        assert begun == [(200, 1)]
        assert app.state.watch.watchers == 0


async def test_many_who_watch_the_same_are_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with local_engine(Settings(data=tmp_path / "data")) as engine:
        asked, real = [], engine.live

        def live(policy: str, segment: str) -> Any:
            asked.append((policy, segment))
            return real(policy, segment)

        monkeypatch.setattr(engine, "live", live)
        watch = Watch()
        found = await asyncio.gather(*(watch.look(engine, "p", "all") for _ in range(50)))
        assert len(set(map(id, found))) == 1
        await watch.look(engine, "p", "other")
        assert asked == [("p", "all"), ("p", "other")]


def test_only_an_admin_may_look(tmp_path: Path) -> None:
    keys = "web:recommend+feedback:web-web-web-web-web,ops:admin:ops-ops-ops-ops-ops"
    with serving(tmp_path / "data", api_keys=keys) as server:
        for key, status in ((None, 401), ("wrong-wrong-wrong-wrong", 401), ("web-web-web-web-web", 403)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            assert httpx.get(f"{server.url}/v1/live", headers=headers).status_code == status
        assert events(server.url, 1, {"Authorization": "Bearer ops-ops-ops-ops-ops"})[0]["policies"] == []
        assert httpx.get(server.url).status_code == 200  # the page itself shows nothing


def test_a_server_that_ends_does_not_wait_for_those_who_watch(tmp_path: Path) -> None:
    with serving(tmp_path / "data", drain_s=30) as server:
        ended = threading.Event()

        def watch() -> None:
            events(server.url, 1000)
            ended.set()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        time.sleep(1.5)
        assert server.stop() == 0
        assert ended.wait(5)


def test_the_page_loads_nothing_from_elsewhere_and_its_files_are_there(server: Server) -> None:
    with httpx.Client(base_url=server.url) as http:
        page = http.get("/")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        named = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
        assert len(named) == len(FILES)
        for path in named:
            found = http.get(path)
            assert found.status_code == 200
            assert "immutable" in found.headers["cache-control"]
            assert found.headers["content-security-policy"] == policy
        for path in ("/static/nothing.js", "/static/page.html", "/static/..%2fapp.py", "/static/%2e%2e/app.py"):
            assert http.get(path).status_code == 404, path
    outside = re.compile(rb"(?:src|href|url\(|import|fetch\()\s*[=(]?\s*[\"']?(?:https?:)?//")
    for text in (PAGE, *FILES.values()):
        assert not outside.search(text)
    assert {path.name for path in FOLDER.iterdir()} == {"page.html", *FILES}
    assert routes.VERSION.encode() in PAGE


def test_shards_of_different_versions_are_looked_at_unharmed(tmp_path: Path) -> None:
    """A scrape and a look come between the commits of two shards that bring the same change."""
    host = Host(tmp_path, shards=2)
    host.follow(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
    host.diag("films", random_graph(1))
    host.reward(host.recommend("h"), "a", 1.0)
    host.follow()
    pulse, plays = Pulse(host.host, host.replica), Plays()
    figures = metrics.Figures(host.log.ends()[:-1], plays=plays)

    def look() -> tuple[Any, bytes]:
        pulse.look(host.now_ms)
        plays.look(host.replica)
        live = pulse.snapshot("h", "all", host.now_ms, figures.ends, (0, 0))
        return live, metrics.render(host.host, host.replica, figures, host.now_ms)

    before, _ = look()
    blob = host.store.put_blob(random_graph(1, items=60).to_bytes())
    for record in (PolicyPut("h", PolicySpec("banker"), ["a", "b", "c"]), GraphPut("films", blob), PolicyDelete("h")):
        old = host.replica.shards[1]
        kept = ShardImage()
        kept.state, kept.control, kept.last, kept.head = copy.deepcopy((old.state, old.control, old.last, old.head))
        host.follow(record)
        new, host.replica.shards[1] = host.replica.shards[1], kept
        live, text = look()
        name = getattr(record, "policy", getattr(record, "name", ""))
        assert name not in [line.name for line in live.policies]
        assert b"croupier_up" in text
        host.replica.shards[1] = new
        live, _ = look()
        assert [line.name for line in live.policies] == (
            ["films"] if isinstance(record, PolicyDelete) else ["films", "h"]
        )
    assert before.policy.outcomes["applied"] == 1
