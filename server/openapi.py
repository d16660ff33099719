"""The OpenAPI document: FastAPI's paths and parameters, with bodies, answers and errors from the msgspec types.

Each field has its description and example where it is declared. An answer's example is made of those of its fields, so
that there is one place for each; a request's examples stand beside its route, and a test sends them to a server.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server import errors
from server.error_table import KINDS
from server.routes.common import JSON, NPZ, Doc, Events, Text
from server.schemas import Decision, ProblemDetails

DESCRIPTION = """\
A real-time bandit recommendation server. Ask for items, show them, send back what the world answered: each reward is
learned exactly once, whatever its delay, and seen by the next choice within a tenth of a second.

Errors are problem details (RFC 9457, `application/problem+json`): `type` for programs, `detail` for people, `field` for
the place. Any path may be answered with `not-found` and `method-not-allowed`. Keys go into the header
`Authorization: Bearer KEY`; a server on loopback may run without.
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
PATH_PARAMETERS = {
    "name": ("The policy's name.", "headlines"),
    "id": ("The item's id; a slash may stay, what else a URL cannot hold is percent-encoded.", "b"),
    "label": ("The snapshot's label.", "before-sale"),
}
GRAPH = """\
An npz file of the arrays centroids (f4, clusters x dimensions), indptr and items (the items of cluster c are
items[indptr[c]:indptr[c+1]]) and ids (texts). `croupier graph build` writes one; so does this:

    import io, numpy
    file = io.BytesIO()
    numpy.savez(file, centroids=numpy.float32([[1, 0], [0, 1]]), indptr=numpy.array([0, 2, 4]),
                items=numpy.uint32([0, 1, 1, 2]), ids=numpy.array(["318", "296", "593"]))
    body = file.getvalue()
"""
ANSWERS = {
    200: "Done.",
    201: "Made, and shown by every worker of this host.",
    202: "Accepted durably.",
    503: "Not ready.",
}
# What members of an example are where the status says so.
AT_STATUS: dict[int, dict[str, Any]] = {202: {"shown": False}, 503: {"ready": False, "draining": True}}
TITLES = {
    400: "The body cannot be read.",
    401: "No key, or one that is not known.",
    403: "The key lacks the role.",
    404: "No such policy, item, segment or snapshot.",
    409: "It does not fit what is there.",
    413: "The body is too large.",
    415: "The body is of another media type.",
    422: "A field cannot be.",
    429: "The caller's rate limit is used up.",
    431: "The headers are too large.",
    500: "A mistake of the server.",
    503: "Not now.",
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
    components["ProblemDetails"]["properties"]["type"]["enum"] = [kind.example.type for kind in KINDS.values()]
    for schema in components.values():
        for name, field in schema.get("properties", {}).items():
            _describe(name, field, components)
    result["components"] = {
        "schemas": components,
        "examples": {
            name: {"summary": kind.means, "description": kind.do, "value": kind.example.as_dict()}
            for name, kind in KINDS.items()
        },
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
    }
    for route, doc in docs:
        for method in route.methods or ():
            _complete(result["paths"][route.path_format][method.lower()], doc, by_type, components)
    return result


def doc_of(route: APIRoute) -> Doc:
    doc: Doc = route.endpoint.doc  # type: ignore[attr-defined]
    return doc


def problems_of(doc: Doc) -> list[str]:
    """Names of all problems that a route may answer with, in the table's order."""
    found = {*doc.problems, "headers-too-large", "internal-error"}
    if not doc.open:
        found |= {"unauthorized", "too-many-requests", "not-ready"}
    if doc.role is not None:
        found.add("forbidden")
    if doc.body is not None:
        found |= {"incomplete-body", "body-too-large", "unsupported-media-type"}
        if doc.body != NPZ:
            found |= {"malformed-json", "invalid-field"}
    return [name for name in KINDS if name in found]


def example_of(schema: dict[str, Any], components: dict[str, Any]) -> Any:
    """The schema's first example, or one that is made of those of its parts."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return example_of(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return example_of(schema["anyOf"][0], components)
    if "properties" in schema:
        return {name: example_of(field, components) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [example_of(schema["items"], components)]
    raise KeyError(f"no example in {schema}")


def _describe(name: str, field: dict[str, Any], components: dict[str, Any]) -> None:
    """Puts description and example beside a field's type, not below "or null", and completes them."""
    if name == "algorithm" and len(field.get("enum", ())) == 1:
        field |= {"description": "Which algorithm this is.", "examples": field["enum"]}
    for part in field.get("anyOf", ()):
        for key in ("description", "examples"):
            if key in part and key not in field:
                field[key] = part.pop(key)
    if "examples" not in field:
        field["examples"] = [example_of(field, components)]


def _types(doc: Doc) -> list[Any]:
    bodies = doc.body if isinstance(doc.body, tuple) else (doc.body,)
    answers = [kind.of if isinstance(kind, Events) else kind for kind in doc.answers.values()]
    return [kind for kind in (*bodies, *answers) if kind is not None and not isinstance(kind, str | Text)]


def _schema(kinds: Any, by_type: dict[int, Any]) -> dict[str, Any]:
    schemas = [by_type[id(kind)] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _body(doc: Doc, by_type: dict[int, Any]) -> dict[str, Any]:
    if doc.body == NPZ:
        schema = {"type": "string", "format": "binary"}
        return {"required": True, "description": GRAPH, "content": {NPZ: {"schema": schema}}}
    examples = {name: {"value": value} for name, value in doc.examples.items()}
    return {"required": True, "content": {JSON: {"schema": _schema(doc.body, by_type), "examples": examples}}}


def _answer(status: int, kind: Any, by_type: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, Text):
        return {"text/plain": {"schema": {"type": "string"}, "example": kind.example}}
    schema = _schema(kind.of if isinstance(kind, Events) else kind, by_type)
    example = example_of(schema, components)
    if isinstance(kind, Events):
        event = f"data: {msgspec.json.encode(example).decode()}\n\n"
        about = f"Of each event `data` is one object {schema['$ref'].rpartition('/')[2]}."
        return {"text/event-stream": {"schema": {"type": "string", "description": about}, "example": event}}
    example = {name: AT_STATUS.get(status, {}).get(name, value) for name, value in example.items()}
    return {JSON: {"schema": schema, "example": example}}


def _complete(operation: dict[str, Any], doc: Doc, by_type: dict[int, Any], components: dict[str, Any]) -> None:
    if not doc.open:
        operation["security"] = [{"key": []}, {}]
        operation["description"] += f"\n\nRole: {doc.role or 'any'}."
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["description"], parameter["example"] = PATH_PARAMETERS[parameter["name"]]
        else:
            parameter["example"] = parameter["schema"]["default"]
    if doc.body is not None:
        operation["requestBody"] = _body(doc, by_type)
    operation["responses"] = {
        str(status): {"description": ANSWERS[status], "content": _answer(status, kind, by_type, components)}
        for status, kind in doc.answers.items()
    }
    for name in problems_of(doc):
        status = KINDS[name].example.status
        response = operation["responses"].setdefault(str(status), {"description": TITLES[status], "content": {}})
        content = response["content"].setdefault(errors.MEDIA_TYPE, {"schema": PROBLEM_REF, "examples": {}})
        content["examples"][name] = {"$ref": f"#/components/examples/{name}"}
