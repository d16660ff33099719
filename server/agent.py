"""The agent: one per host. Its writer of the log, the follower of the store, the owner of the shared memory.

    workers --decisions, rewards--> Writer (group commit) --> event log
    workers <--catalog, tables----- follower <-- parameter store
    workers --control, blobs, arms, metrics--> calls, each on a thread of the caller's

    thread     touches   does
    writer     log       appends; finds out when a log that was away is back
    follower   store     brings the replica up to date
    watcher    log       how far the log goes, so how far we are behind; control records and copies of others
    keeper     both      sizes; embedded: gives back space behind the snapshots
    heart      none      says that the agent lives; ends its process where a thread of it has failed

A log or a store that is away holds up the threads that touch it, and no other. Everything here is plain threads;
`server.ipc` puts a socket in front, `server.local` calls it directly.
"""

import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from bandits.graph import Graph, GraphError
from server import errors, metrics, restore
from server.control_log import ControlLog
from server.engine import ControlResult
from server.inspect import arms_page
from server.lag import Lag
from server.live import Pulse
from server.live_figures import Live
from server.replica import Replica
from server.retention import drop_graphs, trim
from server.schemas import Arms
from server.shared import (
    AGENT_BEAT,
    AGENT_PID,
    AWAY,
    BEHIND_SINCE,
    LOG_TIME,
    SEEN,
    STORE,
    THERE,
    HostFile,
    RunFolder,
)
from server.tables import room_for
from server.writer import Writer, problem_of
from streaming.control import ControlError, ControlRecord, GraphPut, KeyAdd, Policy, from_json
from streaming.errors import (
    LayoutMismatch,
    LogUnavailable,
    NotFound,
    StoreUnavailable,
    StreamingError,
    Trimmed,
)
from streaming.log import Clock, EventLog, wall_clock
from streaming.store import ParameterStore

log = logging.getLogger(__name__)
SHOWN_WITHIN_S = 2.0
POLL_S = 0.002
IDLE_POLL_S = 0.005
DUTY_S = 0.2
RETRY_S = 0.2
KEEP_S = 10.0
COUNT_S = 2.0
GRAPHS_S = 600.0
STORE_SILENT_S = 1.0
REPLICA_WAIT_S = 1.0


