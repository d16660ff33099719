"""The environment of other libraries, and a process for each: what `benchmarks.peers` asks.

Peers live in .cache/peers, made on demand; benchmarks/peers.txt pins them and all they need. Nothing here waits without
a bound, and what cannot be had raises Unavailable with the reason.
"""

import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PINS = HERE / "peers.txt"
FOLDER = HERE.parent / ".cache" / "peers"
INSTALL_S, ANSWER_S = 400.0, 120.0  # at most, for one peer; for one answer
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}


class Peer(NamedTuple):
    """A library under the name of its distribution; `steps` are the arguments of one `pip install` after another."""

    name: str
    steps: tuple[tuple[str, ...], ...]


PLOTTING = ("numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "seaborn")
PEERS = (
    Peer("vowpalwabbit", (("vowpalwabbit", "numpy"),)),
    Peer("mabwiser", (("mabwiser",),)),
    Peer("river", (("river",),)),
    # From source: it needs a C compiler.
    Peer(
        "contextualbandits",
        (
            ("numpy", "scipy", "pandas", "scikit-learn", "joblib", "setuptools", "wheel", "cython"),
            ("--no-deps", "--no-build-isolation", "contextualbandits"),
        ),
    ),
    # Without torch, which would be gigabytes: only its offline learners use it.
    Peer("obp", ((*PLOTTING, "pyyaml", "tqdm", "mypy-extensions"), ("--no-deps", "obp"))),
)


class Unavailable(RuntimeError):
    """A library that could not be installed, started or asked; the sentence says why."""


def bounded(command: Sequence[str], seconds: float) -> None:
    """Run a command and all that it starts for so long at most; Unavailable with its last words when it fails."""
    with tempfile.TemporaryFile("w+") as words:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(seconds)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)  # pip's compilers too; the group is its own
            child.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unavailable(f"not done after {seconds:g} s") from None
            raise
        if status:
            words.seek(0)
            raise Unavailable(last_words(words.read()) or f"exit status {status}")


def last_words(text: str) -> str:
    """The sentence that says what went wrong: pip's last ERROR, else the last line.

    >>> last_words("Looking\\nERROR: No matching distribution found for x\\n\\nhint: none\\n")
    'No matching distribution found for x'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [""])[-1][:300]


def install(peer: Peer, folder: Path, seconds: float = INSTALL_S) -> Path:
    """The Python of the environment in `folder`, with this peer in it; Unavailable when it cannot be had."""
    python = folder / "bin" / "python"
    done = folder / f"{peer.name}.installed"
    stamp = hashlib.blake2b(PINS.read_bytes() + repr((peer, sys.version)).encode(), digest_size=8).hexdigest()
    if done.exists() and done.read_text() == stamp:
        return python
    print(f"peers: installing {peer.name} ...", file=sys.stderr, flush=True)
    end = time.monotonic() + seconds
    if not python.exists():
        bounded([sys.executable, "-m", "venv", str(folder)], seconds)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pip += ["--retries", "1", "--timeout", "15", "--constraint", str(PINS)]
    pip += ["--only-binary", ":all:", "--no-binary", "contextualbandits"]
    for step in peer.steps:
        bounded([*pip, *step], max(1.0, end - time.monotonic()))
    done.write_text(stamp)
    return python


class Library:
    """A process that has one library (benchmarks/peer_calls): `ask` it, one JSON line for another."""

    def __init__(self, python: Path | str, name: str) -> None:
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` closes it
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peer_calls"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ONE_THREAD,
        )
        self.ready = selectors.DefaultSelector()
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.ready.register(self.process.stdout, selectors.EVENT_READ)
        try:
            hello = self._answer()
        except Unavailable:
            self.close()
            raise
        self.version, self.subjects = hello["version"], hello["subjects"]

    def _answer(self) -> dict[str, Any]:
        line, end = b"", time.monotonic() + ANSWER_S
        assert self.process.stdout is not None
        while not line.endswith(b"\n"):
            if not self.ready.select(end - time.monotonic()):
                self.process.kill()  # a late answer would be taken for the next one's
                raise Unavailable(f"no answer within {ANSWER_S:g} s")
            piece = self.process.stdout.read()
            if not piece:
                self.words.seek(0)
                raise Unavailable(last_words(self.words.read()) or "it ended")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that does not come says why
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.ready.close()
        for file in (self.process.stdin, self.process.stdout, self.words):
            assert file is not None
            file.close()
