"""What the world does wrong: each case asserts the status, the field named, and that nothing was half-done."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.settings import Settings
from tests.server.conftest import BANKER, FILMS, TestClient, client_of
from tests.server.memory import MemoryEngine
from tests.server.test_app import small_graph

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def ready(client: TestClient) -> TestClient:
    client.put("/v1/policies/p", json=BANKER).raise_for_status()
    client.put("/v1/policies/films", json=FILMS).raise_for_status()
    client.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
    client.put("/v1/policies/empty", json=FILMS).raise_for_status()
    return client


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
def test_recommend_refuses(
    ready: TestClient, engine: MemoryEngine, body: bytes, status: int, field: str | None
) -> None:
    path = "/v1/feedback" if body.startswith(b'{"feedback') else "/v1/recommend"
    assert_problem(ready.post(path, content=body, headers=JSON), status, field)
    assert engine.decisions == {}


GOOD = {"decision_id": "d0", "item": "a", "reward": 1}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, None),
        ({}, 422, "decision_id"),
        ({**GOOD, "decision_id": "AAAA"}, 422, "decision_id"),
        ({**GOOD, "decision_id": "x" * 5000}, 422, "decision_id"),
        ({**GOOD, "item": "b"}, 404, "item"),
        ({**GOOD, "reward": "1"}, 422, "reward"),
        ({**GOOD, "reward": None}, 422, "reward"),
        (b'{"decision_id": "d0", "item": "a", "reward": NaN}', 422, "reward"),
        (b'{"decision_id": "d0", "item": "a", "reward": 1e400}', 422, "reward"),
        ({**GOOD, "event_id": 5}, 422, "event_id"),
        ({**GOOD, "when": 5}, 422, "when"),
        ({"feedback": []}, 422, "feedback"),
        ({"feedback": GOOD}, 422, "feedback"),
        ({"feedback": [GOOD] * 1001}, 422, "feedback"),
        ({"feedback": [GOOD], "more": 1}, 422, "more"),
        ([GOOD], 422, None),
        (b'{"feedback": [{"decision_id": "d0", "item": "a", "reward": -Infinity}]}', 422, "feedback[0].reward"),
    ],
)
def test_feedback_refuses(ready: TestClient, engine: MemoryEngine, body: Any, status: int, field: str | None) -> None:
    ready.post("/v1/recommend", json={"policy": "p"}).raise_for_status()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert_problem(ready.post("/v1/feedback", content=content, headers=JSON), status, field)
    assert engine.rewards == []


def test_when_the_log_is_away_feedback_says_when_to_come_again(ready: TestClient, engine: MemoryEngine) -> None:
    ready.post("/v1/recommend", json={"policy": "p"}).raise_for_status()
    engine.log_away = True
    answer = ready.post("/v1/feedback", json=GOOD)
    assert_problem(answer, 503)
    assert answer.headers["retry-after"] == "2"
    engine.log_away = False
    assert ready.post("/v1/feedback", json=GOOD).status_code == 202


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
def test_put_policy_refuses(client: TestClient, engine: MemoryEngine, change: dict[str, Any], field: str) -> None:
    assert_problem(client.put("/v1/policies/p", json={**BANKER, **change}), 422, field)
    assert engine.state.applied == 0


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
def test_put_a_diag_linucb_policy_refuses(client: TestClient, change: dict[str, Any], field: str) -> None:
    assert_problem(client.put("/v1/policies/p", json={**FILMS, **change}), 422, field)


@pytest.mark.parametrize("name", ["-x", "a b", "ä", "x" * 101, "a;b"])
def test_a_policy_has_a_plain_name(client: TestClient, name: str) -> None:
    assert_problem(client.put(f"/v1/policies/{name}", json=BANKER), 422, "name")


def test_a_policy_keeps_its_algorithm(ready: TestClient, engine: MemoryEngine) -> None:
    before = engine.state.applied
    assert_problem(ready.put("/v1/policies/p", json={"algorithm": "ucb1", "arms": ["a"]}), 409, "algorithm")
    assert_problem(ready.patch("/v1/policies/p", json={"algorithm": "ucb1"}), 409)
    assert_problem(ready.patch("/v1/policies/p", json={"reward": 5}), 422, "reward")
    assert_problem(ready.patch("/v1/policies/p", json={"rho": -5}), 422, "rho")
    assert_problem(ready.patch("/v1/policies/p", json=[]), 422)
    assert engine.state.policies["p"].spec.algorithm == "banker"
    assert engine.state.applied <= before + 1  # a refused change may use up a number, and changes nothing


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/policies/nope", "policy"),
        ("DELETE", "/v1/policies/nope", "policy"),
        ("PATCH", "/v1/policies/nope", "policy"),
        ("GET", "/v1/policies/nope/arms", "policy"),
        ("GET", "/v1/policies/nope/graph", "policy"),
        ("PUT", "/v1/policies/nope/graph", "policy"),
        ("GET", "/v1/policies/p/items/nope", "id"),
        ("DELETE", "/v1/policies/p/items/nope", "id"),
        ("PATCH", "/v1/policies/p/items/nope", "id"),
        ("PATCH", "/v1/policies/films/items/nope", "id"),
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
def test_a_graph_whose_arrays_disagree_is_refused(
    ready: TestClient, engine: MemoryEngine, content: bytes, field: str
) -> None:
    before = ready.get("/v1/policies/films/graph").json(), engine.state.applied, len(engine.blobs)
    assert_problem(ready.put("/v1/policies/films/graph", content=content), 422, field)
    assert (ready.get("/v1/policies/films/graph").json(), engine.state.applied, len(engine.blobs)) == before


def test_a_graph_that_unpacks_to_far_more_than_it_is_is_refused(ready: TestClient) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **{**SOUND, "centroids": np.zeros((1 << 21, 3), np.float32)})  # 25 MB of zeros in 25 kB
    body = assert_problem(ready.put("/v1/policies/films/graph", content=file.getvalue()), 422, "graph")
    assert "unpacks" in body["detail"]


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
    assert_problem(ready.put(f"/v1/policies/p/items/{'z' * 1001}", json={}), 422, "id")


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
