"""The supervisor: one process that starts the others, starts again what dies, and ends them in order.

    serve -> supervisor --fork--> agent, learner, worker 0 .. N-1 (each with a listening socket of its own, one port)

With log and store of many machines there is no learner here: `croupier learner` processes learn, wherever they run.

It loads what the children need before it forks, so that one that is started again is there within milliseconds.
Numba's kernels are compiled code in memory by then, shared by all. At the start the order is the shortest way to the
first answer: what choosing takes, the agent; HTTP, the workers; everything else, the learner.

Ending: workers (finish requests, hand over decisions), agent (append), learner (learn what is in the log), each within
its time; then SIGKILL. Children die with their parent (PR_SET_PDEATHSIG), so that nothing is left when it is killed.
"""

import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from server import data
from server.children import agent, learner, run_child, worker
from server.settings import Settings
from server.shared import (
    AGENT_RESTARTS,
    DRAINING,
    GENERATION,
    LEARNER_RESTARTS,
    LINKED,
    PID,
    SEEN,
    WORKER_RESTARTS,
    HostFile,
    NoRoom,
    RunFolder,
    run_folder,
)
from server.waiting import Stopping, until_there
from streaming.errors import StreamingError
from streaming.place import Place
from streaming.urls import mask

log = logging.getLogger(__name__)
BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
SOUND_S = 10.0  # who lived so long starts again at once
READY_WITHIN_S = 60.0
AGENT_END_S = 15.0
LEARNER_END_S = 15.0


@dataclass
class Child:
    """A process that should be there. `restarts` is the word of the host file that counts."""

    name: str
    main: Callable[[], int]
    restarts: int
    row: int | None = None
    pid: int = 0
    started: float = 0.0
    failures: int = 0
    start_at: float = 0.0
    ended: list[int] = field(default_factory=list)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status. Trouble at the start is one sentence on stderr.

    The garbage collector may be off when it is called, and rests until everything is loaded: all of that stays.

    A Kafka or a Redis that is away is no trouble: it waits for them, and listens once they are there.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
    )
    try:
        lock = data.take(settings.data)
        for listener in _listen(settings):  # a port in use is said before there is anything to wait for
            listener.close()
        store_id = _prepare(settings)
        listeners = _listen(settings)
        folder = run_folder(settings.data.resolve(), data.run_id(settings, store_id), settings.run_dir)
        folder.claim()
        folder.sweep([])
    except (data.DataFolderError, StreamingError, OSError) as error:
        print(f"croupier: {error}", file=sys.stderr)
        return 1
    except Stopping:
        return 0
    try:
        return Supervisor(settings, folder, listeners).run()
    except NoRoom as error:
        print(f"croupier: {error}", file=sys.stderr)
        return 1
    finally:
        folder.remove()
        for listener in listeners:
            listener.close()
        os.close(lock)


