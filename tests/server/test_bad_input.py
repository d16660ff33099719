"""What the world does wrong: each case asserts the status, the field named, and that nothing was half-done."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from server.app import create_app
from server.settings import Settings
from streaming.place import Place, open_place
from tests.server.conftest import BANKER, FILMS, TestClient, client_of, serving
from tests.server.documented import check_problem
from tests.server.memory import MemoryEngine
from tests.server.test_app import small_graph

JSON = {"Content-Type": "application/json"}


class Site(NamedTuple):
    """A server with the policies p (arms a, b, c), films (a graph of three films) and empty (no graph yet).

    `marks` is all that a request could have left behind; `decision` is one of p's, with its one item.
    """

    client: TestClient
    marks: Callable[[], Any]
    decision: dict[str, str]


@pytest.fixture(scope="module", params=["memory", "real"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if request.param == "memory":
        engine = MemoryEngine()
        with client_of(Settings(), engine) as client:
            yield prepared(client, lambda: (engine.state.applied, len(engine.decisions), len(engine.rewards)))
        return
    data = tmp_path_factory.mktemp("site") / "data"
    with TestClient(create_app(Settings(data=data, flush_ms=1)), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [check_problem]}
        yield prepared(client, lambda: (log_ends(data), decisions(client)))


def prepared(client: TestClient, marks: Callable[[], Any]) -> Site:
    client.put("/v1/policies/p", json=BANKER).raise_for_status()
    client.put("/v1/policies/films", json=FILMS).raise_for_status()
    client.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
    client.put("/v1/policies/empty", json=FILMS).raise_for_status()
    decision = client.post("/v1/recommend", json={"policy": "p"}).json()
    time.sleep(0.1)  # the decision reaches the log
    return Site(client, marks, {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"]})


@pytest.fixture
def ready(site: Site) -> Iterator[TestClient]:
    """The site's client; what the test does with it must leave nothing behind."""
    before = site.marks()
    yield site.client
    assert site.marks() == before


def log_ends(data: Path) -> list[int]:
    """How many records each partition of the log has had, the control partition last."""
    with open_place(Place.of_folder(data)) as folder:
        return [folder.log.bounds(partition)[1] for partition in [*range(folder.log.shards), -1]]


def decisions(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("croupier_decisions_total{"))


