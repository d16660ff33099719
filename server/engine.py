"""What the routes call: `Engine`, and the structs that go in and out of it.

The routes parse, check the role, call one method, answer. Everything that needs parameters, the log or the store is
behind this protocol; in production a worker's engine is the replica in shared memory and a socket to the host's agent.

    method        blocks on                               refuses with (server.errors)
    recommend     nothing: replica and kernel, inline     404, 409 no graph or arms, 422, 503 before the first load
    feedback      one durable append by the agent         503 (whole call); verdicts for single rows
    control       append + shown by every worker, <= 2 s  404, 409, 422, 503
    put_blob      one write to the store                  503
    others        the agent at most                       404, 503

Checked before the engine is called (so it need not repeat it): JSON types; all numbers finite; 1 <= k <= 255; strings
not longer than 1,000 characters; at most one form of `user`; `weights` as long as `clusters`, non-negative, with a
positive sum; at most 255 clusters, none twice. Left to the engine, because it takes the policy to know:

- unknown policy: `errors.unknown_policy(name)`
- embedding's length is not the graph's dim: `errors.invalid("user.embedding", ...)`; a cluster number out of range:
  `errors.invalid("user.clusters[i]", ...)`; diag-linucb without embedding or clusters: field `user`; an arms policy
  that gets an embedding: field `user.embedding` (or `user.clusters`)
- a mode the policy does not have: field `mode`
- k larger than the items that are not paused: `errors.k_too_large(k, available)`; exclude, candidates and the context's
  own edges may leave fewer than k items, then that many come back
- `exclude`: ids that the policy does not have are ignored (a history holds items long gone). `candidates`: likewise,
  but an empty list, or one without a single known and unpaused item, is `errors.invalid("candidates", ...)`; when
  `exclude` leaves nothing, `errors.invalid("exclude", ...)`
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from bandits.graph import Graph
    from streaming.control import PolicySpec, Record

Mode = Literal["explore", "exploit", "thompson"]
K_MAX = 255  # the token's count of items is one byte
CLUSTERS_MAX = 255  # and so is its count of clusters


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Who asks: `embedding` (dim,), or `clusters` (m,) with `weights` (m,), or a `segment`; nothing means segment "all".

    Weights need no scale: they are divided by their sum. Without weights all clusters count the same.
    """

    embedding: list[float] | None = None
    clusters: list[int] | None = None
    weights: list[float] | None = None
    segment: str | None = None


ALL = User()


class RecommendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`k` items of `policy` for `user`. `mode` None leaves it to the policy."""

    policy: str
    user: User = ALL
    k: int = 1
    exclude: list[str] | None = None
    candidates: list[str] | None = None
    mode: Mode | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One place of the slate, best first. `propensity` is None where it has no exact value."""

    id: str
    score: float
    propensity: float | None


class Decision(msgspec.Struct, frozen=True, gc=False):
    """`version` is the policy's: the control number of its last change that this worker knows."""

    decision_id: str
    policy: str
    version: int
    items: list[Item]


class FeedbackRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What the world answered to one item of one decision. `event_id` is required where the policy sums."""

    decision_id: str
    item: str
    reward: float
    event_id: str | None = None


# Refusals before the log. What comes later (late, duplicate, ...) is an outcome, counted in the learner's commit.
RefusalReason = Literal[
    "bad-token",  # decision_id: not signed by this server, or altered
    "unknown-policy",  # decision_id: the policy was deleted
    "unknown-item",  # item: not one of the decision's items
    "out-of-range",  # reward: |reward| > 1e300; the policy's own min and max are an outcome, not a refusal
    "missing-event-id",  # event_id: the policy's aggregation is sum
    "invalid",  # the field named in `field` is missing, of another type, or unknown (found by the route)
]


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of one feedback row: accepted means durably in the log."""

    status: Literal["accepted", "refused"] = msgspec.field(default="accepted")
    reason: RefusalReason | None = None
    field: str | None = None
    detail: str | None = None


class GraphInfo(msgspec.Struct, frozen=True):
    """The graph in use: `version` is its content's hash, `lineage` the control number its cluster numbering began at."""

    version: str
    lineage: int
    clusters: int
    dim: int
    items: int
    edges: int


class PolicyInfo(msgspec.Struct, frozen=True):
    """A policy as this host shows it. `number` is the control number that created it, `version` that of its last change.

    `graph` is None for the K-armed policies and before the first upload.
    """

    name: str
    number: int
    version: int
    definition: "PolicySpec"
    items: int
    paused: int
    graph: GraphInfo | None = None


class ItemInfo(msgspec.Struct, frozen=True):
    """One item: `number` is never reused; `clusters` are those it has edges to (None for the K-armed policies)."""

    id: str
    number: int
    paused: bool
    clusters: list[int] | None = None


class Arm(msgspec.Struct, frozen=True):
    """One arm's estimates. `probability` (to be the draw) and `width` are None where the policy has none."""

    id: str
    mean: float | None
    width: float | None
    probability: float | None
    plays: float
    rewards: float
    paused: bool


class Arms(msgspec.Struct, frozen=True):
    """A page of arms in item order; `total` counts all. For diag-linucb sums over an item's edges, no segment."""

    policy: str
    segment: str
    total: int
    arms: list[Arm]


class ControlResult(msgspec.Struct, frozen=True):
    """`number` is the control record's; `shown` whether every worker of this host showed it within 2 s."""

    number: int
    shown: bool


class Status(msgspec.Struct, frozen=True):
    """`ready`: this worker can recommend and is not draining. `degraded` has a sentence for each thing that is away."""

    ready: bool
    draining: bool
    degraded: list[str]
    policies: int
    staleness_ms: int | None  # age of the newest applied commit's log time while something is still to be learned


class Engine(Protocol):
    """The decision, the log and the parameters, seen from a route."""

    def recommend(self, query: RecommendRequest) -> Decision:
        """Choose and hand the decision to the agent; no I/O, no waiting."""
        ...

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        """One verdict a row, in order, after the durable append of all accepted ones (one append)."""
        ...

    async def control(self, record: "Record", if_version: int | None = None) -> ControlResult:
        """Append a control record and wait until every worker of this host shows it, at most 2 s.

        With `if_version`, the agent refuses it (`errors.conflict`) when the policy's version is another by then:
        read, change and write back without losing somebody else's change.
        """
        ...

    async def put_blob(self, data: bytes) -> str:
        """Store bytes durably; their name is the hash that a GraphPut record carries."""
        ...

    async def policies(self) -> list[PolicyInfo]:
        """All policies, by name."""
        ...

    async def policy(self, name: str) -> PolicyInfo:
        """One policy, or 404."""
        ...

    async def item(self, policy: str, item: str) -> ItemInfo:
        """One item, or 404."""
        ...

    async def graph(self, policy: str) -> "Graph":
        """The graph in use, or 404, or 409 where there is none."""
        ...

    async def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        """A page of arms; 404 for a segment that has no bank."""
        ...

    def status(self) -> Status:
        """For /readyz, /healthz; reads memory only."""
        ...

    async def metrics(self) -> bytes:
        """The host's Prometheus text, from the agent."""
        ...

    def count(self, route: str, outcome: str, seconds: float) -> None:
        """One answered request, for the metrics; `route` is the route's template, `outcome` "2xx", "4xx" or "5xx"."""
        ...
