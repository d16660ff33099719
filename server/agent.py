"""The agent: one per host. The log's only writer, the follower of the store, the owner of the shared memory.

    workers --decisions, rewards--> Writer (group commit) --> event log
    workers <--catalog, tables----- follower <-- parameter store
    workers --control, blobs, arms, metrics--> calls, each on a thread of the caller's

Everything here is plain threads; `server.ipc` puts a socket in front, `server.local` calls it directly.
"""

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable

import msgspec

from bandits.graph import Graph, GraphError
from server import errors, metrics
from server.engine import ControlResult
from server.inspect import arms_page
from server.replica import Replica
from server.retention import drop_graphs, trim
from server.schemas import Arms
from server.shared import (
    AGENT_BEAT,
    AGENT_PID,
    AWAY,
    BEAT,
    BEHIND_SINCE,
    LOG_TIME,
    PID,
    SEEN,
    STORE,
    THERE,
    HostFile,
    Row,
    RunFolder,
)
from server.writer import Writer
from streaming import events
from streaming.control import (
    ControlError,
    ControlRecord,
    ControlState,
    GraphPut,
    KeyAdd,
    Policy,
    from_json,
    to_json,
)
from streaming.errors import LayoutMismatch, NotFound, StoreUnavailable, StreamingError, Trimmed
from streaming.log import CONTROL, Clock, EventLog, wall_clock
from streaming.store import ParameterStore

log = logging.getLogger(__name__)
SHOWN_WITHIN_S = 2.0
POLL_S = 0.002
IDLE_POLL_S = 0.005
DUTY_S = 0.2
TRIM_S = 10.0
GRAPHS_S = 600.0
WORKER_SILENT_MS = 3_000


