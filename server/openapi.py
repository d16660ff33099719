"""The OpenAPI document: FastAPI's paths and parameters, with bodies, answers and errors from the msgspec types."""

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server import errors
from server.routes.common import JSON, Doc
from server.schemas import Decision, ProblemDetails

DESCRIPTION = """\
A real-time bandit recommendation server. Ask for items, show them, send back what the world answered: each reward is
learned exactly once, whatever its delay, and seen by the next choice within a tenth of a second.

Errors are problem details (RFC 9457, `application/problem+json`): `type` for programs, `detail` for people, `field` for
the place. Keys go into the header `Authorization: Bearer KEY`; a server on loopback may run without.
"""
TAGS = [
    {"name": "recommend", "description": "Which items to show."},
    {"name": "feedback", "description": "What the world answered."},
    {"name": "policies", "description": "How items are chosen and rewards learned."},
    {"name": "items", "description": "What there is to choose from, and what is known about it."},
    {"name": "graph", "description": "Which items a diag-linucb policy shows to which users."},
    {"name": "snapshots", "description": "Keep what has been learned, and go back to it."},
    {"name": "operations", "description": "Health and metrics."},
]
REF = "#/components/schemas/{name}"
PROBLEM_REF = {"$ref": REF.format(name="ProblemDetails")}
# One example for each status a route may answer with; the test of bad input makes each of them happen.
PROBLEMS: dict[int, tuple[str, errors.Problem]] = {
    400: ("The body is not JSON.", errors.malformed("The body is not JSON: Input data was truncated.")),
    401: ("No key, or one that is not known.", errors.unauthorized("Send the header Authorization: Bearer KEY.")),
    403: ("The key lacks the role.", errors.forbidden("The key 'web' lacks the role admin; it has recommend.")),
    404: ("No such policy, item, segment or path.", errors.unknown_policy("films")),
    409: ("It does not fit what is there.", errors.no_graph("films")),
    413: ("The body is too large.", errors.too_large(4 << 20)),
    415: (
        "The body is of another media type.",
        errors.Problem(415, "Unsupported media type", "The body does not say what it is; send the header ..."),
    ),
    422: ("A field cannot be.", errors.invalid("user.embedding[3]", "Expected `float`, got `str`.")),
    429: ("The caller's rate limit is used up.", errors.too_many_requests(1)),
    503: ("Not now; nothing was half-done.", errors.unavailable("The event log cannot be written.")),
}


def document(routes: Iterable[BaseRoute], title: str, version: str) -> dict[str, Any]:
    """The whole document, as JSON-ready dicts."""
    ours = [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]
    result = get_openapi(title=title, version=version, description=DESCRIPTION, routes=ours, tags=TAGS)
    docs = [(route, doc_of(route)) for route in ours]
    types = list({id(kind): kind for _, doc in docs for kind in _types(doc)}.values())
    schemas, components = msgspec.json.schema_components([*types, Decision, ProblemDetails], ref_template=REF)
    by_type = {id(kind): schema for kind, schema in zip(types, schemas, strict=False)}
    results = components["BatchAnswer"]["properties"]["results"]
    results["items"] = {"anyOf": [{"$ref": REF.format(name="Decision")}, PROBLEM_REF]}
    result["components"] = {
        "schemas": components,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
    }
    for route, doc in docs:
        for method in route.methods or ():
            _complete(result["paths"][route.path_format][method.lower()], doc, by_type)
    return result


def doc_of(route: APIRoute) -> Doc:
    doc: Doc = route.endpoint.doc  # type: ignore[attr-defined]
    return doc


def _types(doc: Doc) -> list[Any]:
    bodies = doc.body if isinstance(doc.body, tuple) else (doc.body,)
    return [kind for kind in (*bodies, *doc.answers.values()) if kind is not None and not isinstance(kind, str)]


def _content(kinds: Any, by_type: dict[int, Any], example: Any = None) -> dict[str, Any]:
    if isinstance(kinds, str):
        return {
            kinds: {"schema": {"type": "string", "format": "binary"} if "text" not in kinds else {"type": "string"}}
        }
    schemas = [by_type[id(kind)] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    content: dict[str, Any] = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if example is not None:
        content["example"] = example
    return {JSON: content}


def _complete(operation: dict[str, Any], doc: Doc, by_type: dict[int, Any]) -> None:
    if not doc.open:
        operation["security"] = [{"key": []}, {}]
        operation["description"] += f"\n\nRole: {doc.role or 'any'}."
    if doc.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(doc.body, by_type, doc.example)}
    operation["responses"] = {
        str(status): {"description": ANSWERS[status], "content": _content(kind, by_type)}
        for status, kind in doc.answers.items()
    }
    for status in doc.problems:
        description, example = PROBLEMS[status]
        operation["responses"][str(status)] = {
            "description": description,
            "content": {errors.MEDIA_TYPE: {"schema": PROBLEM_REF, "example": example.as_dict()}},
        }


ANSWERS = {
    200: "Done.",
    201: "Made, and shown by every worker of this host.",
    202: "Accepted durably.",
    503: "Not ready.",
}