def assert_problem(answer: Any, status: int, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:croupier:problem:")
    assert body["detail"].endswith(".") or ":" in body["detail"]
    assert body.get("field") == field, body
    return body


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"policy": "\xff"}', 400, None),
        (b'{"policy": "p"} trailing', 400, None),
        (b'{"policy": "\\ud800"}', 400, None),
        (b'{"policy": "p", "k": NaN', 400, None),
        (b"[" * 100_000, 422, None),
        (b'{"feedback": ' + b"[" * 100_000, 400, None),
        (b"[]", 422, None),
        (b"null", 422, None),
        (b"{}", 422, "policy"),
        (b'{"policy": 7}', 422, "policy"),
        (b'{"policy": ""}', 422, "policy"),
        (b'{"policy": "nope"}', 404, "policy"),
        (b'{"policy": "p", "extra": 1}', 422, "extra"),
        (b'{"policy": "p", "k": 0}', 422, "k"),
        (b'{"policy": "p", "k": 4}', 422, "k"),
        (b'{"policy": "p", "k": 256}', 422, "k"),
        (b'{"policy": "p", "k": 1e99}', 422, "k"),
        (b'{"policy": "p", "k": 1.5}', 422, "k"),
        (b'{"policy": "p", "mode": "guess"}', 422, "mode"),
        (b'{"policy": "p", "candidates": []}', 422, "candidates"),
        (b'{"policy": "p", "candidates": ["zzz"]}', 422, "candidates"),
        (b'{"policy": "p", "exclude": ["a", "b", "c"]}', 422, "exclude"),
        (b'{"policy": "p", "exclude": [1]}', 422, "exclude[0]"),
        (b'{"policy": "p", "user": {"embedding": [1]}}', 422, "user.embedding"),
        (b'{"policy": "p", "user": {"age": 1}}', 422, "user.age"),
        (b'{"policy": "empty", "user": {"embedding": [1, 2]}}', 409, "policy"),
        (b'{"policy": "films"}', 422, "user"),
        (b'{"policy": "films", "user": {"embedding": [1, 2, 3]}}', 422, "user.embedding"),
        (b'{"policy": "films", "user": {"embedding": []}}', 422, "user.embedding"),
        (b'{"policy": "films", "user": {"embedding": [1, NaN]}}', 422, "user.embedding[1]"),
        (b'{"policy": "films", "user": {"embedding": [-Infinity, 1]}}', 422, "user.embedding[0]"),
        (b'{"policy": "films", "user": {"embedding": [1, 1e999]}}', 422, "user.embedding[1]"),
        (b'{"policy": "films", "user": {"embedding": [1, "2"]}}', 422, "user.embedding[1]"),
        (b'{"policy": "films", "user": {"embedding": [1, null]}}', 422, "user.embedding[1]"),
        (b'{"policy": "films", "user": {"embedding": [1, 2], "segment": "x"}}', 422, "user"),
        (b'{"policy": "films", "user": {"clusters": [1], "weights": [1, 2]}}', 422, "user.weights"),
        (b'{"policy": "films", "user": {"clusters": [1], "weights": [-1]}}', 422, "user.weights[0]"),
        (b'{"policy": "films", "user": {"clusters": [1], "weights": [0]}}', 422, "user.weights"),
        (b'{"policy": "films", "user": {"clusters": [1, 2], "weights": [1e308, 1e308]}}', 422, "user.weights"),
        (b'{"policy": "films", "user": {"clusters": [1, 2, 1]}}', 422, "user.clusters[2]"),
        (b'{"policy": "films", "user": {"clusters": [-1]}}', 422, "user.clusters[0]"),
        (b'{"policy": "films", "user": {"clusters": [], "weights": []}}', 422, "user.clusters"),
    ],
)
def test_recommend_refuses(ready: TestClient, body: bytes, status: int, field: str | None) -> None:
    path = "/v1/feedback" if body.startswith(b'{"feedback') else "/v1/recommend"
    assert_problem(ready.post(path, content=body, headers=JSON), status, field)


GOOD = {"reward": 1}  # and the site's decision, unless a case has its own


@pytest.mark.parametrize(
    ("row", "status", "field"),
    [
        ({"decision_id": ""}, 422, "decision_id"),
        ({"decision_id": "AAAA"}, 422, "decision_id"),
        ({"decision_id": "not base64 !"}, 422, "decision_id"),
        ({"decision_id": "x" * 4000}, 422, "decision_id"),
        ({"decision_id": "x" * 5000}, 422, "decision_id"),
        ({"decision_id": "\u0000é"}, 422, "decision_id"),
        ({"decision_id": None}, 422, "decision_id"),
        ({"item": "zzz"}, 404, "item"),
        ({"item": ""}, 422, "item"),
        ({"reward": "1"}, 422, "reward"),
        ({"reward": None}, 422, "reward"),
        ({"reward": float("nan")}, 422, "reward"),
        ({"reward": float("-inf")}, 422, "reward"),
        ({"reward": 1e308}, 422, "reward"),
        ({"event_id": 5}, 422, "event_id"),
        ({"when": 5}, 422, "when"),
    ],
)
def test_feedback_refuses_a_row(site: Site, ready: TestClient, row: Any, status: int, field: str) -> None:
    content = json.dumps({**site.decision, **GOOD, **row}).encode()  # with NaN and Infinity as Python writes them
    assert_problem(ready.post("/v1/feedback", content=content, headers=JSON), status, field)
    # In bulk it is a verdict: an unsound row names its place, and none keeps the others from being judged.
    if not (b"NaN" in content or b"Infinity" in content):
        answer = ready.post("/v1/feedback", content=b'{"feedback": [' + content + b"]}", headers=JSON)
        assert answer.status_code == 202
        (verdict,) = answer.json()["results"]
        assert verdict["status"] == "refused"
        assert verdict["field"].removeprefix("feedback[0].") == field


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        (b"{}", 422, "decision_id"),
        (b'{"feedback": []}', 422, "feedback"),
        (b'{"feedback": {}}', 422, "feedback"),
        (b'{"feedback": [' + b"{}," * 1000 + b"{}]}", 422, "feedback"),
        (b'{"feedback": [{}], "more": 1}', 422, "more"),
        (b"[]", 422, None),
        (b'{"feedback": [{"reward": -Infinity}]}', 422, "feedback[0].reward"),
        (b'{"decision_id": "d", "item": "a", "reward": 1e400}', 422, "reward"),
    ],
)
def test_feedback_refuses_a_body(ready: TestClient, body: bytes, status: int, field: str | None) -> None:
    assert_problem(ready.post("/v1/feedback", content=body, headers=JSON), status, field)


