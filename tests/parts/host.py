"""What a real part needs of its host: a process that dies with us, ports that stay ours, a certificate."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

CACHE = Path(__file__).resolve().parents[2] / ".cache"
_DRAW = random.SystemRandom()


def unavailable(reason: str) -> NoReturn:
    """A laptop without a part skips the test and says why; CI (the variable ``CI`` is set) fails."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs the real part: {reason}")
    pytest.skip(reason)


def wait_for(true: Callable[[], bool], what: str, timeout_s: float = 30.0, every_s: float = 0.02) -> None:
    """Return once ``true()`` holds; AssertionError that names ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports p of 127.0.0.1, with p and p + 10,000 (a Redis node's bus) free.

    All lie below the kernel's ephemeral range: a client that dials a dead server's port in that range over and over is
    at last given the same port as its own, is connected to itself, and the server can never bind it again.
    """
    found: list[int] = []
    while len(found) < count:
        port = _DRAW.randrange(10_000, 22_000)
        if port not in found and is_free(port) and is_free(port + 10_000):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One server process, its output in ``log``; killed by the kernel when the thread that started it ends.

    Parent-death signals belong to the *thread* that forked, so start servers in a thread that lives as long as they
    must (the main thread of a test does).
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = list(command)
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None
        self.paused = False

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.command[0]} was never started"
        return self._popen.pid

    @property
    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def start(self) -> None:
        assert not self.alive, f"{self.command[0]} runs already as {self.pid}"
        if shutil.which("setpriv") is None:
            unavailable("no setpriv (util-linux): servers could outlive the tests")
        with self.log.open("ab") as out:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def check(self) -> None:
        """AssertionError with the end of the log when the process has ended by itself."""
        assert self.alive, f"{self.command[0]} ended with {self._popen and self._popen.returncode}:\n{self.tail()}"

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else "(no log)"

    def kill(self) -> None:
        """``kill -9``, and wait until the kernel has taken everything back."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
        self.paused = False

    def stop(self, timeout_s: float = 15.0) -> None:
        """SIGTERM and a clean end; ``kill -9`` after ``timeout_s``."""
        if self.alive and self._popen is not None:
            self.resume()
            self._popen.terminate()
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            os.kill(self.pid, signal.SIGCONT)
        self.paused = False


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1 and localhost; ``certificate`` is the CA file of clients that trust it."""

    certificate: Path
    key: Path
    both: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificate":
        if shutil.which("openssl") is None:
            unavailable("no openssl to make a test certificate")
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        files = ["-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run(["openssl", *new, *names, *files], check=True, capture_output=True)
        made.both.write_text(made.key.read_text() + made.certificate.read_text())
        return made
