"""The replica: what the store holds, as the workers of this host see it. One per agent; the agent's follower drives it.

    store --changes--> one State per shard --rows that changed--> tables in shared memory   (in place, at once)
                             `-- control ----------------------> catalog                    (swapped whole)

Shards apply a control record at their own pace. A policy's entry in the catalog changes when all shards show the same
version of it; until then the former one stands, and what shards learn for tables of another shape waits.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandits.graph import Graph
from server import catalog as catalogs
from server import tables
from server.catalog import Catalog, Entry
from server.shared import GENERATION, NO_ROOM, HostFile, NoRoom, RunFolder
from server.tables import ALL_ROWS, DiagTable, Rows, Table
from streaming.control import ControlState, Policy
from streaming.log import wall_clock
from streaming.state import State
from streaming.store import NOTHING, Commit, Manifest, ParameterStore

log = logging.getLogger(__name__)
LOAD_WAIT_MS = 10_000
ROOM_RETRY_MS = 5_000
_CATALOG = 0  # stands beside the numbers of policies


class ShardImage:
    """One shard as this host holds it, up to commit `last`."""

    def __init__(self) -> None:
        self.state = State()
        self.control = ControlState()
        self.last = NOTHING
        self.head = 0
        self.log_time_ms = 0


class Replica:
    """Follows the store and publishes. `load`, `poll` and `sweep` are called from one thread.

    Others that read what it holds take `lock` for that time; it is not held while shards are read from the store.
    """

    def __init__(
        self,
        store: ParameterStore,
        manifest: Manifest,
        host: HostFile,
        folder: RunFolder,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._store = store
        self._host = host
        self._folder = folder
        self._clock = clock
        self.lock = threading.Lock()
        self.shards = [ShardImage() for _ in range(manifest.shards)]
        self.tables: dict[int, Table] = {}
        self._entries: dict[str, Entry] = {}  # as in the catalog
        self._behind: set[int] = set()  # policies whose tables wait until all shards agree, or for room
        self._no_room: dict[int, int] = {}  # what has no room, by policy: when it is tried again, ms
        self.catalog = Catalog(0, manifest.shards, {}, [])
        self.shown = (0, 0)  # (control record, the generation of the catalog that shows it)
        self.reloads = 0
        self.asked = 0.0  # time.monotonic() when the store was asked for news, 0 when it has answered
        self._published = False
        self._wait_until_ms = 0

    def load(self) -> None:
        """Reads everything and publishes it, now or in a later `poll`.

        A learner that died may have left the shards at different versions of a policy. What the agent before us has
        published stays in use until they agree, because a policy that is missing looks as if it had been deleted: its
        rewards would be refused for good. A host that has nothing published waits for `LOAD_WAIT_MS`.
        """
        for number in range(len(self.shards)):
            self._reload(number)
        self._wait_until_ms = self._clock() + LOAD_WAIT_MS
        with self.lock:
            self._publish()

    def poll(self) -> int:
        """Applies what was committed since the last call; returns the number of commits."""
        applied = 0
        control = False
        self.asked = time.monotonic()
        lasts = self._store.lasts()
        self.asked = 0.0
        for number, (shard, (last, _)) in enumerate(zip(self.shards, lasts, strict=True)):
            if last == shard.last:
                continue
            commits = self._store.changes(number, shard.last)
            if commits is None:
                self._reload(number)
                self.reloads += 1
                control = True
                applied += 1
                continue
            before = shard.control.applied
            with self.lock:
                self._apply(number, commits)
            now_ms = self._clock()
            for commit in commits:
                self._host.visible(max(0, now_ms - commit.first_time_ms) / 1000)
            applied += len(commits)
            control |= shard.control.applied != before
        if control or self._due():
            with self.lock:
                self._publish()
        return applied

    def _due(self) -> bool:
        """Whether there is something to publish that no control record of these commits has brought."""
        now_ms, waiting = self._clock(), self._no_room
        if any(now_ms >= again_ms for again_ms in waiting.values()):
            return True
        return bool(self._behind - waiting.keys()) or not (self._published or _CATALOG in waiting)

    def sweep(self) -> None:
        """Lets time pass for policies that forget."""
        now_ms = self._clock()
        with self.lock:
            for table in self.tables.values():
                if isinstance(table, DiagTable) and table.entry.number not in self._behind:
                    table.sweep(self._states, now_ms)

    def policy(self, name: str) -> Policy | None:
        """The policy as the catalog shows it."""
        entry = self._entries.get(name)
        found = self.shards[0].control.policies.get(name)
        if entry is None or found is None or found.number != entry.number or entry.number in self._behind:
            return None
        return found

    def total(self, name: str, shape: tuple[int, int]) -> NDArray[np.float64]:
        """A table's sum over the shards that have it, f64 of that shape."""
        tables = [state[name] for state in self._states if name in state]
        return np.sum([np.zeros(shape), *tables], axis=0)

    def whole(self) -> list[tuple[str, Policy]]:
        """(name, policy) of those that every shard has in one version now, so that their tables have one shape.

        Between the commits of two shards that bring the same control record they do not; nor while a shard is stopped.
        """
        found = [(entry.name, self.policy(entry.name)) for entry in self.catalog.entries]
        return [(name, policy) for name, policy in found if policy is not None and self._is_whole(policy)]

    def _is_whole(self, policy: Policy) -> bool:
        each = [shard.control.policies.get(policy.name) for shard in self.shards]
        return all(one is not None and (one.number, one.version) == (policy.number, policy.version) for one in each)

    @property
    def _states(self) -> list[State]:
        return [shard.state for shard in self.shards]

    def _reload(self, number: int) -> None:
        """One shard from the store; its tables are written anew."""
        image = self._store.load(number)
        shard = ShardImage()
        shard.state.load(image.parts.values(), [commit.delta for commit in image.deltas])
        shard.last, shard.head = image.last
        if "control" in shard.state:
            shard.control = ControlState.decode(shard.state["control"].tobytes())
        if image.deltas:
            shard.log_time_ms = image.deltas[-1].log_time_ms
        with self.lock:
            self.shards[number] = shard
            for policy in shard.control.policies.values():
                self._write(number, policy.number, {"edges": ALL_ROWS, "banks": ALL_ROWS})

    def _apply(self, number: int, commits: list[Commit]) -> None:
        shard = self.shards[number]
        changed: dict[int, dict[str, Rows]] = {}

        def note(name: str, index: Rows) -> None:
            kind, _, policy = name.partition("/")
            if kind in ("edges", "banks"):
                rows = changed.setdefault(int(policy), {})
                old = rows.get(kind, np.empty(0, np.int64))
                rows[kind] = ALL_ROWS if index is ALL_ROWS or old is ALL_ROWS else np.concatenate([old, index])
            elif name == "control":
                changed.setdefault(-1, {})

        for commit in commits:
            shard.state.apply(commit.delta, note)
            shard.last, shard.head, shard.log_time_ms = commit.id, commit.head, commit.log_time_ms
        if changed.pop(-1, None) is not None:
            shard.control = ControlState.decode(shard.state["control"].tobytes())
        for policy, rows in changed.items():
            self._write(number, policy, rows)

    def _write(self, number: int, policy: int, rows: dict[str, Rows]) -> None:
        """Rows of one shard into the policy's table, unless the table has to be made anew first."""
        table = self.tables.get(policy)
        shard = self.shards[number]
        if table is None or policy in self._behind:
            return
        mine = next((each for each in shard.control.policies.values() if each.number == policy), None)
        if mine is None or not table.fits(mine, [shard.state]):
            self._behind.add(policy)
            return
        table.write(number, shard.state, rows, self._clock())

    def _agreed(self) -> dict[str, Policy | None]:
        """name -> the policy where all shards show one version of it, None where none of them has it."""
        controls = [shard.control for shard in self.shards]
        names = set(self._entries).union(*(control.policies for control in controls))
        agreed: dict[str, Policy | None] = {}
        for name in names:
            found = [control.policies.get(name) for control in controls]
            if len({(each.number, each.version) if each else None for each in found}) == 1:
                agreed[name] = found[0]
        return agreed

    def _may_publish(self, agreed: dict[str, Policy | None]) -> bool:
        names: set[str] = set().union(*(shard.control.policies for shard in self.shards))
        whole = names <= agreed.keys()
        return self._published or whole or (not self._host[GENERATION] and self._clock() >= self._wait_until_ms)

    def _publish(self) -> None:
        """Brings the catalog up to what all shards agree on, and swaps it where that changes anything."""
        entries = dict(self._entries)
        agreed = self._agreed()
        if not self._may_publish(agreed):
            return
        for name, policy in agreed.items():
            if policy is None:
                entries.pop(name, None)
            else:
                entries[name] = self._entry(policy)
        applied = min(shard.control.applied for shard in self.shards)
        first = next(shard.control for shard in self.shards if shard.control.applied == applied)
        ordered = [entries[name] for name in sorted(entries)]
        new = Catalog(applied, len(self.shards), first.keys, ordered)
        live = {entry.number for entry in ordered}
        self.tables = {number: table for number, table in self.tables.items() if number in live}
        self._behind &= live
        if not self._published or new != self.catalog:
            try:
                self._swap(new)
                self._no_room.pop(_CATALOG, None)
                self._published = True
                self._entries, self.catalog = entries, new
                self._no_room = dict.fromkeys(self._no_room, self._clock())  # what was swept may have made some
            except NoRoom as error:
                self._lacks_room(_CATALOG, "the catalog", error)
        self._no_room = {number: at for number, at in self._no_room.items() if number in live or number == _CATALOG}
        self._host[NO_ROOM] = len(self._no_room)

    def _entry(self, policy: Policy) -> Entry:
        """The policy's entry, with its table made or brought up to date; the former one where there is no room."""
        number, table = policy.number, self.tables.get(policy.number)
        if policy.spec.is_diag and policy.graph is None:
            return Entry(policy.name, number, policy.version, policy.spec, policy.next_item)
        if table is None or number in self._behind or not table.fits(policy, self._states):
            try:
                table = self._make(policy)
            except NoRoom as error:
                self._lacks_room(number, f"policy {policy.name!r}", error)
                table = None
            if table is None:
                return self._former(policy)
        elif table.entry.version != policy.version:
            table.update(policy, self._states)
        return table.entry

    def _make(self, policy: Policy) -> Table | None:
        """A new table; None where it is not time yet to look for room again. Raises NoRoom."""
        number = policy.number
        if self._clock() < self._no_room.get(number, 0):
            return None
        graph = None
        if policy.graph is not None:
            graph = Graph.from_bytes(self._store.get_blob(policy.graph.blob))
        table = tables.make(self._folder, policy, graph, self._states, self._clock())
        self.tables[number] = table
        self._behind.discard(number)
        self._no_room.pop(number, None)
        return table

    def _former(self, policy: Policy) -> Entry:
        """What workers see of a policy that has no room: its table of before, or that it cannot be served now."""
        entry = self._entries.get(policy.name)
        if entry is not None and entry.number == policy.number and not entry.trouble:
            return entry
        trouble = f"This host has no room for the parameters of policy {policy.name!r}."
        return Entry(policy.name, policy.number, policy.version, policy.spec, 0, trouble=trouble)

    def _lacks_room(self, number: int, what: str, error: NoRoom) -> None:
        if number not in self._no_room:
            log.error("%s is not shown: %s", what, error)
        self._no_room[number] = self._clock() + ROOM_RETRY_MS
        if number != _CATALOG:
            self._behind.add(number)

    def _swap(self, new: Catalog) -> None:
        generation = self._host[GENERATION] + 1
        path = self._folder.write(catalogs.name_of(generation), msgspec.msgpack.encode(new))
        self._host[GENERATION] = generation
        self.shown = new.applied, generation
        self._folder.sweep([path, *(Path(entry.path) for entry in new.entries if entry.path)])
