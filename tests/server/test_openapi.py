"""The OpenAPI document: complete, and nothing that follows it, or nearly, makes a 500."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from server.app import create_app
from server.definitions import ABOUT, PARAMETERS
from server.openapi import PROBLEMS
from server.settings import Settings
from tests.server.memory import MemoryEngine
from tests.server.test_app import small_graph

DOCUMENT = create_app(Settings()).openapi()


def prepared() -> Any:
    """An app whose engine has a policy of each kind, so that generated requests get behind the 404."""
    import asyncio

    from streaming.control import GraphPut, PolicyPut, PolicySpec

    engine = MemoryEngine()

    async def fill() -> None:
        await engine.control(PolicyPut("headlines", PolicySpec("banker"), ["a", "b", "c"]))
        await engine.control(PolicyPut("films", PolicySpec("diag-linucb")))
        await engine.control(GraphPut("films", await engine.put_blob(small_graph().to_bytes())))

    asyncio.run(fill())
    return create_app(Settings(), engine)


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{method} {path}", o) for path, methods in DOCUMENT["paths"].items() for method, o in methods.items()]


@pytest.mark.parametrize(("name", "operation"), operations())
def test_every_operation_is_described(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"], name
    assert operation["responses"], name
    for status, response in operation["responses"].items():
        for media, content in response["content"].items():
            assert content["schema"], (name, status)
            if media == "application/problem+json":
                assert content["example"]["status"] == int(status)
    for parameter in operation.get("parameters", []):
        assert parameter["in"] == "path" or parameter["description"]
    if "json" in str(operation.get("requestBody", {}).get("content")):
        assert operation["requestBody"]["content"]["application/json"]["example"], name


def fields() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, about in schema.get("properties", {}).items():
            found.append((f"{name}.{field}", about))
    return found


def test_every_field_has_a_description_and_an_example() -> None:
    for name, about in fields():
        if name.endswith(".algorithm"):  # the tag: its one value says all
            continue
        text = json.dumps(about)
        if '"$ref"' in text and "description" not in text:  # described where it is defined
            continue
        assert "description" in text, name
        if '"enum"' not in text and '"$ref"' not in text and '"boolean"' not in text:
            assert "examples" in text, name


def test_every_parameter_of_every_algorithm_is_described() -> None:
    assert set(ABOUT) == {name for parameters in PARAMETERS.values() for name in parameters}


def test_problem_examples_are_of_their_own_status() -> None:
    assert all(problem.status == status for status, (_, problem) in PROBLEMS.items())


schema = schemathesis.openapi.from_asgi("/openapi.json", prepared())


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_a_500(case: Any) -> None:
    known = ("headlines", "films", None)[len(repr(case.body)) % 3]
    if known and "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = known
    if known and isinstance(case.body, dict) and "policy" in case.body:
        case.body["policy"] = known
    response = case.call()
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        body = json.loads(response.content)
        assert response.headers["content-type"][0] == "application/problem+json", body
        assert body["status"] == response.status_code
