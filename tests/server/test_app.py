"""The API as a client meets it: the whole session of the README, and each route's answers."""

import re
from typing import Any

import pytest

from streaming.control import PolicyPut, PolicySpec
from tests.graphs import small_graph
from tests.server.conftest import BANKER, FILMS, TestClient
from tests.server.memory import MemoryEngine


@pytest.fixture
def films(client: TestClient) -> TestClient:
    """A client of a server that has the policy films with its graph."""
    client.put("/v1/policies/films", json=FILMS).raise_for_status()
    client.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
    return client


def test_the_contract_in_one_session(client: TestClient, engine: MemoryEngine) -> None:
    made = client.put("/v1/policies/headlines", json=BANKER)
    assert made.status_code == 201
    assert made.json() == {"version": 1, "shown": True}

    decision = client.post("/v1/recommend", json={"policy": "headlines", "user": {"segment": "all"}})
    assert decision.status_code == 200
    body = decision.json()
    assert set(body) == {"decision_id", "policy", "version", "items"}
    assert body["version"] == 1
    assert set(body["items"][0]) == {"id", "score", "propensity"}
    assert len(body["items"]) == 1

    reward = {"decision_id": body["decision_id"], "item": body["items"][0]["id"], "reward": 1}
    accepted = client.post("/v1/feedback", json=reward)
    assert accepted.status_code == 202
    assert accepted.json() == {"results": [{"status": "accepted"}]}
    assert [row.reward for row in engine.rewards] == [1.0]

    assert client.put("/v1/policies/films", json=FILMS).status_code == 201
    uploaded = client.put("/v1/policies/films/graph", content=small_graph().to_bytes())
    assert uploaded.status_code == 202
    assert client.get("/v1/policies/films/graph").json()["version"] == uploaded.json()["graph"]
    films = {"policy": "films", "user": {"embedding": [0.5, 0.5]}, "k": 3, "exclude": ["318", "never heard of"]}
    assert [item["id"] for item in client.post("/v1/recommend", json=films).json()["items"]] == ["296", "a/b c"]


def test_put_says_whether_it_made_or_changed_and_whether_all_workers_show_it(
    client: TestClient, engine: MemoryEngine
) -> None:
    assert client.put("/v1/policies/p", json=BANKER).status_code == 201
    assert client.put("/v1/policies/p", json=BANKER).status_code == 200
    engine.slow_workers = True
    late = client.put("/v1/policies/p", json=BANKER)
    assert (late.status_code, late.json()["shown"]) == (202, False)


def test_get_shows_a_definition_that_put_takes(client: TestClient) -> None:
    for name, body in (("b", BANKER), ("f", {**FILMS, "half_life": "7d"}), ("u", {"algorithm": "ucb1", "arms": ["x"]})):
        client.put(f"/v1/policies/{name}", json=body).raise_for_status()
        shown = client.get(f"/v1/policies/{name}").json()
        assert shown["definition"]["algorithm"] == body["algorithm"]
        assert shown["definition"]["reward"]["window"] == "30m"
        assert client.put(f"/v1/policies/{name}", json=shown["definition"]).status_code == 200
        assert client.get(f"/v1/policies/{name}").json()["definition"] == shown["definition"]
    listed = client.get("/v1/policies").json()["policies"]
    assert [policy["name"] for policy in listed] == ["b", "f", "u"]
    assert [policy["items"] for policy in listed] == [3, 0, 1]


def test_patch_changes_what_it_names_and_null_is_a_value(client: TestClient) -> None:
    client.put("/v1/policies/p", json={**BANKER, "reward": {"window": "1h", "max": 5}})
    assert client.patch("/v1/policies/p", json={"c": 3, "reward": {"default": None}}).status_code == 200
    definition = client.get("/v1/policies/p").json()["definition"]
    assert definition["c"] == 3
    assert definition["reward"] == {"window": "1h", "default": None, "aggregation": "first", "min": -1e6, "max": 5.0}


def test_a_default_of_none_may_be_spelled_as_a_word(client: TestClient) -> None:
    client.put("/v1/policies/p", json={**BANKER, "reward": {"default": "none", "window": 90}})
    reward = client.get("/v1/policies/p").json()["definition"]["reward"]
    assert (reward["default"], reward["window"]) == (None, "90s")


def test_delete_removes(client: TestClient) -> None:
    client.put("/v1/policies/p", json=BANKER)
    assert client.delete("/v1/policies/p").status_code == 200
    assert client.get("/v1/policies/p").status_code == 404
    assert client.delete("/v1/policies/p").status_code == 404


def test_arms_are_added_paused_and_removed(client: TestClient) -> None:
    client.put("/v1/policies/p", json=BANKER)
    assert client.put("/v1/policies/p/items/d", json={}).status_code == 201
    assert client.put("/v1/policies/p/items/d", json={"paused": True}).status_code == 200
    assert client.get("/v1/policies/p/items/d").json()["paused"] is True
    assert client.patch("/v1/policies/p/items/d", json={"paused": False}).status_code == 200
    assert client.get("/v1/policies/p/items/d").json() == {"id": "d", "number": 3, "paused": False, "clusters": None}
    assert client.delete("/v1/policies/p/items/a").status_code == 200
    arms = client.get("/v1/policies/p/arms", params={"limit": 2, "offset": 1}).json()
    assert arms["total"] == 3
    assert [arm["id"] for arm in arms["arms"]] == ["c", "d"]


