"""The OpenAPI document is whole: everything has a description and an example, and the examples are true."""

import json
import time
from collections.abc import Iterator
from html import escape
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema_rs import Draft202012Validator, meta

from bandits.graph import Graph
from server.app import create_app
from server.error_table import KINDS
from server.openapi import GRAPH
from server.pages import docs
from server.settings import Settings
from tests.server.conftest import BANKER, FILMS, serving
from tests.server.documented import DOCUMENT

SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
PROBLEM = "application/problem+json"


def check(schema: dict[str, Any], value: Any, what: str) -> None:
    """The value is one that the schema allows."""
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    assert [error.message for error in validator.iter_errors(value)] == [], what


def examples_of(content: dict[str, Any]) -> dict[str, Any]:
    """Name -> value; never none."""
    if "example" in content:
        return {"": content["example"]}
    found = {}
    for name, each in content["examples"].items():
        if "$ref" in each:
            each = DOCUMENT["components"]["examples"][each["$ref"].rpartition("/")[2]]
        found[name] = each["value"]
    assert found
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_and_field_has_a_description_and_true_examples(name: str) -> None:
    assert SCHEMAS[name]["description"], name
    meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name]})
    for field, about in SCHEMAS[name]["properties"].items():
        assert about["description"], f"{name}.{field}"
        for example in about["examples"]:
            check(about, example, f"{name}.{field}")
        assert about["examples"], f"{name}.{field}"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_parameter_body_and_answer_has_true_examples(name: str) -> None:
    operation = OPERATIONS[name]
    for parameter in operation.get("parameters", ()):
        assert parameter["description"], parameter
        check(parameter["schema"], parameter["example"], f"{name}: {parameter['name']}")
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        if media == "application/octet-stream":  # no JSON: code that makes one, which runs below
            assert operation["requestBody"]["description"] == GRAPH
            continue
        for which, value in examples_of(content).items():
            check(content["schema"], value, f"{name}: {which}")
    assert min(operation["responses"]) < "300"
    for status, response in operation["responses"].items():
        assert response["description"]
        for media, content in response["content"].items():
            for which, value in examples_of(content).items():
                check(content["schema"], value, f"{name}, {status}: {which}")
                if media == PROBLEM:
                    assert value == KINDS[which].example.as_dict()
                    assert value["status"] == int(status)


def test_every_kind_of_error_is_in_the_document() -> None:
    assert set(DOCUMENT["components"]["examples"]) == set(KINDS)
    types = {kind.example.type for kind in KINDS.values()}
    assert set(SCHEMAS["ProblemDetails"]["properties"]["type"]["enum"]) == types
    used = {
        which
        for operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for which in response["content"].get(PROBLEM, {}).get("examples", ())
    }
    assert set(KINDS) - used == {"not-found", "method-not-allowed"}  # no operation's own; the description has them
    assert all(f"`{name}`" in DOCUMENT["info"]["description"] for name in set(KINDS) - used)


def test_the_page_for_people_has_every_example_and_error() -> None:
    page = docs(DOCUMENT)
    assert escape(GRAPH) in page
    for name, which, value in REQUESTS:
        assert escape(json.dumps(value, indent=2)) in page, f"{name}: {which}"
    for name, operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            for media, content in response["content"].items():
                for which, value in examples_of(content).items():
                    shown = f"<code>{which}</code>" if media == PROBLEM else escape(json.dumps(value, indent=2))
                    assert shown in page or escape(str(value)) in page, f"{name}, {status}"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real server with what the examples name: headlines, films of twenty clusters, the snapshot before-sale."""
    app = create_app(Settings(data=tmp_path_factory.mktemp("examples") / "data"))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as http:
        put(http, "/v1/policies/headlines", json=BANKER)
        put(http, "/v1/policies/films", json=FILMS)
        put(http, "/v1/policies/films/graph", content=films().to_bytes())
        put(http, "/v1/snapshots/before-sale")
        until = time.monotonic() + 60
        while not (all(each["complete"] for each in http.get("/v1/snapshots").json()["snapshots"]) and is_shown(http)):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield http


def put(http: httpx.Client, path: str, **body: Any) -> None:
    assert http.put(path, **body).status_code in (201, 202)


def is_shown(http: httpx.Client) -> bool:
    return http.get("/v1/policies/films/graph").status_code == 200


def films() -> Graph:
    """Twenty clusters in three dimensions; each may be shown four of the five films."""
    centroids = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    items = np.concatenate([np.delete(np.arange(5, dtype=np.uint32), c % 5) for c in range(20)])
    return Graph(centroids, np.arange(0, 81, 4), items, ("318", "296", "593", "b", "a"))


def place(name: str, which: str) -> str:
    """The path that an example goes to: of films where the example's name says so, a new one where it makes one."""
    method, path = name.split()
    policy = "films" if "films" in which else "headlines"
    if name == "PUT /v1/policies/{name}":
        policy = f"new-{which}"
    item = f"new-{which}" if method == "PUT" else "b"
    return path.replace("{name}", policy).replace("{id}", item).replace("{label}", "before-sale")


