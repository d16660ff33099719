"""What the router knows of policies: keys, item numbers and shards, enough to judge a reward and no more.

All shards of the store hold the same control state and item numbers, so one of them is read and followed, and of it
these two tables only:

    store, shard 0 --control, numbers/{policy}--> KnownPolicies --keys, by_number--> server.feedback.judge
    store, blobs   --ids of a graph's items-----^

A server shows a policy (and signs with a key) once every shard of the store has it. So a look at shard 0 that is taken
after a reward has arrived knows whatever its token may name. The one exception is a store that a failover has set
back; then shard 0 is behind the control partition of the log, and `renew` waits.
"""

import contextlib
import time
from collections.abc import Callable, Iterable

from bandits.graph import Graph
from server.catalog import Entry
from server.view import View
from streaming.control import ControlState, Policy
from streaming.errors import NotFound, StoreUnavailable
from streaming.log import CONTROL, EventLog
from streaming.place import live
from streaming.shards import shard_of_bank, shard_of_item
from streaming.state import State, decode, encode
from streaming.store import ParameterStore

SHARD = 0
LOOK_S = 1.0  # a look at the store at least so often, so that its stream of changes still joins
AWAY_S = 5.0  # while it is away, unless a reward cannot be judged without
RENEW_S = 1.0  # a store that is behind the control records gets this long
_RETRY_S = 0.02


class KnownPolicy(View):
    """A policy's items: `ids` has all numbers that an id has had, `live` those of items that exist."""

    def __init__(self, policy: Policy, ids: dict[str, tuple[int, ...]], live: Iterable[int], shards: int) -> None:
        super().__init__(Entry(policy.name, policy.number, policy.version, policy.spec, policy.next_item), {}, shards)
        self.graph = policy.graph
        self._ids = ids
        self._live = frozenset(live)
        self._of_item = policy.spec.is_diag

    def numbers_of(self, item: str) -> tuple[int, ...]:
        return self._ids.get(item, ())

    def has_number(self, number: int) -> bool:
        return number in self._live

    def shard_of(self, number: int, bank: int) -> int:
        if self._of_item:
            return shard_of_item(self.entry.number, number, self.shards)
        return shard_of_bank(self.entry.number, bank, self.shards)


class KnownPolicies:
    """Keys and policies as shard 0 has them, a `server.feedback.Known`; nothing before the first `renew`. One thread.

    While the store is away what is known stays in use; `away` is its error then.
    """

    def __init__(self, store: ParameterStore, log: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        manifest = store.manifest()
        assert manifest is not None, "the store was made before it is followed"
        self._store, self._log, self._clock = store, log, clock
        self._shards = manifest.shards
        self._state = State()
        self._last = b""  # no commit's id
        self._next_look = 0.0
        self.away: StoreUnavailable | None = None
        self._control_at, self._ordered = 0, 0  # how far the control partition was read; the last number found there
        self.applied = 0
        self.keys: dict[int, bytes] = {}
        self.by_number: dict[int, View] = {}

    def refresh(self) -> None:
        """Looks at the store now and then. Raises StoreCorrupt."""
        if self._clock() >= self._next_look:
            with contextlib.suppress(StoreUnavailable):
                self._look()

    def renew(self) -> None:
        """Looks at the store, and waits up to `RENEW_S` where it is behind the log's control records.

        Raises StoreUnavailable, StoreCorrupt, LogUnavailable, LogCorrupt.
        """
        until = self._clock() + RENEW_S
        self._look()
        self._read_control(until)
        while self.applied < self._ordered and self._clock() < until:
            time.sleep(_RETRY_S)
            self._look()

    def _look(self) -> None:
        try:
            self._follow()
        except StoreUnavailable as error:  # each try may wait for long: not with every message
            self.away, self._next_look = error, self._clock() + AWAY_S
            raise
        self.away, self._next_look = None, self._clock() + LOOK_S

    def _follow(self) -> None:
        last, _ = self._store.last(SHARD)
        if last == self._last:
            return
        commits = self._store.changes(SHARD, self._last) if self._last else None
        if commits is None:
            self._load()
            return
        deltas = [delta for commit in commits if (delta := _wanted(commit.delta)) is not None]
        for delta in deltas:
            self._state.apply(delta)
        if deltas:
            self._take()
        self._last = commits[-1].id if commits else self._last

    def _load(self) -> None:
        image = self._store.load(SHARD)
        parts = [part for name, part in image.parts.items() if _is_wanted(name.partition("#")[0])]
        self._state = State()
        self._state.load(parts, [delta for commit in image.deltas if (delta := _wanted(commit.delta)) is not None])
        self._take()
        self._last = image.last[0]

    def _take(self) -> None:
        """Makes the policies of the tables; what has not changed stays."""
        if "control" not in self._state:
            control = ControlState()
        else:
            control = ControlState.decode(self._state["control"].tobytes())
        made = [self._policy(policy) for policy in control.policies.values()]
        self.by_number = {each.entry.number: each for each in made}
        self.keys = {key.id: key.secret for key in control.keys.values()}
        self.applied = control.applied

    def _policy(self, policy: Policy) -> View:
        before = self.by_number.get(policy.number)
        if isinstance(before, KnownPolicy) and before.entry.version == policy.version:
            return before
        ids: dict[str, tuple[int, ...]] = {}
        if not policy.spec.is_diag:
            for item in policy.items:
                ids[item.id] = (*ids.get(item.id, ()), item.number)
            return KnownPolicy(policy, ids, [each.number for each in policy.items if not each.removed], self._shards)
        numbers: list[int] = []
        if policy.graph is not None:
            numbers = self._state[f"numbers/{policy.number}"][:, 0].tolist()
            ids = {item_id: (number,) for item_id, number in zip(self._ids(policy), numbers, strict=True)}
        return KnownPolicy(policy, ids, numbers, self._shards)

    def _ids(self, policy: Policy) -> tuple[str, ...]:
        assert policy.graph is not None
        try:
            return Graph.from_bytes(self._store.get_blob(policy.graph.blob)).ids
        except NotFound:  # replaced meanwhile, and this one dropped: the next look finds the new one
            self._last = b""
            raise StoreUnavailable(f"the graph of policy {policy.name!r} was just replaced") from None

    def _read_control(self, until: float) -> None:
        """Reads on in the control partition, whose last number says how far the store has to be."""
        end = self._log.ends()[CONTROL]
        while self._control_at < end and self._clock() < until:
            records = self._log.read(CONTROL, self._control_at)
            for number, _, _ in live((record.data for record in records), self._ordered):
                self._ordered = number
            if records:
                self._control_at = records[-1].offset + 1
            else:  # still on its way
                time.sleep(_RETRY_S)


def _is_wanted(table: str) -> bool:
    return table == "control" or table.startswith("numbers/")


def _wanted(delta: bytes) -> bytes | None:
    """What a delta says of the two tables, as a delta; None where that is nothing."""
    found = [op for op in decode(delta) if _is_wanted(op[0].name)]
    return encode(list(found)) if found else None