class Agent:
    """`log` is open for writing. `open` loads everything and starts the threads, `close` flushes and ends them.

    `apart`: log and store are servers that others write to as well, and the learners, which trim, run elsewhere.
    """

    def __init__(
        self,
        event_log: EventLog,
        store: ParameterStore,
        host: HostFile,
        folder: RunFolder,
        clock: Clock = wall_clock,
        apart: bool = False,
    ) -> None:
        self.log, self.store, self.host, self.folder = event_log, store, host, folder
        self._clock = clock
        self._apart = apart
        manifest = store.manifest()
        if manifest is None or manifest.log_id != event_log.id:
            raise LayoutMismatch("the store does not belong to this log: put the two files of one data folder together")
        self.writer = Writer(event_log, host, whole=not apart)
        self.replica = Replica(store, manifest, host, folder, clock)
        self.control_log: ControlLog
        self.is_process = False  # in a process of its own it ends with one of its threads, and is started again
        self._figures = metrics.Figures([0] * manifest.shards)
        self._pulse = Pulse(host, self.replica)
        self._failed = False
        self._said: dict[str, str] = {}
        self._stop = threading.Event()
        duties = {
            "follower": self._follow, "watcher": self._watch, "keeper": self._keep, "heart": self._beat,
            "counter": self._count,
        }  # fmt: skip
        self._threads = [
            threading.Thread(target=self._run, args=(name, duty), name=name, daemon=True)
            for name, duty in duties.items()
        ]

    # ------------------------------------------------------------------------------------------------ start and end

    def open(self) -> None:
        """Loads the replica, reads the control records, makes the first key where there is none, starts."""
        self.host[AGENT_PID] = os.getpid()
        self.writer.start()
        self.replica.load()
        self.control_log = ControlLog(self.log, self.writer.append, [shard.control for shard in self.replica.shards])
        self._first_key()
        self.host[STORE] = THERE
        self.host[AGENT_BEAT] = self._clock()
        for thread in self._threads:
            thread.start()

    def _first_key(self) -> None:
        """One key, whoever is first; agents that start at once all sign with that."""

        key = KeyAdd(0, secrets.token_hex(32), self._clock())
        self.control_log.claim(key, lambda: not self.control_log.state.keys)

    def close(self) -> None:
        """Appends what waits, ends the threads."""
        self.writer.stop()
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10.0)
        self.host[AGENT_PID] = 0

    def _run(self, name: str, duty: Callable[[], None]) -> None:
        try:
            duty()
        except Exception:
            log.exception("the agent's %s fails", name)
            self._failed = True

    def _say(self, who: str, error: Exception | None) -> None:
        """A warning for trouble that is new; `error` None: it is over."""
        sentence = str(error) if error is not None else ""
        if sentence and sentence != self._said.get(who):
            log.warning("%s: %s", who, sentence)
        self._said[who] = sentence

    def _beat(self) -> None:
        while not self._stop.is_set():
            if self.is_process and (self.writer.crashed or self._failed):
                os._exit(1)
            self.host[AGENT_BEAT] = self._clock()
            if (asked := self.replica.asked) and time.monotonic() - asked > STORE_SILENT_S:
                self.host[STORE] = AWAY
            self._stop.wait(DUTY_S)

    # ---------------------------------------------------------------------------------------------------- following

    def _follow(self) -> None:
        next_duty = time.monotonic()
        while not self._stop.is_set():
            found = 0
            try:
                found = self.replica.poll()
                self.replica.sweep()
                if time.monotonic() >= next_duty:
                    next_duty = time.monotonic() + DUTY_S
                    self.host[LOG_TIME] = max(shard.log_time_ms for shard in self.replica.shards)
                    self.host[STORE] = THERE
                    self._say("the parameter store", None)
            except StreamingError as error:  # away, or flushed: whichever, parameters are those of before
                self.host[STORE] = AWAY
                self._say("the parameter store", error)
                self._stop.wait(RETRY_S)
            self._stop.wait(POLL_S if found else IDLE_POLL_S)

    def _watch(self) -> None:
        lag: Lag | None = None
        while not self._stop.is_set():
            try:
                *ends, _ = self.log.ends()
                lag = lag or self._first_look(ends)
                lag.look(self._clock(), ends)
                self._figures.ends = ends
                self.host[BEHIND_SINCE] = lag.behind_since([shard.head for shard in self.replica.shards])
                self.control_log.heal([shard.control.applied for shard in self.replica.shards])
                self._say("the event log", None)
            except LogUnavailable as error:
                self.writer.suspect(error)
            except StreamingError as error:
                self._say("the event log", error)
            self._stop.wait(DUTY_S)

    def _first_look(self, ends: list[int]) -> Lag:
        """What nobody had learned when we came is as old as its record says."""
        lag = Lag(len(ends))
        for number, shard in enumerate(self.replica.shards):
            head = shard.head
            with contextlib.suppress(Trimmed):
                for record in self.log.read(number, head, 1) if head < ends[number] else ():
                    lag.look_at(number, record.time_ms, ends[number])
        return lag

    def _keep(self) -> None:
        next_graphs = time.monotonic() + GRAPHS_S
        while not self._stop.is_set():
            try:
                self._figures.log_bytes, self._figures.store_bytes = self.log.size_bytes(), self.store.size_bytes()
            except StreamingError as error:
                log.debug("sizes are not known now: %s", error)
            if self._stop.wait(KEEP_S):
                return
            if self._apart:
                continue
            try:
                trim(self.log, self.store)
                if time.monotonic() >= next_graphs:
                    next_graphs = time.monotonic() + GRAPHS_S
                    drop_graphs(self.log, self.store, self._clock)
            except StreamingError as error:
                log.warning("the log was not trimmed: %s", error)

    def _count(self) -> None:
        """Looks at what a scrape and the live page show and would have to wait for; nothing else hangs on it."""
        figures = self._figures
        while not self._stop.is_set():
            try:
                with contextlib.suppress(errors.Problem), self._reading():
                    figures.plays.look(self.replica)
                    self._pulse.look(self._clock())
            except Exception:
                log.exception("figures for metrics and the live page are not taken")
            with contextlib.suppress(OSError):  # a file that was just swapped, a folder that is not there yet
                figures.shared_bytes = self.folder.used_bytes()
                usage = shutil.disk_usage(self.folder.disk)
                figures.disk_bytes, figures.disk_free_bytes = usage.total, usage.free
            self._stop.wait(COUNT_S)

    # ------------------------------------------------------------------------------------------------------ control

    def control(self, data: bytes, if_version: int | None = None) -> ControlResult:
        """Orders a control record (JSON) and waits until every worker shows it; raises Problem."""
        record = from_json(data)
        try:
            number = self.control_log.claim(record, lambda: self._check(record, if_version))
        except StreamingError as error:
            raise problem_of(error) from error
        return ControlResult(number, self._wait_until_shown(number))

    def _check(self, record: ControlRecord, if_version: int | None) -> bool:
        """Raises Problem where the record cannot take effect after all there are."""
        state = self.control_log.state
        name = getattr(record, "policy", getattr(record, "name", ""))
        policy = state.policies.get(name)
        if if_version is not None and (policy is None or policy.version != if_version):
            now = f"is at version {policy.version}" if policy else "is gone"
            raise errors.conflict(f"Policy {name!r} {now}, not at {if_version}: read it and change it again.")
        try:
            state.check(record)
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
        return True

    def _graph(self, blob: str) -> Graph:
        return Graph.from_bytes(self.store.get_blob(blob))

    def _check_graph(self, record: GraphPut, policy: Policy | None) -> None:
        graph = self._graph(record.blob)
        if (needed := room_for(graph)) > (free := self.folder.free_bytes()):
            raise errors.no_room(needed, free)
        if record.keeps_clusters and policy is not None and policy.graph is not None:
            before = self._graph(policy.graph.blob)
            if before.n_clusters != graph.n_clusters:
                sentence = (
                    f"keeps_clusters needs the same {before.n_clusters} clusters, this graph has {graph.n_clusters}"
                )
                raise GraphError("centroids", sentence)

    def _wait_until_shown(self, number: int) -> bool:
        deadline = time.monotonic() + SHOWN_WITHIN_S
        while time.monotonic() < deadline:
            applied, generation = self.replica.shown
            if applied >= number and all(row[SEEN] >= generation for row in self.host.live_rows(self._clock())):
                return True
            time.sleep(0.001)
        return False

    # -------------------------------------------------------------------------------------------------------- calls

    def put_blob(self, data: bytes) -> str:
        try:
            return self.store.put_blob(data)
        except StoreUnavailable as error:
            raise errors.unavailable(f"The parameter store is away: {error}.") from error

    def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        with self._reading():
            return arms_page(self.replica, policy, segment, limit, offset, self._clock())

    def metrics(self) -> bytes:
        with self._reading():
            return metrics.render(self.host, self.replica, self._figures, self._clock())

    def live(self, policy: str, segment: str) -> Live:
        with self._reading():
            figures = self._figures
            sizes = figures.log_bytes, figures.store_bytes
            return self._pulse.snapshot(policy, segment, self._clock(), figures.ends, sizes)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """The replica holds still; where it cannot, because it waits for a graph from the store, Problem."""
        if not self.replica.lock.acquire(timeout=REPLICA_WAIT_S):
            raise errors.unavailable("The parameter store does not answer, and a new graph is on its way from it.")
        try:
            yield
        finally:
            self.replica.lock.release()

    def call(self, method: str, args: list[object]) -> bytes:
        """One of the calls above by name, with MessagePack in and out."""
        calls: dict[str, Callable[..., object]] = {
            "control": self.control,
            "put_blob": self.put_blob,
            "arms": self.arms,
            "metrics": self.metrics,
            "live": self.live,
            "snapshots": partial(restore.snapshots, self),
            "restore": partial(restore.restore, self),
        }
        return msgspec.msgpack.encode(calls[method](*args))
