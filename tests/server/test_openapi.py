"""The OpenAPI document: complete, and nothing that follows it, or nearly, makes a 500."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from server.app import create_app
from server.definitions import ABOUT, PARAMETERS
from server.error_table import KINDS
from server.schemas import RefusalReason
from server.settings import Settings
from tests.server.conftest import BANKER, FILMS, serving
from tests.server.documented import ANYWHERE, DOCUMENT
from tests.server.test_app import small_graph


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{method} {path}", o) for path, methods in DOCUMENT["paths"].items() for method, o in methods.items()]


@pytest.mark.parametrize(("name", "operation"), operations())
def test_every_operation_is_described(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"], name


def test_every_parameter_of_every_algorithm_is_described() -> None:
    assert set(ABOUT) == {name for parameters in PARAMETERS.values() for name in parameters}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, log, learner and all, that has a policy of each kind."""
    app = create_app(Settings(data=tmp_path_factory.mktemp("api") / "data"))
    with serving(app) as url, httpx.Client(base_url=url) as client:
        client.put("/v1/policies/headlines", json=BANKER).raise_for_status()
        client.put("/v1/policies/films", json=FILMS).raise_for_status()
        client.put("/v1/policies/films/graph", content=small_graph().to_bytes()).raise_for_status()
        yield url


# Not the live stream, each answer of which takes a minute; test_openapi_examples.py reads it.
schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path="/v1/live")


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_a_500(case: Any, url: str) -> None:
    # Generated names are never those of the policies there are: two thirds of the cases get one of these.
    known = ("headlines", "films", None)[len(repr(case.body)) % 3]
    if known and "name" in (case.path_parameters or {}) and case.method != "DELETE":
        case.path_parameters["name"] = known
    if known and isinstance(case.body, dict) and "policy" in case.body:
        case.body["policy"] = known
    response = case.call(base_url=url)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        body = json.loads(response.content)
        assert response.headers["content-type"][0] == "application/problem+json", body
        assert body["status"] == response.status_code
        name = body["type"].rpartition(":")[2]
        if name not in ANYWHERE:
            content = DOCUMENT["paths"][case.path][case.method.lower()]["responses"][str(body["status"])]["content"]
            assert name in content["application/problem+json"]["examples"]


def test_the_page_of_the_documentation_has_every_endpoint_with_its_role_and_statuses() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    for name, operation in operations():
        method, path = name.split()
        (line,) = [line for line in page.splitlines() if f"`{method.upper()} {path}`" in line]
        if "Role: " in operation["description"]:
            role = operation["description"].split("Role: ")[1].rstrip(".")
            assert role in line.split("|")[2], line
        for status in operation["responses"]:
            assert status in line or status >= "400", (line, status)
    for reason in get_args(RefusalReason):
        assert f"`{reason}`" in page


def test_the_page_has_every_type_of_problem_beside_its_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text().partition("## Errors")[2]
    for name, kind in KINDS.items():
        (line,) = [line for line in page.splitlines() if f"`{name}`" in line]
        assert f"| {kind.example.status}" in line