def test_a_decision_id_altered_anywhere_is_refused(site: Site, ready: TestClient) -> None:
    token = site.decision["decision_id"]
    for place in range(0, len(token), 7):
        altered = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        answer = ready.post("/v1/feedback", json={**site.decision, **GOOD, "decision_id": altered})
        assert assert_problem(answer, 422, "decision_id")["type"].endswith("bad-token")


def test_when_the_log_is_away_feedback_says_when_to_come_again(client: TestClient, engine: MemoryEngine) -> None:
    client.put("/v1/policies/p", json=BANKER).raise_for_status()
    row = {"decision_id": client.post("/v1/recommend", json={"policy": "p"}).json()["decision_id"], "item": "a"}
    engine.log_away = True
    answer = client.post("/v1/feedback", json={**row, **GOOD})
    assert_problem(answer, 503)
    assert answer.headers["retry-after"] == "2"
    engine.log_away = False
    assert client.post("/v1/feedback", json={**row, **GOOD}).status_code == 202


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"algorithm": "magic"}, "algorithm"),
        ({"algorithm": None}, "algorithm"),
        ({"colour": "red"}, "colour"),
        ({"regularizer": "entropy"}, "regularizer"),
        ({"regularizer": "tsallis"}, "regularizer"),
        ({"rho": -1}, "rho"),
        ({"c": 0}, "c"),
        ({"c": "2"}, "c"),
        ({"alpha": 1.0}, "alpha"),
        ({"arms": []}, "arms"),
        ({"arms": ["a", "a"]}, "arms[1]"),
        ({"arms": ["a", ""]}, "arms[1]"),
        ({"arms": None}, "arms"),
        ({"max_segments": 0}, "max_segments"),
        ({"reward": {"window": "soon"}}, "reward.window"),
        ({"reward": {"window": 0}}, "reward.window"),
        ({"reward": {"window": -5}}, "reward.window"),
        ({"reward": {"window": "50d"}}, "reward.window"),
        ({"reward": {"window": True}}, "reward.window"),
        ({"reward": {"default": 2e6}}, "reward.default"),
        ({"reward": {"default": "zero"}}, "reward.default"),
        ({"reward": {"aggregation": "mean"}}, "reward.aggregation"),
        ({"reward": {"min": 1, "max": 0}}, "reward.min"),
        ({"reward": {"speed": 1}}, "reward.speed"),
        ({"reward": 5}, "reward"),
        ({"rule": "classic", "reward": {"aggregation": "last"}}, "reward.aggregation"),
    ],
)
def test_put_policy_refuses(ready: TestClient, change: dict[str, Any], field: str) -> None:
    assert_problem(ready.put("/v1/policies/new", json={**BANKER, **change}), 422, field)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"alpha": -1}, "alpha"),
        ({"clusters_per_user": 0}, "clusters_per_user"),
        ({"clusters_per_user": 1.5}, "clusters_per_user"),
        ({"fresh": "last"}, "fresh"),
        ({"mode": "ucb"}, "mode"),
        ({"explore_share": 1.1}, "explore_share"),
        ({"prior": 0}, "prior"),
        ({"temperature": 0}, "temperature"),
        ({"half_life": "long"}, "half_life"),
        ({"arms": ["a"]}, "arms"),
    ],
)
def test_put_a_diag_linucb_policy_refuses(ready: TestClient, change: dict[str, Any], field: str) -> None:
    assert_problem(ready.put("/v1/policies/new", json={**FILMS, **change}), 422, field)


