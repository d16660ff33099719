"""From a request's bytes to checked structs; what is wrong becomes a problem that names the field."""

import json
import math
from typing import Any, TypeVar

import msgspec

from server import errors
from server.schemas import RecommendRequest, User

T = TypeVar("T")


def decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, at: str = "") -> T:
    """The body as the decoder's type. 400: no JSON; 422: JSON, but not this; `at` stands before the field's path."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise field_problem(error, at) from None
    except RecursionError:
        raise errors.malformed("The JSON is nested too deeply.") from None
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError
        where = not_finite(bytes(body))
        if where is not None:
            field = join(at, where)
            raise errors.invalid(field, "JSON has no NaN and no Infinity; send a finite number.") from None
        raise errors.malformed(f"The body is not JSON: {error}.") from None


def field_problem(error: msgspec.ValidationError, at: str = "") -> errors.Problem:
    """The problem of a msgspec error, whose text is "sentence - at `$.path`" or "sentence with `name`".

    >>> try:
    ...     msgspec.json.decode(b'{"policy": "films", "user": {"embedding": [1, "x"]}}', type=RecommendRequest)
    ... except msgspec.ValidationError as error:
    ...     field_problem(error).as_dict()["field"]
    'user.embedding[1]'
    """
    sentence, _, path = str(error).partition(" - at `")
    field = path.removeprefix("$").removesuffix("`").lstrip(".")
    for beginning in ("Object missing required field `", "Object contains unknown field `"):
        if sentence.startswith(beginning):
            field = join(field, sentence.removeprefix(beginning).removesuffix("`"))
            sentence += "; /docs lists the fields"
    return errors.invalid(join(at, field) or None, errors.as_sentence(sentence))


def join(at: str, field: str) -> str:
    """Two parts of a path.

    >>> join("requests[2]", "user.k"), join("", "k"), join("requests", "[1]")
    ('requests[2].user.k', 'k', 'requests[1]')
    """
    return at + field if not at or not field or field.startswith("[") else f"{at}.{field}"


class _NotFinite:
    """Stands where a body has NaN, Infinity or -Infinity."""


def not_finite(body: bytes) -> str | None:
    """The path of the first NaN or Infinity in a body that is JSON but for these; None where that is not its fault.

    >>> not_finite(b'{"user": {"embedding": [0.5, NaN]}}')
    'user.embedding[1]'
    """
    if b"NaN" not in body and b"Infinity" not in body:
        return None
    mark = _NotFinite()
    try:
        tree = json.loads(body, parse_constant=lambda _: mark)
    except (ValueError, RecursionError):
        return None
    return _find(tree, mark)


def _find(tree: Any, mark: _NotFinite) -> str | None:
    """Depth first, in order, without recursion: the path of `mark`."""
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        path, node = stack.pop()
        if node is mark:
            return path
        if isinstance(node, dict):
            stack.extend((join(path, str(key)), value) for key, value in reversed(node.items()))
        elif isinstance(node, list):
            stack.extend((f"{path}[{i}]", node[i]) for i in range(len(node) - 1, -1, -1))
    return None


def check_query(query: RecommendRequest, at: str = "") -> RecommendRequest:
    """What the types cannot say about a recommend request; raises a 422 problem."""
    user = query.user
    if user.embedding is not None or user.clusters is not None or user.weights is not None:
        _check_user(user, at)
    if query.candidates is not None and not query.candidates:
        raise errors.invalid(join(at, "candidates"), "candidates is empty; leave it out to choose among all items.")
    return query


def _check_user(user: User, at: str) -> None:
    if (user.embedding is not None) + (user.clusters is not None) + (user.segment is not None) > 1:
        raise errors.invalid(join(at, "user"), "Send one of embedding, clusters and segment, not several.")
    if user.weights is not None:
        if user.clusters is None:
            raise errors.invalid(join(at, "user.weights"), "weights go with clusters; an embedding has none.")
        if len(user.weights) != len(user.clusters):
            raise errors.invalid(
                join(at, "user.weights"),
                f"There are {len(user.weights)} weights for {len(user.clusters)} clusters; send one for each.",
            )
        total = sum(user.weights)
        if not (total > 0 and math.isfinite(total)):
            raise errors.invalid(join(at, "user.weights"), "The weights must have a positive, finite sum.")
    if user.clusters is not None and len(set(user.clusters)) < len(user.clusters):
        twice = next(i for i, c in enumerate(user.clusters) if c in user.clusters[:i])
        raise errors.invalid(join(at, f"user.clusters[{twice}]"), f"Cluster {user.clusters[twice]} is named twice.")
