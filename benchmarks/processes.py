"""The processes of a server under measurement: which is which, what CPU time each has used, on which core it runs."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

PARTS = ("worker", "agent", "learner", "supervisor")
QUIET_SHARE, QUIET_S, QUIET_WITHIN_S = 0.08, 0.25, 60.0


def parts(pids: Sequence[int]) -> dict[str, list[int]]:
    """The server's processes (`ServerProcess.pids()`) by what they are; each child shows its name to the kernel."""
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    for pid in pids:
        name = Path(f"/proc/{pid}/comm").read_text().strip().split(" ")[0]
        found[name if name in found else "supervisor"].append(pid)
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes so far, all their threads, to the nanosecond.

    >>> before = cpu_seconds([os.getpid()])
    >>> sum(range(100_000)) > 0 and cpu_seconds([os.getpid()]) > before
    True
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # clock_getcpuclockid(3), which Python lacks


class Clock:
    """CPU time of each part of a server since this was made."""

    def __init__(self, of: Mapping[str, Sequence[int]]) -> None:
        self._of = of
        self._before = {part: cpu_seconds(pids) for part, pids in of.items()}

    def read(self) -> dict[str, float]:
        return {part: cpu_seconds(pids) - self._before[part] for part, pids in self._of.items()}


def pin(pids: Iterable[int], core: int) -> None:
    """Every thread that these processes have; those they start later inherit it."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), {core})


@contextlib.contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """These processes stand still for a `with` block."""
    pids = list(pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def generating(core: int | None) -> Iterator[bool]:
    """This process as the load generator on one core, for a `with` block; None: wherever the kernel puts it.

    On its core it goes before all others (SCHED_FIFO), as clients on other machines would not wait for our agent and
    learner either; whether that was allowed (it takes root) is what the block gets.
    """
    before, first = os.sched_getaffinity(0), False
    if core is not None:
        os.sched_setaffinity(0, {core})
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            first = True
    try:
        yield first
    finally:
        if first:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


def settle(pids: Iterable[int]) -> float:
    """Wait until the processes have done what was left to do, so that it costs nobody else: until together they use
    less than QUIET_SHARE of a core. Seconds waited; TimeoutError when they go on for QUIET_WITHIN_S."""
    pids, begin = list(pids), time.monotonic()
    while time.monotonic() < begin + QUIET_WITHIN_S:
        before, at = cpu_seconds(pids), time.monotonic()
        time.sleep(QUIET_S)
        if cpu_seconds(pids) - before < QUIET_SHARE * (time.monotonic() - at):
            return at - begin
    raise TimeoutError(f"the server is still busy {QUIET_WITHIN_S:g} s after the load has ended")