@pytest.mark.parametrize("name", ["-x", "a b", "ä", "x" * 101, "a;b"])
def test_a_policy_has_a_plain_name(ready: TestClient, name: str) -> None:
    assert_problem(ready.put(f"/v1/policies/{name}", json=BANKER), 422, "policy")


def test_a_policy_keeps_its_algorithm(ready: TestClient) -> None:
    assert_problem(ready.put("/v1/policies/p", json={"algorithm": "ucb1", "arms": ["a"]}), 409, "algorithm")
    assert_problem(ready.patch("/v1/policies/p", json={"algorithm": "ucb1"}), 409)
    assert_problem(ready.patch("/v1/policies/p", json={"reward": 5}), 422, "reward")
    assert_problem(ready.patch("/v1/policies/p", json={"rho": -5}), 422, "rho")
    assert_problem(ready.patch("/v1/policies/p", json=[]), 422)
    assert ready.get("/v1/policies/p").json()["definition"]["algorithm"] == "banker"


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/policies/nope", "policy"),
        ("DELETE", "/v1/policies/nope", "policy"),
        ("PATCH", "/v1/policies/nope", "policy"),
        ("GET", "/v1/policies/nope/arms", "policy"),
        ("GET", "/v1/policies/nope/graph", "policy"),
        ("PUT", "/v1/policies/nope/graph", "policy"),
        ("GET", "/v1/policies/p/items/nope", "item"),
        ("DELETE", "/v1/policies/p/items/nope", "item"),
        ("PATCH", "/v1/policies/p/items/nope", "item"),
        ("PATCH", "/v1/policies/films/items/nope", "item"),
        ("PUT", "/v1/policies/nope/items/a", "policy"),
        ("GET", "/nowhere", None),
    ],
)
def test_what_is_not_there_is_404(ready: TestClient, method: str, path: str, field: str | None) -> None:
    body = None if method in ("GET", "DELETE") or path.endswith("graph") else {"paused": True}
    assert_problem(ready.request(method, path, json=body), 404, field)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "limit=1e99"])
def test_query_parameters_are_checked(ready: TestClient, query: str) -> None:
    assert_problem(ready.get(f"/v1/policies/p/arms?{query}"), 422, "limit")


def test_methods_and_media_types_are_named(ready: TestClient) -> None:
    wrong_method = ready.get("/v1/recommend")
    assert_problem(wrong_method, 405)
    assert wrong_method.headers["allow"] == "POST"
    form = ready.post("/v1/recommend", data={"policy": "p"})
    assert "application/json" in assert_problem(form, 415)["detail"]
    assert_problem(ready.post("/v1/recommend", content=b'{"policy": "p"}'), 415)
    assert_problem(ready.put("/v1/policies/films/graph", json={}), 415)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[TestClient]:
    """The real thing, alone with its test."""
    with TestClient(create_app(Settings(data=tmp_path / "data", flush_ms=1)), raise_server_exceptions=False) as client:
        yield client


