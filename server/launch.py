"""A server as a child process: started on a free loopback port, awaited, stopped, and nothing left behind.

The demo, the benchmarks and tests use it. The child leads a session of its own, so that Ctrl-C in the terminal
reaches only us and the child is stopped in order; if we are killed, the kernel sends it SIGTERM.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.client import Address, Connection, Unreachable
from server.settings import PREFIX

# Run by the child: 1 is PR_SET_PDEATHSIG, the signal the kernel sends when the parent has died.
CODE = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
from server.cli import main
sys.argv[0] = "croupier"
main()
"""


class StartFailed(RuntimeError):
    """The server ended or did not become ready; the sentence carries the last lines it wrote."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on at present."""
    with socket.socket() as s:
        s.bind((host, 0))
        port: int = s.getsockname()[1]
        return port


class ServerProcess:
    """`croupier serve` with a temporary data folder (or the one given), for a `with` block.

    flags: further arguments of `croupier serve`, as on the command line.
    """

    code = CODE

    def __init__(
        self, flags: Sequence[str] = (), *, host: str = "127.0.0.1", port: int = 0, data: Path | None = None
    ) -> None:
        self.host, self.port = host, port or free_port(host)
        self.flags = list(flags)
        self._folder = Path(tempfile.mkdtemp(prefix="croupier-"))
        # The shared memory gets a folder of ours too: a server that has to be killed cannot tidy up after itself.
        memory = Path("/dev/shm")
        self.run_folder = Path(tempfile.mkdtemp(prefix="croupier-", dir=memory if os.access(memory, os.W_OK) else None))
        self.data = data or self._folder / "data"
        self.output = self._folder / "output"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0  # time.monotonic() just before exec

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "ServerProcess":
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.stop()
        finally:
            self.remove()

    def start(self) -> None:
        assert self.process is None
        command = [sys.executable, "-c", self.code, "serve", "--host", self.host, "--port", str(self.port)]
        command += ["--data", str(self.data), "--run-dir", str(self.run_folder), *self.flags]
        # What the caller's shell says to servers of theirs (keys, workers) is not meant for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with open(self.output, "ab") as output:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self, timeout_s: float = 120.0) -> float:
        """Wait until /readyz says 200; seconds since the start. Raises StartFailed."""
        assert self.process is not None
        async with Connection(Address.of(self.url)) as connection:
            while True:
                if self.process.poll() is not None:
                    raise StartFailed(f"the server ended with status {self.process.returncode}.\n{self.last_lines()}")
                try:
                    if (await connection.request("GET", "/readyz", timeout_s=2)).status == 200:
                        return time.monotonic() - self.started_at
                except Unreachable:
                    pass
                if time.monotonic() > self.started_at + timeout_s:
                    raise StartFailed(f"the server is not ready after {timeout_s:g} s.\n{self.last_lines()}")
                await asyncio.sleep(0.01)

    def last_lines(self, n: int = 15) -> str:
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        return "\n".join(text.splitlines()[-n:]) or "(it wrote nothing)"

    def stop(self, grace_s: float = 20.0) -> int | None:
        """SIGTERM, then SIGKILL to what is left of the session; the exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = self.process.wait()
        self.process = None
        return status

    def pids(self) -> list[int]:
        """The processes of the server's session, itself first."""
        if self.process is None:
            return []
        leader = self.process.pid
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path("/proc", entry, "stat").read_text()
                except OSError:
                    continue
                state, _, _, session = stat[stat.rindex(")") + 2 :].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry))
        return sorted(found, key=lambda pid: (pid != leader, pid))

    def pid_of(self, client_port: int) -> int | None:
        """The server process that holds the connection from this port of ours: which worker a client talks to."""
        inode = None
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            columns = line.split()
            local, remote = (int(columns[i].split(":")[1], 16) for i in (1, 2))
            if (local, remote) == (self.port, client_port):
                inode = columns[9]
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{inode}]":
                            return pid
        return None

    def memory_bytes(self) -> dict[int, int]:
        """Memory of each process that is its own (RSS without shared pages), by pid."""
        own = {}
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            own[pid] = int(fields.get("RssAnon", "0 kB").split()[0]) * 1024
        return own

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)
