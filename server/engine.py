"""What the routes call: `Engine`. The structs that go in and out are `server.schemas`.

The routes parse, check the role, call one method, answer. Everything that needs parameters, the log or the store is
behind this protocol; in production a worker's engine is the replica in shared memory and a socket to the host's agent.

    method        blocks on                               refuses with (server.errors)
    recommend     nothing: replica and kernel, inline     404, 409 no graph or arms, 422, 503 before the first load
    feedback      one durable append by the agent         503 (whole call); verdicts for single rows
    control       append + shown by every worker, <= 2 s  404, 409, 422, 503
    put_blob      one write to the store                  503
    others        the agent at most                       404, 409, 503

Checked before the engine is called (so it need not repeat it): JSON types; all numbers finite; 1 <= k <= 255; strings
not longer than 1,000 characters; at most one of embedding, clusters and segment; `weights` as long as `clusters`,
non-negative, with a positive sum; at most 255 clusters, none twice; a control record's spec (`control.check_spec`).
Left to the engine, because it takes the policy to know:

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

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from bandits.graph import Graph
from server.live_figures import Live
from server.schemas import (
    Arms,
    Decision,
    FeedbackRow,
    GraphInfo,
    ItemInfo,
    RecommendRequest,
    SnapshotAnswer,
    Status,
    Verdict,
)
from streaming.control import ControlRecord, PolicySpec


class PolicyInfo(msgspec.Struct, frozen=True):
    """A policy as this host shows it: `number` is the control number that created it, `version` of its last change.

    `graph` is None for the K-armed policies and before the first upload.
    """

    name: str
    number: int
    version: int
    spec: PolicySpec
    items: int
    paused: int
    graph: GraphInfo | None = None


class ControlResult(msgspec.Struct, frozen=True):
    """`number` is the control record's; `shown` whether every worker of this host showed it within 2 s."""

    number: int
    shown: bool


class Engine(Protocol):
    """The decision, the log and the parameters, seen from a route."""

    def recommend(self, query: RecommendRequest) -> Decision:
        """Choose and hand the decision to the agent; no I/O, no waiting."""
        ...

    def answer(self, body: bytes) -> bytes | None:
        """The JSON of `recommend` for a request as it came, unchecked; None, and nothing has happened, where it is no
        usual one: then it has to be read and checked, and `recommend` be asked. This is how the hot path asks.
        """
        ...

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        """One verdict a row, in order, after the durable append of all accepted ones (one append)."""
        ...

    def feed(self, row: FeedbackRow, done: Callable[[Verdict | Exception], None]) -> None:
        """The same for one row: `done` gets the verdict, or what `feedback` raises; now or later, on the loop."""
        ...

    async def control(self, record: ControlRecord, if_version: int | None = None) -> ControlResult:
        """Append a control record and wait until every worker of this host shows it, at most 2 s.

        A ControlError of `ControlState.check` becomes `errors.refused_control(error)`. With `if_version`, the agent
        refuses the record (`errors.conflict`) when the policy's version is another by then: read, change and write
        back without losing somebody else's change.
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

    async def graph(self, policy: str) -> Graph:
        """The graph in use, or 404, or 409 where there is none."""
        ...

    async def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        """A page of arms in item order; 404 for a segment that has no bank. Diag-linucb: over an item's edges."""
        ...

    async def snapshots(self) -> list[SnapshotAnswer]:
        """The snapshots with a label."""
        ...

    async def restore(self, policy: str, label: str) -> ControlResult:
        """Put a policy's parameters back to a snapshot: 404, or 409 where that cannot be."""
        ...

    def status(self) -> Status:
        """For /readyz; reads memory only."""
        ...

    async def live(self, policy: str, segment: str) -> Live:
        """What the live page shows, from the agent; its `policy` is None where there is none of that name."""
        ...

    async def metrics(self) -> bytes:
        """The host's Prometheus text, from the agent."""
        ...

    def count_hot(self) -> None:
        """One request that the hot path answered."""
        ...

    def count(self, route: str, status: int, seconds: float) -> None:
        """One answered request, for the metrics; `route` is the route's template, or "unknown"."""
        ...