def with_decisions(http: httpx.Client, body: Any) -> Any:
    """The same rewards, of real decisions."""
    if "feedback" in body:
        return {"feedback": [with_decisions(http, row) for row in body["feedback"]]}
    ask = {"policy": "headlines", "candidates": [body["item"]]}
    return {**body, "decision_id": http.post("/v1/recommend", json=ask).json()["decision_id"]}


REQUESTS = [
    (name, which, value)
    for name, operation in OPERATIONS.items()
    if "json" in str(operation.get("requestBody", {}).get("content"))
    for which, value in examples_of(operation["requestBody"]["content"]["application/json"]).items()
]


@pytest.mark.parametrize(("name", "which", "body"), REQUESTS, ids=[f"{name}: {which}" for name, which, _ in REQUESTS])
def test_a_server_accepts_every_example_and_answers_what_the_document_says(
    name: str, which: str, body: Any, http: httpx.Client
) -> None:
    if name == "POST /v1/feedback":
        body = with_decisions(http, body)
    response = http.request(name.split()[0], place(name, which), json=body)
    assert response.is_success, response.text
    assert '"refused"' not in response.text
    assert '"urn:' not in response.text
    content = OPERATIONS[name]["responses"][str(response.status_code)]["content"]["application/json"]
    check(content["schema"], response.json(), name)


READS = [name for name in OPERATIONS if name.startswith("GET") and name != "GET /v1/live"]


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("policy", ["headlines", "films"])
def test_a_server_answers_reads_as_the_document_says(name: str, policy: str, http: httpx.Client) -> None:
    response = http.get(place(name, policy))
    media = response.headers["content-type"].partition(";")[0]
    content = OPERATIONS[name]["responses"][str(response.status_code)]["content"][media]
    check(content["schema"], response.text if media == "text/plain" else response.json(), name)
    if policy == "films":
        assert response.is_success, response.text


def test_an_event_of_the_live_stream_is_what_the_document_says(http: httpx.Client) -> None:
    with http.stream("GET", "/v1/live", params={"policy": "films"}) as response:
        (media,) = OPERATIONS["GET /v1/live"]["responses"]["200"]["content"]
        assert response.headers["content-type"].startswith(media)
        line = next(line for line in response.iter_lines() if line)
    assert http.get("/v1/live", params={"policy": "x" * 1001}).status_code == 422
    check({"$ref": "#/components/schemas/Live"}, httpx.Response(200, text=line.removeprefix("data: ")).json(), line)


def test_the_graph_that_the_description_makes_is_one(http: httpx.Client) -> None:
    made: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in GRAPH.splitlines() if line.startswith("    ")), made)
    put(http, "/v1/policies/small", json=FILMS)
    response = http.put("/v1/policies/small/graph", content=made["body"])
    assert response.status_code == 202, response.text
    assert Graph.from_bytes(made["body"]).version == response.json()["graph"]


def test_deletes_answer_what_the_document_says(http: httpx.Client) -> None:
    """Last: what they remove is gone."""
    for name in [name for name in OPERATIONS if name.startswith("DELETE")][::-1]:
        response = http.delete(place(name, ""))
        content = OPERATIONS[name]["responses"][str(response.status_code)]["content"]["application/json"]
        check(content["schema"], response.json(), name)
