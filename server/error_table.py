"""Every kind of error that a server answers with: an example, what it means, what to do. `server.errors` makes them.

The OpenAPI document has each as a named example, docs/reference/errors.md is made from this; tests compare the names
with the titles in the code.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from server import errors
from server.errors import Problem


class Kind(NamedTuple):
    """`example` has its type, title and status."""

    example: Problem
    means: str
    do: str


# The order is by status.
_ALL = (
    Kind(
        errors.malformed("The body is not JSON: Input data was truncated."),
        "The body is not JSON, or nested too deeply.",
        "Look at what the client sends; `detail` says where reading ended.",
    ),
    Kind(
        Problem(400, "Incomplete body", "The connection ended before the body did."),
        "The connection ended before all bytes that were announced had come.",
        "Send it again; see whether a proxy or a timeout between cuts requests short.",
    ),
    Kind(
        errors.unauthorized("Send the header Authorization: Bearer KEY."),
        "The server has keys, and the request has none, or one that the server does not know.",
        "Send `Authorization: Bearer KEY`; `croupier settings --new-key NAME:ROLES` makes one.",
    ),
    Kind(
        errors.forbidden("The key 'web' lacks the role admin; it has recommend."),
        "The key is known, but lacks the role that the route asks for.",
        "Use a key with the role; the settings say which roles each key has.",
    ),
    Kind(
        Problem(404, "Not found", "GET '/v1/nothing' is not here; /docs lists what is."),
        "No route has this path.",
        "Compare the path with `/docs`; ids in a path must be percent-encoded.",
    ),
    Kind(
        errors.unknown_policy("films"),
        "There is no policy of that name, or the one of a decision has been deleted.",
        "GET `/v1/policies` lists them. Do not send the rewards of a deleted policy again.",
    ),
    Kind(
        errors.unknown_item("headlines", "d"),
        "The policy has no such item; for a reward: it is not one of the decision's items.",
        "GET `/v1/policies/NAME/arms` lists the items. Reward only what the decision showed.",
    ),
    Kind(
        Problem(404, "Unknown segment", "Policy 'headlines' has no bank for segment 'new' of its own.", "segment"),
        "Nobody of that segment has been served yet, or it shares the bank of the segments beyond `max_segments`.",
        'Leave `segment` out to see the bank of "all".',
    ),
    Kind(
        errors.unknown_snapshot("before-sale"),
        "There is no snapshot with that label.",
        "GET `/v1/snapshots` lists them.",
    ),
    Kind(
        Problem(405, "Method not allowed", "'/v1/recommend' takes POST, not GET."),
        "The path exists, but not with this method.",
        "The header `Allow` names the methods.",
    ),
    Kind(
        errors.no_graph("films"),
        "A diag-linucb policy chooses from its graph, and has none yet.",
        "PUT one to `/v1/policies/NAME/graph`; `croupier graph build` makes it.",
    ),
    Kind(
        errors.no_arms("headlines"),
        "All items of the policy are paused or removed.",
        "Add or resume one: PUT `/v1/policies/NAME/items/ID`.",
    ),
    Kind(
        errors.conflict("Policy 'headlines' is at version 9, not at 7: read it and change it again."),
        "A change that does not fit what is there: somebody else changed the policy meanwhile, another algorithm, a "
        "label that is taken, a snapshot that is not complete.",
        "Read what is there, then decide: send the change again, or another one.",
    ),
    Kind(
        errors.too_large(4 << 20),
        "The body is larger than the setting `max_body_bytes` (of a graph: `max_graph_bytes`).",
        "Send less at once, or raise the setting.",
    ),
    Kind(
        Problem(
            415,
            "Unsupported media type",
            "The body says 'text/plain'; send the header Content-Type: application/json.",
        ),
        "The body does not say that it is JSON; or a graph says that it is text.",
        "Send `Content-Type: application/json`; for a graph `application/octet-stream`.",
    ),
    Kind(
        errors.invalid("user.embedding[3]", "Expected `float`, got `str`."),
        "JSON, but a field is missing, unknown, of another type, out of range, or does not fit the policy.",
        "`field` says which one and `detail` what would do.",
    ),
    Kind(
        errors.refused_feedback("bad-token", "It was not signed by this server, or was altered.", "decision_id"),
        "The decision id was not made by this server, or was altered.",
        "Send the id as it came, whole: it may be longer than a column of a table that keeps it.",
    ),
    Kind(
        errors.refused_feedback("out-of-range", "|reward| is larger than 1e300.", "reward"),
        "The reward's magnitude is larger than 1e300.",
        "Send rewards on a usual scale.",
    ),
    Kind(
        errors.refused_feedback("missing-event-id", "This policy sums rewards: send an event_id.", "event_id"),
        "The policy sums rewards, so each needs an id of its own, and this one has none.",
        "Send an `event_id` that is the same whenever the same event is sent again.",
    ),
    Kind(
        errors.too_many_requests(1),
        "The caller has used up its `rate_limit_per_s` in this worker.",
        "Wait as long as `Retry-After` says; send rewards in bulk.",
    ),
    Kind(
        errors.head_too_large(64 << 10),
        "The request line and the headers together are too large.",
        "Send fewer or shorter headers; a cookie is the usual cause.",
    ),
    Kind(
        errors.internal(),
        "A mistake of the server.",
        "Its log has the traceback: please report it. Whether the request was carried out is not known.",
    ),
    Kind(
        errors.unavailable("The event log cannot be written."),
        "The log, the store or the agent is away, or there is no room. Nothing was done.",
        "Send the same request again after `Retry-After`; `/readyz` says what is away.",
    ),
    Kind(
        errors.not_ready(),
        "This worker has not loaded its parameters yet.",
        "Wait until `/readyz` answers 200; send requests only to servers that are ready.",
    ),
    Kind(
        errors.in_doubt("The agent, which writes the event log, ended meanwhile."),
        "The request was handed on and no answer came: it may have been carried out.",
        "Send a reward again: it counts once. Of a change, read first whether it is there.",
    ),
)


def name_of(problem: Problem) -> str:
    """The last part of its type.

    >>> name_of(errors.no_graph("films"))
    'no-graph-yet'
    """
    return problem.type.rpartition(":")[2]


KINDS = {name_of(kind.example): kind for kind in _ALL}


def markdown() -> str:
    """docs/reference/errors.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Errors"
    yield ""
    yield "Every error is a problem detail (RFC 9457, `application/problem+json`). Programs compare `type`, which is"
    yield "`urn:croupier:problem:` and one of the names below; `detail` is a sentence for people, `field` says where,"
    yield "and `retry_after` (also the header `Retry-After`) when to try again, in seconds. Rows of a bulk are refused"
    yield "one by one, with the `reason` in their verdict: [the HTTP API](../http.md#feedback)."
    yield ""
    yield "`python -m server.reference` makes this page from `server/error_table.py`; a test compares them."
    for name, kind in KINDS.items():
        example = msgspec.json.format(kind.example.body(), indent=2).decode()
        yield from ("", f"## {name}", "", f"Status {kind.example.status}. {kind.means}", "", kind.do)
        yield from ("", "```json", example, "```")