def test_graph_items_are_added_by_embedding_or_clusters_paused_and_removed(films: TestClient) -> None:
    before = films.get("/v1/policies/films").json()["graph"]
    assert films.put("/v1/policies/films/items/new", json={"embedding": [0, 2]}).status_code == 201
    assert films.put("/v1/policies/films/items/x/y", json={"clusters": [2], "paused": True}).status_code == 201
    after = films.get("/v1/policies/films").json()
    assert after["graph"]["items"] == before["items"] + 2
    assert after["graph"]["edges"] == before["edges"] + 2 + 1  # two edges: as many as an item has on average
    assert after["graph"]["lineage"] == before["lineage"]
    assert after["paused"] == 1
    assert films.get("/v1/policies/films/items/x/y").json()["paused"] is True
    assert films.patch("/v1/policies/films/items/a/b c", json={"paused": True}).status_code == 200
    assert films.delete("/v1/policies/films/items/x/y").status_code == 200
    assert films.get("/v1/policies/films").json()["graph"]["items"] == before["items"] + 1
    # An item that comes back is what it is said to be now, not what it was.
    assert films.put("/v1/policies/films/items/x/y", json={"clusters": [1]}).status_code == 201
    assert films.get("/v1/policies/films/items/x/y").json()["paused"] is False


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/v1/policies/films", {"alpha": 2.0}),
        ("PUT", "/v1/policies/films/items/new", {"clusters": [0]}),
        ("DELETE", "/v1/policies/films/items/318", None),
    ],
)
def test_what_somebody_else_changed_meanwhile_is_not_lost(
    films: TestClient, engine: MemoryEngine, method: str, path: str, body: Any
) -> None:
    read = engine.policy

    async def read_then_overtaken(name: str) -> Any:
        info = await read(name)
        await engine.control(PolicyPut(name, PolicySpec("diag-linucb", parameters={"alpha": 7.0})))
        return info

    engine.policy = read_then_overtaken  # type: ignore[method-assign]
    answer = films.request(method, path, json=body)
    assert answer.status_code == 409
    engine.policy = read  # type: ignore[method-assign]
    after = films.get("/v1/policies/films").json()
    assert (after["definition"]["alpha"], after["items"]) == (7.0, 3)


def test_keeps_clusters_is_passed_on(films: TestClient) -> None:
    lineage = films.get("/v1/policies/films/graph").json()["lineage"]
    upload = {"url": "/v1/policies/films/graph", "content": small_graph().to_bytes()}
    films.put(**upload, params={"keeps_clusters": "true"}).raise_for_status()
    assert films.get("/v1/policies/films/graph").json()["lineage"] == lineage
    films.put(**upload).raise_for_status()
    assert films.get("/v1/policies/films/graph").json()["lineage"] > lineage


def test_a_batch_answers_each_request_by_itself(client: TestClient) -> None:
    client.put("/v1/policies/p", json=BANKER)
    good = {"policy": "p", "k": 2}
    requests = [good, {"policy": "gone"}, {"policy": "p", "user": {"weights": [1]}}, {"policy": "p", "k": "x"}, good]
    answer = client.post("/v1/recommend/batch", json={"requests": requests})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result.get("status") for result in results] == [None, 404, 422, 422, None]
    fields = [result.get("field") for result in results[1:4]]
    assert fields == ["requests[1].policy", "requests[2].user.weights", "requests[3].k"]
    assert len(results[4]["items"]) == 2


def test_bulk_feedback_has_a_verdict_for_each_row(client: TestClient, engine: MemoryEngine) -> None:
    client.put("/v1/policies/p", json=BANKER)
    decision_id = client.post("/v1/recommend", json={"policy": "p"}).json()["decision_id"]
    good = {"decision_id": decision_id, "item": "a", "reward": 0.5}
    rows = [good, {**good, "decision_id": "forged"}, {**good, "reward": "x"}, {**good, "item": "zzz"}, good]
    answer = client.post("/v1/feedback", json={"feedback": rows})
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert [result.get("reason") for result in results] == [None, "bad-token", "invalid", "unknown-item", None]
    assert results[2]["field"] == "feedback[2].reward"
    assert len(engine.rewards) == 2


def test_readyz_says_when_the_worker_cannot_recommend(client: TestClient, engine: MemoryEngine) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    engine.ready = False
    assert client.get("/readyz").status_code == 503
    assert client.get("/metrics").text == "croupier_up 1\n"


def test_every_answer_is_counted_under_its_routes_template(client: TestClient, engine: MemoryEngine) -> None:
    client.get("/v1/policies/one")
    client.get("/v1/policies/two/items/x/y")
    client.get("/nowhere")
    assert engine.counted == [
        ("/v1/policies/{name}", 404),
        ("/v1/policies/{name}/items/{id}", 404),
        ("unknown", 404),
    ]


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert all(found.startswith("/static/") for found in re.findall(r'src="([^"]*)"', page.text))
    assert "/v1/recommend/batch" in client.get("/docs").text
