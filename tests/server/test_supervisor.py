"""The supervisor: a start that cannot be says why in one sentence; what dies starts again, ever more slowly."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server import shared
from server.children import run_child
from server.settings import Settings
from server.shared import RunFolder
from server.supervisor import BACKOFF_S, Child, Supervisor
from tests.server.processes import SERVE, wait_for


def refused(*arguments: str) -> str:
    """stderr of a server that does not start, whose exit status is 1."""
    command = [sys.executable, "-c", SERVE, "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("croupier: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(f"--port={port}", f"--data={tmp_path / 'data'}")
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said


def test_a_damaged_log(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").write_bytes(b"no database at all " * 1000)
    assert "log.sqlite" in refused("--port=0", f"--data={tmp_path}")


def test_a_run_folder_that_cannot_be(tmp_path: Path) -> None:
    said = refused("--port=0", f"--data={tmp_path / 'data'}", "--run-dir=/proc/nowhere")
    assert "/proc/nowhere" in said
    assert "Traceback" not in said


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    assert "data folder" in refused("--port=0", f"--data={tmp_path / 'data'}")


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    folder = RunFolder(tmp_path / "run", tmp_path / "disk")
    with socket.socket() as listener:
        yield Supervisor(Settings(data=tmp_path, workers=2), folder, [listener, listener])


def test_what_dies_starts_again_ever_more_slowly_and_is_counted(supervisor: Supervisor) -> None:
    child = Child("agent", lambda: 3, shared.AGENT_RESTARTS)
    supervisor._children = [child]
    waits = []
    for _ in range(4):
        child.start_at = 0
        supervisor._start_due()
        assert child.pid
        wait_for(lambda: supervisor._reap() or not child.pid)
        waits.append(round(child.start_at - time.monotonic(), 1))
    assert supervisor.host[shared.AGENT_RESTARTS] == 4
    assert waits == [BACKOFF_S[i] for i in (1, 2, 3, 4)]
    child.started = child.start_at = 0
    supervisor._start_due()
    child.started = time.monotonic() - 1000  # it had lived for long
    wait_for(lambda: supervisor._reap() or not child.pid)
    assert child.failures == 0
    assert child.start_at <= time.monotonic()


def test_who_does_not_end_in_time_is_killed(supervisor: Supervisor) -> None:
    def deaf() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        return 0

    child = Child("worker 0", deaf, shared.WORKER_RESTARTS, row=0)
    supervisor._children = [child]
    supervisor._start_due()
    time.sleep(0.2)
    supervisor.host.row(0)[shared.PID] = child.pid
    supervisor._stop = True
    supervisor._end_all([child], 0.3)
    assert child.pid == 0
    assert os.waitstatus_to_exitcode(child.ended[0]) == -signal.SIGKILL
    assert supervisor.host.row(0)[shared.PID] == 0
    assert supervisor.host[shared.WORKER_RESTARTS] == 0  # an end is no restart


def in_child(main: Callable[[], int]) -> int:
    """The exit status of a forked child that runs `main` as the supervisor's children do."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        run_child(main, parent, "child")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_childs_end_is_its_status() -> None:
    def fails() -> int:
        raise ValueError("a mistake")

    assert in_child(lambda: 0) == 0
    assert in_child(lambda: 7) == 7
    assert in_child(fails) == 1


def test_all_workers_must_have_loaded_and_found_the_agent_before_it_says_ready(supervisor: Supervisor) -> None:
    host = supervisor.host
    assert not supervisor._ready()
    host[shared.GENERATION] = 1
    for worker in range(2):
        assert not supervisor._ready()
        host.row(worker)[shared.PID] = 1
        host.row(worker)[shared.SEEN] = 1
        assert not supervisor._ready(), "it is not connected to the agent, so a PUT would be refused"
        host.row(worker)[shared.LINKED] = 1
    assert supervisor._ready()
