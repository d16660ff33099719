"""Single items of a graph through a server with real files: added, paused, removed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.settings import Settings
from tests.server.conftest import FILMS, TestClient
from tests.server.test_app import small_graph


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    data: Path = tmp_path_factory.mktemp("items") / "data"
    with TestClient(create_app(Settings(data=data, flush_ms=1))) as client:
        client.put("/v1/policies/films", json=FILMS).raise_for_status()
        client.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
        yield client


@pytest.mark.parametrize(
    ("item", "body"),
    [
        ("by cluster", {"clusters": [1]}),
        ("by embedding", {"embedding": [0.5, 2]}),
        ("of zeros", {"embedding": [0, 0]}),
        ("of huge numbers", {"embedding": [1e308, -1e308]}),
        ("paused", {"clusters": [0], "paused": True}),
    ],
)
def test_an_item_is_added_and_shown_and_removed(films: TestClient, item: str, body: dict[str, Any]) -> None:
    added = films.put(f"/v1/policies/films/items/{item}", json=body)
    assert (added.status_code, added.json()["shown"]) == (201, True), added.text
    found = films.get(f"/v1/policies/films/items/{item}").json()
    assert found["paused"] is body.get("paused", False)
    query = {"policy": "films", "user": {"clusters": found["clusters"]}, "candidates": [item]}
    if not found["paused"]:
        assert [each["id"] for each in films.post("/v1/recommend", json=query).json()["items"]] == [item]
    else:
        assert films.post("/v1/recommend", json=query).status_code == 422
        assert films.patch(f"/v1/policies/films/items/{item}", json={"paused": False}).status_code == 200
        assert films.post("/v1/recommend", json=query).status_code == 200
    assert films.delete(f"/v1/policies/films/items/{item}").status_code == 200
    assert films.post("/v1/recommend", json=query).status_code == 422
    assert films.get(f"/v1/policies/films/items/{item}").status_code == 404


def test_what_is_no_item_can_neither_be_paused_nor_removed(films: TestClient) -> None:
    before = films.get("/v1/policies/films").json()
    assert films.patch("/v1/policies/films/items/none", json={"paused": True}).status_code == 404
    assert films.delete("/v1/policies/films/items/none").status_code == 404
    assert films.get("/v1/policies/films").json() == before