def outcomes(client: TestClient, expected: dict[str, float]) -> dict[str, float]:
    """Counts of reward outcomes, once there are as many as expected, or after 10 s."""
    deadline = time.monotonic() + 10
    while True:
        found: dict[str, float] = {}
        for line in client.get("/metrics").text.splitlines():
            if line.startswith("croupier_reward_outcomes_total{"):
                outcome = line.split('outcome="')[1].split('"')[0]
                found[outcome] = found.get(outcome, 0) + float(line.split()[-1])
        found = {outcome: count for outcome, count in found.items() if count}
        if found == expected or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_rewards_twice_late_and_unbelievable_are_accepted_and_counted_as_what_they_are(loop: TestClient) -> None:
    loop.put("/v1/policies/p", json={**BANKER, "reward": {"max": 10}}).raise_for_status()
    loop.put("/v1/policies/short", json={**BANKER, "reward": {"window": "50ms"}}).raise_for_status()
    loop.put("/v1/policies/sums", json={**BANKER, "reward": {"aggregation": "sum"}}).raise_for_status()

    def decide(policy: str) -> dict[str, Any]:
        body = loop.post("/v1/recommend", json={"policy": policy}).json()
        return {"decision_id": body["decision_id"], "item": body["items"][0]["id"], "reward": 1}

    once, large, late, summed, gone = decide("p"), decide("p"), decide("short"), decide("sums"), decide("p")
    time.sleep(0.2)
    rows = [once, once, {**large, "reward": 11}, late, {**summed, "event_id": "a"}, {**summed, "event_id": "a"}]
    answer = loop.post("/v1/feedback", json={"feedback": [*rows, summed]})
    assert answer.status_code == 202
    verdicts = answer.json()["results"]
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 6 + ["refused"]
    assert (verdicts[6]["reason"], verdicts[6]["field"]) == ("missing-event-id", "event_id")
    loop.delete(f"/v1/policies/p/items/{gone['item']}").raise_for_status()
    assert_problem(loop.post("/v1/recommend", json={"policy": "p", "candidates": [gone["item"]]}), 422, "candidates")
    loop.delete("/v1/policies/short").raise_for_status()
    assert_problem(loop.post("/v1/feedback", json=late), 404, "decision_id")
    expected = {"applied": 2, "duplicate": 2, "out_of_range": 1, "late": 1}
    assert outcomes(loop, expected) == expected


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


SOUND = {
    "centroids": np.zeros((2, 3), np.float32),
    "indptr": np.array([0, 1, 2]),
    "items": np.array([0, 1], np.uint32),
    "ids": np.array(["x", "y"]),
}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "graph"),
        (b"not a zip", "graph"),
        (npz(**SOUND)[:-30], "graph"),
        (npz(**{**SOUND, "ids": np.array(["x", {}], object)}), "graph"),
        (npz(centroids=SOUND["centroids"], items=SOUND["items"]), "indptr"),
        (npz(**{**SOUND, "indptr": np.array([0, 1, 5])}), "indptr"),
        (npz(**{**SOUND, "indptr": np.array([0, 2, 1])}), "indptr"),
        (npz(**{**SOUND, "items": np.array([0, 7], np.uint32)}), "items"),
        (npz(**{**SOUND, "centroids": np.full((2, 3), np.nan, np.float32)}), "centroids"),
        (npz(**{**SOUND, "centroids": np.zeros((9, 3), np.float32)}), "centroids"),
        (npz(**{**SOUND, "ids": np.array(["x", "x"])}), "ids"),
    ],
)
def test_a_graph_whose_arrays_disagree_is_refused(ready: TestClient, content: bytes, field: str) -> None:
    before = ready.get("/v1/policies/films/graph").json()
    assert_problem(ready.put("/v1/policies/films/graph", content=content), 422, field)
    assert ready.get("/v1/policies/films/graph").json() == before


def test_a_graph_that_unpacks_to_far_more_than_it_is_is_refused(ready: TestClient) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, centroids=np.zeros((1 << 21, 3), np.float32), ids=SOUND["ids"])  # 25 MB of zeros in 25 kB
    body = assert_problem(ready.put("/v1/policies/films/graph", content=file.getvalue()), 422, "graph")
    assert "unpacks" in body["detail"]


def test_a_graph_file_of_many_arrays_is_refused_before_they_are_read(ready: TestClient) -> None:
    file = io.BytesIO()
    np.savez(file, **{f"a{i}": np.zeros(1) for i in range(17)})
    body = assert_problem(ready.put("/v1/policies/films/graph", content=file.getvalue()), 422, "graph")
    assert "17 arrays" in body["detail"]


