"""A second, small engine: it decides by the order of items and learns nothing. The routes are tested against it."""

from collections.abc import Callable, Sequence

from bandits.graph import Graph
from server import errors
from server.engine import ControlResult, PolicyInfo
from server.schemas import (
    ACCEPTED,
    Arm,
    Arms,
    Decision,
    FeedbackRow,
    GraphInfo,
    Item,
    ItemInfo,
    RecommendRequest,
    SnapshotAnswer,
    Status,
    Verdict,
)
from streaming.control import ControlError, ControlRecord, ControlState, Policy, Restore


class MemoryEngine:
    """Policies in a ControlState, blobs in a dict, accepted rewards in a list."""

    def __init__(self) -> None:
        self.state = ControlState()
        self.blobs: dict[str, bytes] = {}
        self.decisions: dict[str, Decision] = {}
        self.rewards: list[FeedbackRow] = []
        self.counted: list[tuple[str, int]] = []
        self.ready = True
        self.log_away = False
        self.slow_workers = False

    def recommend(self, query: RecommendRequest) -> Decision:
        policy = self._policy(query.policy)
        user = query.user
        if policy.spec.is_diag:
            graph = self._graph(policy)
            dim = graph.centroids.shape[1]
            if user.embedding is None and user.clusters is None:
                raise errors.invalid("user", "A diag-linucb policy needs an embedding or clusters.")
            if user.embedding is not None and len(user.embedding) != dim:
                raise errors.invalid("user.embedding", f"It has {len(user.embedding)} numbers; the graph has {dim}.")
        elif user.embedding is not None:
            raise errors.invalid("user.embedding", "This policy takes a segment.")
        shown = [item.id for item in self._items(policy) if not item.paused]
        if query.k > len(shown):
            raise errors.k_too_large(query.k, len(shown))
        if query.candidates is not None:
            shown = [item for item in shown if item in query.candidates]
            if not shown:
                raise errors.invalid("candidates", "None of them is known and not paused.")
        shown = [item for item in shown if item not in (query.exclude or ())]
        if not shown:
            raise errors.invalid("exclude", "Nothing is left to choose from.")
        items = [Item(item, 0.1, 1.0) for item in shown[: query.k]]
        decision = Decision(f"d{len(self.decisions)}", query.policy, policy.version, items)
        self.decisions[decision.decision_id] = decision
        return decision

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        if self.log_away:
            raise errors.unavailable("The event log cannot be written.", 2.0)
        verdicts = []
        for row in rows:
            decision = self.decisions.get(row.decision_id)
            if decision is None:
                verdicts.append(Verdict("refused", "bad-token", "decision_id", "It was not signed here."))
            elif abs(row.reward) > 1e300:
                verdicts.append(Verdict("refused", "out-of-range", "reward", "It is larger than 1e300."))
            elif row.item not in [item.id for item in decision.items]:
                verdicts.append(Verdict("refused", "unknown-item", "item", "It is not one of the decision's items."))
            else:
                self.rewards.append(row)
                verdicts.append(ACCEPTED)
        return verdicts

    def feed(self, row: FeedbackRow, done: Callable[[Verdict | Exception], None]) -> None:
        raise AssertionError(f"only the hot path asks: {row}, {done}")

    async def control(self, record: ControlRecord, if_version: int | None = None) -> ControlResult:
        name = getattr(record, "name", "") or getattr(record, "policy", "")
        if if_version is not None and self._policy(name).version != if_version:
            raise errors.conflict("Somebody else changed it.")
        try:
            self.state.check(record)
        except ControlError as error:
            raise errors.refused_control(error.field, str(error)) from None
        self.state.apply(self.state.applied + 1, record)
        return ControlResult(self.state.applied, not self.slow_workers)

    async def put_blob(self, data: bytes) -> str:
        name = f"blob{len(self.blobs)}"
        self.blobs[name] = data
        return name

    async def policies(self) -> list[PolicyInfo]:
        return [self._info(policy) for _, policy in sorted(self.state.policies.items())]

    async def policy(self, name: str) -> PolicyInfo:
        return self._info(self._policy(name))

    async def item(self, policy: str, item: str) -> ItemInfo:
        for found in self._items(self._policy(policy)):
            if found.id == item:
                return found
        raise errors.unknown_item(policy, item)

    async def graph(self, policy: str) -> Graph:
        return self._graph(self._policy(policy))

    async def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        items = self._items(self._policy(policy))
        page = [Arm(item.id, None, None, None, 0.0, 0.0, item.paused) for item in items[offset : offset + limit]]
        return Arms(policy, segment, len(items), page)

    async def snapshots(self) -> list[SnapshotAnswer]:
        return [SnapshotAnswer(label, n, 1, 1, True, 5, 10) for label, n in sorted(self.state.labels.items())]

    async def restore(self, policy: str, label: str) -> ControlResult:
        found = self._policy(policy)
        if label not in self.state.labels:
            raise errors.unknown_snapshot(label)
        return await self.control(Restore(policy, label, found.number, found.graph.number if found.graph else 0, []))

    def status(self) -> Status:
        return Status(self.ready, False, [], len(self.state.policies), None)

    async def metrics(self) -> bytes:
        return b"croupier_up 1\n"

    def count_hot(self) -> None: ...

    def count(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.counted.append((route, status))

    def _policy(self, name: str) -> Policy:
        if name not in self.state.policies:
            raise errors.unknown_policy(name)
        return self.state.policies[name]

    def _graph(self, policy: Policy) -> Graph:
        if policy.graph is None:
            raise errors.no_graph(policy.name)
        return Graph.from_bytes(self.blobs[policy.graph.blob])

    def _items(self, policy: Policy) -> list[ItemInfo]:
        if not policy.spec.is_diag:
            return [ItemInfo(item.id, item.number, item.paused) for item in policy.items if not item.removed]
        if policy.graph is None:
            return []
        return [ItemInfo(id, i, id in policy.paused, []) for i, id in enumerate(self._graph(policy).ids)]

    def _info(self, policy: Policy) -> PolicyInfo:
        items = self._items(policy)
        graph = None
        if policy.graph is not None:
            g = self._graph(policy)
            graph = GraphInfo(
                g.version, policy.graph.lineage, g.n_clusters, g.centroids.shape[1], len(g.ids), len(g.items)
            )
        paused = sum(item.paused for item in items)
        return PolicyInfo(policy.name, policy.number, policy.version, policy.spec, len(items), paused, graph)
