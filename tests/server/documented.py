"""Whether an answer is one that the OpenAPI document has for its operation."""

import re
from typing import Any

import httpx

from server.app import create_app
from server.settings import Settings

DOCUMENT = create_app(Settings()).openapi()
ANYWHERE = {"not-found", "method-not-allowed"}
PATHS = [
    (re.compile(re.sub(r"\{id\}", "(.*)", re.sub(r"\{(name|label)\}", "([^/]*)", path))), methods)
    for path, methods in DOCUMENT["paths"].items()
]


def operation(method: str, path: str) -> dict[str, Any] | None:
    """The operation that a request goes to; None for a path or method that is not in the document."""
    found = next((methods for pattern, methods in PATHS if pattern.fullmatch(path)), {})
    return found.get(method.lower())


def check_problem(response: httpx.Response) -> None:
    """A hook of httpx: every error is one of its operation's."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return
    there = operation(response.request.method, response.request.url.path)
    response.read()
    body = response.json()
    name = body["type"].rpartition(":")[2]
    if there is None or name in ANYWHERE:
        return
    content = there["responses"].get(str(body["status"]), {}).get("content", {})
    named = content.get("application/problem+json", {}).get("examples", ())
    assert name in named, f"{response.request.method} {response.request.url.path}: {name} is not in the document"