def test_a_policy_without_graph_says_so(ready: TestClient) -> None:
    assert_problem(ready.put("/v1/policies/p/graph", content=npz(**SOUND)), 409, "graph")
    assert_problem(ready.get("/v1/policies/p/graph"), 409, "graph")
    assert_problem(ready.get("/v1/policies/empty/graph"), 409, "policy")
    assert_problem(ready.put("/v1/policies/empty/items/x", json={"clusters": [0]}), 409, "policy")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "embedding"),
        ({"embedding": [1, 2], "clusters": [0]}, 422, "embedding"),
        ({"embedding": [1, 2, 3]}, 422, "embedding"),
        ({"clusters": [3]}, 422, "clusters"),
        ({"clusters": [0, 0]}, 422, "clusters"),
        ({"clusters": []}, 422, "clusters"),
    ],
)
def test_a_new_graph_item_needs_its_place(ready: TestClient, body: Any, status: int, field: str) -> None:
    assert_problem(ready.put("/v1/policies/films/items/new", json=body), status, field)
    assert ready.get("/v1/policies/films").json()["items"] == 3


def test_items_take_only_what_their_policy_has(ready: TestClient) -> None:
    assert_problem(ready.put("/v1/policies/p/items/z", json={"embedding": [1]}), 422, "embedding")
    assert_problem(ready.put("/v1/policies/films/items/318", json={"clusters": [0]}), 409)
    assert_problem(ready.put(f"/v1/policies/p/items/{'z' * 1001}", json={}), 422, "item")


def test_a_body_too_large_is_refused_also_without_content_length(engine: MemoryEngine) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with client_of(Settings(max_body_bytes=2000, max_graph_bytes=3000), engine) as client:
        client.put("/v1/policies/films", json=FILMS).raise_for_status()
        assert_problem(client.post("/v1/recommend", content=b" " * 2001, headers=JSON), 413)
        assert_problem(client.post("/v1/recommend", content=chunks(), headers=JSON), 413)
        assert_problem(client.post("/v1/feedback", content=chunks(), headers=JSON), 413)
        assert_problem(client.put("/v1/policies/films/graph", content=b" " * 3001), 413)
        assert_problem(client.put("/v1/policies/films/graph", content=chunks()), 413)
        assert engine.decisions == {}


def test_a_body_that_ends_early_is_no_mistake_of_ours(engine: MemoryEngine, caplog: pytest.LogCaptureFixture) -> None:
    with serving(create_app(Settings(), engine)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = ["POST /v1/recommend HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 99"]
            connection.sendall("\r\n".join([*head, "", '{"policy":']).encode())
            time.sleep(0.1)
        deadline = time.monotonic() + 5
        while not engine.counted and time.monotonic() < deadline:
            time.sleep(0.01)
    assert engine.counted == [("/v1/recommend", 400)]
    assert "failed" not in caplog.text


def test_a_batch_is_bounded(engine: MemoryEngine) -> None:
    with client_of(Settings(max_batch=2), engine) as client:
        many = {"requests": [{"policy": "p"}] * 3}
        assert_problem(client.post("/v1/recommend/batch", json=many), 422, "requests")
        assert_problem(client.post("/v1/recommend/batch", json={"requests": []}), 422, "requests")
        assert_problem(client.post("/v1/recommend/batch", json={"requests": {}}), 422, "requests")


def test_our_own_mistake_is_a_problem_too_and_tells_nothing(client: TestClient, engine: MemoryEngine) -> None:
    def broken(query: Any) -> Any:
        raise ZeroDivisionError(f"secret {query}")

    engine.recommend = broken  # type: ignore[method-assign]
    body = assert_problem(client.post("/v1/recommend", json={"policy": "p"}), 500)
    assert "secret" not in json.dumps(body)
    assert engine.counted[-1] == ("/v1/recommend", 500)