class Agent:
    """`log` is open for writing. `open` loads everything and starts the threads, `close` flushes and ends them."""

    def __init__(
        self,
        event_log: EventLog,
        store: ParameterStore,
        host: HostFile,
        folder: RunFolder,
        clock: Clock = wall_clock,
    ) -> None:
        self.log, self.store, self.host, self.folder = event_log, store, host, folder
        self._clock = clock
        manifest = store.manifest()
        if manifest is None or manifest.log_id != event_log.id:
            raise LayoutMismatch("the store does not belong to this log: put the two files of one data folder together")
        self.writer = Writer(event_log, host)
        self.replica = Replica(store, manifest, host, folder, clock)
        self._replica_lock = threading.Lock()  # follower against arms and metrics
        self._control_lock = threading.Lock()
        self.is_process = False  # in a process of its own it ends with its writer or follower, and is started again
        self._control = ControlState()
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._trimmer = threading.Thread(target=self._trim, name="trimmer", daemon=True)

    # ------------------------------------------------------------------------------------------------ start and end

    def open(self) -> None:
        """Loads the replica, brings the control records of a crash to their end, makes the first key, starts."""
        self.host[AGENT_PID] = os.getpid()
        self.writer.start()
        self.replica.load()
        self._load_control()
        self._append_missing_pointers()
        if not self._control.keys:
            self._append_control(KeyAdd(0, secrets.token_hex(32), self._clock()))
        self.host[STORE] = THERE
        self._beat()
        self._follower.start()
        self._trimmer.start()

    def close(self) -> None:
        """Appends what waits, stops following."""
        self.writer.stop()
        self._stop.set()
        for thread in (self._follower, self._trimmer):
            if thread.is_alive():
                thread.join(10.0)
        self.host[AGENT_PID] = 0

    def _load_control(self) -> None:
        """The control state of the shard that is furthest, and the records after it."""
        furthest = max((shard.control for shard in self.replica.shards), key=lambda control: control.applied)
        self._control = ControlState.decode(furthest.encode())
        for n, data in self._control_records(self._control.applied):
            before = self._control.encode()
            try:
                self._control.apply(n, from_json(data))
            except ControlError:  # cannot be: every record was checked before its append
                self._control = ControlState.decode(before)
                self._control.applied = n

    def _control_records(self, after: int) -> list[tuple[int, bytes]]:
        """The control records beyond number `after`: record n stands at offset n - 1."""
        found: list[tuple[int, bytes]] = []
        offset = after
        while records := self.log.read(CONTROL, offset):
            for record in records:
                control = events.control_of(record.data)
                assert control is not None, f"control partition, offset {record.offset}: not a control record"
                found.append(control)
            offset = records[-1].offset + 1
        return found

    def _append_missing_pointers(self) -> None:
        """Gives each shard the control records that a crash between log and shard has kept from it."""
        missing: list[tuple[int, bytes]] = []
        for number, shard in enumerate(self.replica.shards):
            last, offset = shard.control.applied, shard.head
            with contextlib.suppress(Trimmed):
                while records := self.log.read(number, offset):
                    for record in records:
                        control = events.control_of(record.data)
                        if control is not None and control[0] == last + 1:
                            last += 1
                    offset = records[-1].offset + 1
            missing += [(number, events.control_frame(n, data)) for n, data in self._control_records(last)]
        if missing:
            self.writer.append(missing)

    # ---------------------------------------------------------------------------------------------------- following

    def _follow(self) -> None:
        next_duty = time.monotonic()
        while not self._stop.is_set():
            found = 0
            try:
                with self._replica_lock:
                    found = self.replica.poll()
                    self.replica.sweep()
                now = time.monotonic()
                if now >= next_duty:
                    next_duty = now + DUTY_S
                    if self.is_process and self.writer.crashed:
                        os._exit(1)
                    self._beat()
                    self.host[BEHIND_SINCE] = self._behind_since()
                    self.host[LOG_TIME] = max(shard.log_time_ms for shard in self.replica.shards)
                    self._store_is(THERE)
            except StreamingError as error:
                if isinstance(error, StoreUnavailable):
                    self._store_is(AWAY, error)
                else:
                    log.warning("%s", error)
                self._beat()
                self._stop.wait(0.2)
            except Exception:
                log.exception("the replica stops: it cannot follow the store")
                if self.is_process:
                    os._exit(1)
                return
            self._stop.wait(POLL_S if found else IDLE_POLL_S)

    def _trim(self) -> None:
        """Gives back space behind the snapshots. May take seconds, so the follower does not wait for it."""
        next_graphs = time.monotonic() + GRAPHS_S
        while not self._stop.wait(TRIM_S):
            try:
                trim(self.log, self.store)
                if time.monotonic() >= next_graphs:
                    next_graphs = time.monotonic() + GRAPHS_S
                    drop_graphs(self.log, self.store)
            except StreamingError as error:
                log.warning("the log was not trimmed: %s", error)
            except Exception:
                log.exception("the log cannot be trimmed")
                if self.is_process:
                    os._exit(1)
                return

    def _beat(self) -> None:
        self.host[AGENT_BEAT] = self._clock()

    def _store_is(self, state: int, error: Exception | None = None) -> None:
        if state == AWAY and self.host[STORE] != AWAY:
            log.warning("the parameter store is away: %s", error)
        self.host[STORE] = state

    def _behind_since(self) -> int:
        """Log time of the oldest record that the replica does not include; 0 where there is none."""
        oldest = 0
        for number, shard in enumerate(self.replica.shards):
            if shard.head >= self.log.bounds(number)[1]:
                continue
            with contextlib.suppress(Trimmed):
                records = self.log.read(number, shard.head, 1)
                if records:
                    oldest = min(oldest or records[0].time_ms, records[0].time_ms)
        return oldest

    # ------------------------------------------------------------------------------------------------------ control

    def control(self, data: bytes, if_version: int | None = None) -> ControlResult:
        """Orders a control record (JSON) and waits until every worker shows it; raises Problem."""
        record = from_json(data)
        with self._control_lock:
            self._check(record, if_version)
            try:
                number = self._append_control(record)
            except StreamingError as error:
                raise errors.unavailable(f"The event log is away: {error}.") from error
        return ControlResult(number, self._wait_until_shown(number))

    def _check(self, record: ControlRecord, if_version: int | None) -> None:
        name = getattr(record, "policy", getattr(record, "name", ""))
        policy = self._control.policies.get(name)
        if if_version is not None and (policy is None or policy.version != if_version):
            now = f"is at version {policy.version}" if policy else "is gone"
            raise errors.conflict(f"Policy {name!r} {now}, not at {if_version}: read it and change it again.")
        try:
            self._control.check(record)
        except ControlError as error:
            raise errors.refused_control(error.field, str(error)) from None
        try:
            if isinstance(record, GraphPut):
                self._check_graph(record, policy)
        except GraphError as error:
            raise errors.invalid(error.field, f"{error}.") from None
        except NotFound:
            raise errors.invalid("graph", "The graph was not stored before the record that names it.") from None
        except StoreUnavailable as error:
            raise errors.unavailable(f"The parameter store is away: {error}.") from error

    def _graph(self, blob: str) -> Graph:
        return Graph.from_bytes(self.store.get_blob(blob))

    def _check_graph(self, record: GraphPut, policy: Policy | None) -> None:
        graph = self._graph(record.blob)
        if record.keeps_clusters and policy is not None and policy.graph is not None:
            before = self._graph(policy.graph.blob)
            if before.n_clusters != graph.n_clusters:
                sentence = (
                    f"keeps_clusters needs the same {before.n_clusters} clusters, this graph has {graph.n_clusters}"
                )
                raise GraphError("centroids", sentence)

    def _append_control(self, record: ControlRecord) -> int:
        """Appends the next control record and its pointers in one append."""
        number = self._control.applied + 1
        frame = events.control_frame(number, to_json(record))
        self.writer.append([(CONTROL, frame), *((shard, frame) for shard in range(self.log.shards))])
        self._control.apply(number, record)
        return number

    def _wait_until_shown(self, number: int) -> bool:
        deadline = time.monotonic() + SHOWN_WITHIN_S
        while time.monotonic() < deadline:
            applied, generation = self.replica.shown
            if applied >= number and all(row[SEEN] >= generation for row in self._live_rows()):
                return True
            time.sleep(0.001)
        return False

    def _live_rows(self) -> list[Row]:
        rows = [self.host.row(worker) for worker in range(self.host.rows)]
        return [row for row in rows if row[PID] and self._clock() - row[BEAT] < WORKER_SILENT_MS]

    # -------------------------------------------------------------------------------------------------------- calls

    def put_blob(self, data: bytes) -> str:
        try:
            return self.store.put_blob(data)
        except StoreUnavailable as error:
            raise errors.unavailable(f"The parameter store is away: {error}.") from error

    def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        with self._replica_lock:
            return arms_page(self.replica, policy, segment, limit, offset, self._clock())

    def metrics(self) -> bytes:
        with self._replica_lock:
            return metrics.render(self.host, self.replica, self.log, self.store, self._clock())

    def call(self, method: str, args: list[object]) -> bytes:
        """One of the calls above by name, with MessagePack in and out."""
        calls: dict[str, Callable[..., object]] = {
            "control": self.control,
            "put_blob": self.put_blob,
            "arms": self.arms,
            "metrics": self.metrics,
        }
        return msgspec.msgpack.encode(calls[method](*args))
