"""The main functions of the supervisor's children: agent, learner, worker. Each runs in a process forked for it.

A child ends on SIGTERM in its own way, and at once when its parent is gone: the kernel sends it SIGKILL.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from server import data
from server.settings import Settings
from server.shared import LINKED, HostFile, RunFolder

log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
CONNECT_S = 10.0


def die_with_parent(parent: int, name: str) -> None:
    """Asks the kernel to kill this process when its parent ends, and to show it under this name."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:  # pragma: no cover - Linux has it
        log.warning("prctl failed: a killed supervisor would leave this process behind")
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def agent(settings: Settings, folder: RunFolder) -> int:
    """Opens log and store, listens on the run folder's socket until SIGTERM, then appends what is left."""
    from server.agent import Agent
    from server.ipc import AgentServer

    async def run() -> None:
        stopping = _on_sigterm()
        place = data.place_of(settings)
        parts = data.open_parts(place, write=True)
        agent = Agent(parts.log, parts.store, HostFile(folder.host), folder, apart=place.folder is None)
        agent.is_process = True
        await asyncio.to_thread(agent.open)
        server = AgentServer(agent)
        await server.start(folder.socket)
        await stopping.wait()
        await server.close()
        await asyncio.to_thread(agent.close)
        parts.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())
    return 0


def learner(settings: Settings, folder: RunFolder) -> int:
    """Learns until SIGTERM, then what is in the log by then."""
    from server.learner_loop import LearnerLoop

    parts = data.open_parts(data.place_of(settings), write=False)
    loop = LearnerLoop(
        parts.log,
        parts.store,
        HostFile(folder.host),
        settings.learner_poll_ms / 1000,
        settings.snapshot_interval_s,
        settings.keep_snapshots,
    )
    signal.signal(signal.SIGTERM, lambda *_: loop.stop.set())
    loop.run()
    parts.close()
    return 0


def worker(settings: Settings, folder: RunFolder, number: int, listener: socket.socket) -> int:
    """Answers requests on the shared socket until SIGTERM, then finishes those under way."""
    import uvicorn

    from server.app import create_app
    from server.host import HostEngine
    from server.ipc import SocketChannel
    from server.rehearsal import protocol_for

    class Server(uvicorn.Server):
        """Signals are ours: draining begins before the socket closes."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    async def run() -> None:
        stopping = _on_sigterm()
        channel = SocketChannel(folder.socket)
        engine = HostEngine(HostFile(folder.host), folder, number, settings.flush_ms, channel)
        channel.linked = lambda there: engine.row.__setitem__(LINKED, int(there))
        engine.row[LINKED] = 0
        channel.open(engine.outbox)
        engine.start()
        config = uvicorn.Config(
            create_app(settings, engine),
            http=await protocol_for(settings),
            ws="none",
            log_config=None,
            log_level="warning" if not settings.access_log else "info",
            access_log=settings.access_log,
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            server_header=False,
        )
        server = Server(config)

        async def drain() -> None:
            await stopping.wait()
            engine.draining = True
            await asyncio.sleep(min(DRAIN_NOTICE_S, settings.drain_s))
            server.should_exit = True

        draining = asyncio.create_task(drain())
        await server.serve(sockets=[listener])
        draining.cancel()
        await engine.drain(min(5.0, max(1.0, settings.drain_s)))
        channel.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())
    return 0


DRAIN_NOTICE_S = 0.2  # /readyz says 503 for so long before the socket closes


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes uvloop's loops; None where there is no uvloop."""
    try:
        import uvloop
    except ImportError:  # pragma: no cover - not on this platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _on_sigterm() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    return stopping


def run_child(main: Callable[[], int], parent: int, name: str) -> None:
    """Runs a child's main function in a process that was just forked; does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's reach the whole group; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    gc.enable()
    code = 1
    try:
        die_with_parent(parent, name)
        threading.current_thread().name = name
        code = main()
    except Exception as error:
        from streaming.errors import StreamingError

        if isinstance(error, StreamingError):
            log.error("%s stops: %s", name, error)
        else:
            log.exception("%s stops", name)
    except BaseException:
        log.exception("%s stops", name)
    finally:
        logging.shutdown()
        os._exit(code)