def _prepare(settings: Settings) -> str:
    """`data.prepare`; for servers of their own in a process of its own, because their clients' threads and connections
    must not be here when we fork. It waits there while they are away; our SIGTERM or SIGINT raises Stopping.
    Raises StreamingError, ValueError for a URL that cannot be."""
    place = data.place_of(settings)
    if place.folder is not None:
        return data.prepare(place, settings.shards)
    read, write = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        run_child(lambda: _prepare_for(write, place, settings.shards), parent, "prepare")
    os.close(write)
    told = {number: signal.signal(number, _stopping) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with os.fdopen(read) as pipe:
            answer = pipe.read()
    except Stopping:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        for number, before in told.items():
            signal.signal(number, before)
        os.waitpid(pid, 0)
    if not answer or answer.startswith("!"):
        raise StreamingError(answer[1:] or "log and store could not be prepared: the lines above say why")
    return answer


def _prepare_for(write: int, place: Place, shards: int) -> int:
    """Writes to this pipe the store's id, or "!" and why there is none."""
    try:
        answer = until_there("the server", lambda: data.prepare(place, shards), threading.Event())
    except (StreamingError, ValueError) as error:
        answer = f"!{error}"
    os.write(write, answer.encode())
    return 0


def _stopping(number: int, frame: object) -> None:
    del number, frame
    raise Stopping


def _listen(settings: Settings) -> list[socket.socket]:
    """A listening socket for each worker: the kernel spreads connections evenly over them, as it does not over the
    processes that wait on one. We keep them open, so connections to a worker that died wait for the next one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    port = settings.port
    listeners: list[socket.socket] = []
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:  # SO_REUSEPORT would let a second server share ours
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, port))
        for _ in range(settings.workers):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((settings.host, port))
            port = listener.getsockname()[1]
            listener.listen(2048)
            listener.setblocking(False)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}.") from None
    return listeners


class Supervisor:
    """Owns the children from `run` to its end."""

    def __init__(self, settings: Settings, folder: RunFolder, listeners: list[socket.socket]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._place = data.place_of(settings)
        apart = self._place.folder is None
        self.host = HostFile.create(folder, settings.workers, apart)
        self._agents = [Child("agent", lambda: agent(settings, folder), AGENT_RESTARTS)]
        self._learners = [Child("learner", lambda: learner(settings, folder), LEARNER_RESTARTS)] * (not apart)
        self._workers = [
            Child(f"worker {i}", _worker_main(settings, folder, i, listeners[i]), WORKER_RESTARTS, row=i)
            for i in range(settings.workers)
        ]
        self._children = [*self._agents, *self._learners, *self._workers]
        self._stop = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, self._told_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        preload_choosing()
        self._start_all(self._agents)  # it opens log and store on another core, if there is one, while we load the rest
        preload_http()
        self._start_all(self._workers)
        preload_rest()  # so that whoever starts from now on has everything
        self._start_all(self._learners)
        gc.enable()
        ready = False
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._stop:
            self._reap()
            self._start_due()
            if not ready and self._ready():
                ready = True
                self._announce()
            if not ready and time.monotonic() > deadline and self._place.folder is not None:  # else the agent waits
                print("croupier: it did not become ready; the lines above say why.", file=sys.stderr)
                self._end()
                return 1
            self._wait(0.01 if not ready else 0.5)
        self._end()
        return 0

    def _told_to_stop(self, number: int, frame: object) -> None:
        del number, frame
        self._stop = True

    def _wait(self, seconds: float) -> None:
        due = [child.start_at - time.monotonic() for child in self._children if not child.pid]
        select.select([self._wake_read], [], [], max(0.0, min([seconds, *due])))
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def _ready(self) -> bool:
        generation = self.host[GENERATION]
        rows = [self.host.row(i) for i in range(self.host.rows)]
        return generation > 0 and all(row[PID] and row[SEEN] and row[LINKED] for row in rows)

    def _announce(self) -> None:
        host, port = self._listeners[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        where = "log {}, store {}".format(*map(mask, self._place))
        if self._place.folder is not None:
            where = f"data in {self._settings.data}"
        print(f"croupier is ready on http://{shown}:{port} (docs at /docs, {where})", flush=True)

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if not child.pid and now >= child.start_at:
                self._start(child)

    def _start_all(self, children: list[Child]) -> None:
        for child in children:
            if not self._stop:
                self._start(child)

    def _start(self, child: Child) -> None:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        child.started = time.monotonic()
        child.pid = os.fork()
        if child.pid == 0:
            for i, listener in enumerate(self._listeners):
                if i != child.row:
                    listener.close()
            run_child(child.main, parent, child.name)

    def _reap(self) -> None:
        """Takes note of children that have ended, and says when each starts again."""
        for child in self._children:
            if not child.pid or not _has_ended(child.pid, child.ended):
                continue
            child.pid = 0
            if child.row is not None:
                self.host.row(child.row)[PID] = 0
            if self._stop:
                continue
            now = time.monotonic()
            child.failures = 0 if now - child.started > SOUND_S else child.failures + 1
            wait = BACKOFF_S[min(child.failures, len(BACKOFF_S) - 1)]
            child.start_at = now + wait
            self.host.add(child.restarts)
            log.warning("%s ended (%s) and starts again in %g s", child.name, _how(child.ended[-1]), wait)

    def _end(self) -> None:
        """Workers first, so that nothing new comes; then the agent; then the learner, which learns what they left."""
        self._stop = True
        self.host[DRAINING] = 1
        for listener in self._listeners:  # the workers hold theirs until they have said that they drain
            listener.close()
        self._end_all(self._workers, self._settings.drain_s + 8.0)
        self._end_all(self._agents, AGENT_END_S)
        self._end_all(self._learners, LEARNER_END_S)

    def _end_all(self, children: list[Child], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        while any(child.pid for child in children):
            self._reap()
            if time.monotonic() >= deadline:
                for child in children:
                    if child.pid:
                        log.warning("%s did not end within %g s and is killed", child.name, seconds)
                        os.kill(child.pid, signal.SIGKILL)
                deadline = float("inf")
            self._wait(0.05)


def _worker_main(settings: Settings, folder: RunFolder, number: int, listener: socket.socket) -> Callable[[], int]:
    return lambda: worker(settings, folder, number, listener)


def _has_ended(pid: int, ended: list[int]) -> bool:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # pragma: no cover - somebody else waited for it
        found, status = pid, 0
    if found:
        ended[:] = [status]
    return bool(found)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"status {code}"


def preload_choosing() -> None:
    """Imports what decides, and compiles its kernels, or loads them from their cache."""
    import server.host
    import server.ipc  # noqa: F401
    from server.warm import warm_worker

    warm_worker()
    _settle()


def preload_http() -> None:
    """Imports what a worker runs beside that."""
    import uvicorn.lifespan.on  # noqa: F401

    import server.app
    import server.rehearsal  # noqa: F401
    from server.children import loop_factory

    loop_factory()
    _settle()


def preload_rest() -> None:
    """What agent and learner run beside that, and every kernel."""
    import server.agent
    import server.learner_loop  # noqa: F401
    from server.warm import warm_up

    warm_up()
    _settle()


def _settle() -> None:
    """What is here stays: no collection touches, and so copies, the pages that children share."""
    gc.freeze()
