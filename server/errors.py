"""Every error that leaves the server: RFC 9457 problem details that name the field and the remedy.

    {"type": "urn:croupier:problem:invalid-field", "title": "Invalid field", "status": 422,
     "detail": "Expected `float`, got `str`.", "field": "user.embedding[3]"}

`type` is stable and made from the title, so programs compare it; `detail` is a sentence for people. One function
below for each kind of error, so that the same mistake reads the same wherever it is found.
"""

import msgspec

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error, raised anywhere below a route.

    `field` is the path into the request's body (`user.embedding[3]`), or the name of a path or query parameter.
    `retry_after` is in seconds and becomes the header of that name.

    >>> unknown_policy("films").as_dict()["type"]
    'urn:croupier:problem:unknown-policy'
    """

    def __init__(
        self, status: int, title: str, detail: str, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.field = field
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        return type_of(self.title)

    def as_dict(self) -> dict[str, str | int | float]:
        """The body; absent members are left out."""
        body: dict[str, str | int | float] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return body

    def body(self) -> bytes:
        return msgspec.json.encode(self.as_dict())


def type_of(title: str) -> str:
    return "urn:croupier:problem:" + title.lower().replace(" ", "-")


def malformed(detail: str) -> Problem:
    return Problem(400, "Malformed JSON", detail)


def invalid(field: str | None, detail: str) -> Problem:
    """A value that cannot be: wrong type, wrong dimension, out of range, not finite."""
    return Problem(422, "Invalid field", detail, field)


def unknown_policy(name: str, field: str = "policy") -> Problem:
    return Problem(404, "Unknown policy", f"There is no policy {shown(name)}; GET /v1/policies lists them.", field)


def unknown_item(policy: str, item: str, field: str = "item") -> Problem:
    detail = f"Policy {shown(policy)} has no item {shown(item)}; GET /v1/policies/{policy}/arms lists them."
    return Problem(404, "Unknown item", detail, field)


def unknown_snapshot(label: str) -> Problem:
    detail = f"There is no snapshot {shown(label)}; GET /v1/snapshots lists them."
    return Problem(404, "Unknown snapshot", detail, "label")


def no_graph(policy: str) -> Problem:
    detail = f"Policy {shown(policy)} has no graph yet; PUT one (npz) to /v1/policies/{policy}/graph."
    return Problem(409, "No graph yet", detail, "policy")


def no_arms(policy: str) -> Problem:
    detail = f"Policy {shown(policy)} has no arm that is not paused; PUT one to /v1/policies/{policy}/items/{{id}}."
    return Problem(409, "No arms yet", detail, "policy")


def k_too_large(k: int, available: int) -> Problem:
    return invalid("k", f"k is {k}, but the policy has only {available} items that are not paused.")


def conflict(detail: str) -> Problem:
    return Problem(409, "Conflict", detail)


def refused_feedback(reason: str, detail: str, field: str | None) -> Problem:
    """A single reward that was refused; the reason becomes the type (`urn:croupier:problem:bad-token`)."""
    if reason == "invalid":
        return invalid(field, detail)
    status = 404 if reason.startswith("unknown-") else 422
    return Problem(status, reason.replace("-", " ").capitalize(), detail, field)


def refused_control(field: str, sentence: str) -> Problem:
    """A change that is sound by itself but not now: `field` and `sentence` are a ControlError's."""
    if field in ("policy", "item") and sentence.startswith(("there is no", "policy")):
        return Problem(404, f"Unknown {field}", as_sentence(sentence), field)
    return Problem(409, "Conflict", as_sentence(sentence), field)


def unauthorized(detail: str) -> Problem:
    return Problem(401, "Unauthorized", detail)


def forbidden(detail: str) -> Problem:
    return Problem(403, "Forbidden", detail)


def too_large(limit_bytes: int) -> Problem:
    detail = f"The body is larger than the {limit_bytes:,} bytes allowed here; send less at once, or raise the setting."
    return Problem(413, "Body too large", detail)


def head_too_large(limit_bytes: int) -> Problem:
    detail = f"The request line and headers are larger than the {limit_bytes:,} bytes allowed here."
    return Problem(431, "Headers too large", detail)


def too_many_requests(retry_after_s: float) -> Problem:
    detail = f"This caller's rate limit is used up; try again in {retry_after_s:g} s."
    return Problem(429, "Too many requests", detail, retry_after=retry_after_s)


def unavailable(what: str, retry_after_s: float = 1.0) -> Problem:
    """The log or the store is away; nothing was half-done and the same request may be sent again."""
    detail = f"{what} Nothing was done; send the same request again."
    return Problem(503, "Unavailable", detail, retry_after=retry_after_s)


def no_room(needed_bytes: int, free_bytes: int) -> Problem:
    """A graph that is sound, and that this host has no place to serve from."""
    what = (
        f"To serve this graph takes {needed_bytes / 1e6:,.1f} MB, and neither the run folder nor the data folder has "
        f"room for more than {free_bytes / 1e6:,.1f} MB: make some."
    )
    return unavailable(what, 30.0)


def in_doubt(what: str, retry_after_s: float = 1.0) -> Problem:
    """The request was handed on, and no answer will come. A reward that is sent again counts once all the same."""
    detail = (
        f"{what} The request may have been carried out; send it again: a reward that is there already is a duplicate."
    )
    return Problem(503, "In doubt", detail, retry_after=retry_after_s)


def not_ready() -> Problem:
    detail = "This worker has not loaded its parameters yet; /readyz says when it has."
    return Problem(503, "Not ready", detail, retry_after=1.0)


def internal() -> Problem:
    """Our own mistake; the traceback is in the server's log, never in the answer."""
    return Problem(500, "Internal error", "This is a mistake of the server; its log says more.")


def as_sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def shown(value: str) -> str:
    """A caller's string as it may appear in a sentence: quoted, and cut where it is long."""
    return repr(value if len(value) <= 80 else value[:77] + "...")
