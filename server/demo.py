"""`croupier demo`: a real server, two policies, simulated users, and the click rate leaving random behind.

    headlines   banker, 8 headlines; two segments of readers that like different ones
    films       diag-linucb, 300 films and 2,000 people as vectors, slates of 5; the graph is built from both

The users click by chances that only they know; a click is reported a second later, some twice, some too late. What is
shown is measured on their side. Everything lies in temporary folders and is gone at the end.
"""

import asyncio
import contextlib
import math
import shlex
import signal
import time
import webbrowser
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bandits import graph_builder
from loadtest.client import Unreachable
from loadtest.ledger import Ledger, Tenth
from loadtest.probe import Probe
from loadtest.report import Report, times
from loadtest.users import Crowd, Habits, SetupRefused, server_outcomes, set_up, settled_outcomes
from loadtest.worlds import Taste, World, films, headlines
from server.launch import ServerProcess, StartFailed

WINDOW_S = 20.0
HABITS = Habits(users=6, visits_per_s=220.0, duplicate_share=0.02, late_share=0.01, patience_s=10.0)
EXPLOIT_SHARE = 0.25
RECENT = 800  # visits in the click rate called "now": some four seconds
REDRAW_S = 0.5
LINE_S = 3.0  # between two lines where stdout is no terminal
GOAL = 1.5  # times random, what a demo of some length should reach
BARS = "▁▂▃▄▅▆▇█"
LIKED = {
    "morning": [0.02, 0.03, 0.12, 0.02, 0.04, 0.02, 0.03, 0.04],
    "evening": [0.04, 0.13, 0.02, 0.02, 0.02, 0.04, 0.03, 0.02],
}


def habits_of(world: World) -> Habits:
    """A part of those whom a graph serves gets what it thinks best; a bank learns from its own draws only."""
    return HABITS if world.graph is None else replace(HABITS, exploit_share=EXPLOIT_SHARE)


def make_worlds(seed: int = 0) -> list[World]:
    """The demo's worlds: of a random choice about 4 % are clicked, of the best possible 12 % and 17 %."""
    taste = Taste.draw(np.random.default_rng(seed))
    ids = [f"film{i}" for i in range(len(taste.items))]
    graph = graph_builder.from_embeddings(taste.users, taste.items, ids, n_clusters=16, items_per_cluster=60, seed=seed)
    return [
        headlines(LIKED, window_s=WINDOW_S),
        films(taste, window_s=WINDOW_S, graph=graph.to_bytes()),
    ]


def run_demo(
    duration_s: float | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    seed: int = 0,
    console: Console | None = None,
    page: bool = False,
) -> int:
    """The whole demo; blocks until `duration_s` of users' time are over (None: until Ctrl-C). The exit status.

    `page`: also opens the live page in the browser of whoever sits there.
    port 0 takes a free one. 0 when the demo ran, however short; 1, with a sentence, when the server did not start or
    ended on its own.
    """
    console = console or Console()
    if duration_s is not None and not duration_s > 0:
        console.print(f"--duration {duration_s:g}: give the seconds it should last, above 0", style="red")
        return 1
    try:
        return asyncio.run(_demo(duration_s, host, port, seed, console, page))
    except (StartFailed, SetupRefused, Unreachable) as e:
        console.print(f"croupier demo: {e}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130  # a second Ctrl-C; the server is stopped all the same


async def _demo(duration_s: float | None, host: str, port: int, seed: int, console: Console, page: bool) -> int:
    stop = asyncio.Event()
    with _signals(stop):
        console.print(
            "Starting a server (the first start on a machine compiles its kernels: up to a minute) ...", soft_wrap=True
        )
        with ServerProcess(host=host, port=port) as server:
            worlds = make_worlds(seed)
            ready = asyncio.create_task(server.ready())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                console.print("Stopped before the server was ready.")
                return 0
            stopped.cancel()
            console.print(f"Ready after {ready.result():.1f} s: {server.url}")
            for world in worlds:
                await set_up(server.url, world)
            _invite(console, server.url, worlds[0])
            if page:
                webbrowser.open(server.url)
            show = await _simulate(server, worlds, duration_s, seed, stop, console)
            console.print("Stopping the server ...")
            status = server.stop()
        return _farewell(console, show, status)


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; a second Ctrl-C interrupts."""
    loop = asyncio.get_running_loop()

    def once() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, once)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    except (ValueError, RuntimeError):  # not in the main thread: whoever runs us there stops us otherwise
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


def curl_line(url: str, world: World) -> str:
    """A request to paste into a shell."""
    body = msgspec.json.encode({"policy": world.policy, "user": msgspec.Raw(world.users[0]), "k": 1}).decode()
    return f"curl -s {url}/v1/recommend -H 'content-type: application/json' -d {shlex.quote(body)}"


def _invite(console: Console, url: str, world: World) -> None:
    console.print()
    for what, text in (("watch it", f"{url}/"), ("API", f"{url}/docs"), ("try", curl_line(url, world))):
        # soft_wrap: a line that is broken by us cannot be pasted.
        console.print(f"  {what:<10} {text}", soft_wrap=True, markup=False, highlight=False)
    console.print()


@dataclass
class Show:
    """What is on the screen: the crowds, the probe, and the history of each policy's click rate."""

    crowds: list[Crowd]
    probe: Probe
    duration_s: float | None
    start: float = field(default_factory=time.monotonic)
    history: dict[str, deque[float]] = field(default_factory=dict)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] | None = None
    trouble: str | None = None  # why it ended early

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def sample(self) -> None:
        """Note each policy's click rate of now."""
        for crowd in self.crowds:
            now = crowd.ledger.rates(last=RECENT)
            if now.shown:
                self.history.setdefault(crowd.world.policy, deque(maxlen=24)).append(times(now))

    def fresh_ms(self) -> float | None:
        """The median of the latest freshness measurements."""
        last = self.probe.found.seconds[-20:]
        return float(np.median(last)) * 1000 if last else None

    def clock(self) -> str:
        end = "" if self.duration_s is None else f" of {self.duration_s:g}"
        return f"{self.elapsed_s:.0f}{end} s"

    def state(self) -> str:
        fresh = self.fresh_ms()
        seen = "" if fresh is None else f"; a reward shows in the next choice after {fresh:.0f} ms"
        return f"{self.clock()}{seen}"

    def line(self) -> str:
        """All of it in one plain line."""
        parts = []
        for crowd in self.crowds:
            now = crowd.ledger.rates(last=RECENT)
            if now.shown:
                parts.append(f"{crowd.world.policy} {now.clicked:.1%} ({times(now):.1f} x random {now.random:.1%})")
        fresh = self.fresh_ms()
        if fresh is not None:
            parts.append(f"fresh in {fresh:.0f} ms")
        return f"{self.clock():>11}  " + "   ".join(parts or ["waiting for the first clicks"])

    def table(self) -> Group:
        """All of it as a picture."""
        table = Table(box=None, padding=(0, 1))
        for name in ("policy", "decisions", "clicks", "random", "best", "x random", "since the start"):
            left = name in ("policy", "since the start")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for crowd in self.crowds:
            name, now = crowd.world.policy, crowd.ledger.rates(last=RECENT)
            if not now.shown:
                table.add_row(name, "0")
                continue
            figures = [f"{rate:.1%}" for rate in (now.clicked, now.random, now.best)]
            top = now.best / now.random if now.random else math.nan
            style = "green" if times(now) >= GOAL else "yellow"
            table.add_row(
                Text(name, "bold"),
                f"{crowd.ledger.decisions:,}",
                *figures,
                Text(f"{times(now):.2f}", style),
                Text(chart(self.history.get(name, ()), top), style),
            )
        return Group(table, Text(f"  {self.state()}  (Ctrl-C ends it)", "dim"))


def chart(values: Iterable[float], top: float) -> str:
    """Bars from random (1) up to the best possible (`top`).

    >>> chart((0.9, 1.0, 2.0, 3.0, 3.5), 3.0)
    '▁▁▄██'
    """
    span = max(top - 1.0, 1e-9)
    steps = [int((value - 1.0) / span * (len(BARS) - 1)) for value in values]
    return "".join(BARS[min(max(step, 0), len(BARS) - 1)] for step in steps)


async def _simulate(
    server: ServerProcess, worlds: list[World], duration_s: float | None, seed: int, stop: asyncio.Event, c: Console
) -> Show:
    """Users until the time is over, Ctrl-C, or the server's end."""
    probe = Probe(server.url, connections=2, poll_s=0.004, window_s=WINDOW_S)
    await probe.set_up()
    before = await server_outcomes(server.url)
    crowds = [Crowd(server.url, world, habits_of(world), seed + i) for i, world in enumerate(worlds)]
    show = Show(crowds, probe, duration_s, before=before)
    runs = [asyncio.create_task(crowd.run(None, drain_s=1.0)) for crowd in crowds]
    watching = asyncio.create_task(probe.run(None, every_s=1.0))
    try:
        await _watch(server, show, runs, stop, c)
        for crowd in crowds:
            crowd.stop()
        if show.trouble is None:
            await asyncio.gather(*runs)
    finally:
        for task in (*runs, watching):
            task.cancel()
        await asyncio.gather(*runs, watching, return_exceptions=True)
        probe.close()
    if show.trouble is None:
        report = books(show)
        wanted = sum(report.total.expected.values())
        show.after = await settled_outcomes(server.url, before, wanted, quiet_s=2.0)
    return show


async def _watch(
    server: ServerProcess, show: Show, runs: list[asyncio.Task[Ledger]], stop: asyncio.Event, console: Console
) -> None:
    """Keep the screen up to date until there is a reason to end."""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    next_line = LINE_S
    with live or contextlib.nullcontext():
        while not stop.is_set() and (show.duration_s is None or show.elapsed_s < show.duration_s):
            left = REDRAW_S if show.duration_s is None else min(REDRAW_S, show.duration_s - show.elapsed_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, left))
            show.sample()
            if live is not None:
                live.update(show.table(), refresh=True)
            elif show.elapsed_s >= next_line:
                next_line += LINE_S
                console.print(show.line(), soft_wrap=True, markup=False, highlight=False)
            assert server.process is not None
            if server.process.poll() is not None:
                show.trouble = f"the server ended with status {server.process.returncode}.\n{server.last_lines()}"
                return
            for run in runs:
                if run.done():
                    run.result()  # a simulated user failed: our mistake, shown as it is


def books(show: Show) -> Report:
    """The report of the demo's run, with both sides' counts where there are any."""
    ledgers = {crowd.world.policy: crowd.ledger for crowd in show.crowds}
    return Report(ledgers, show.elapsed_s, show.probe.found, show.probe.ledger, show.before, show.after)


def last_part(ledger: Ledger) -> Tenth:
    """Click rates of the last fifth of the visits."""
    return ledger.rates(last=max(1, ledger.decisions // 5))


def _farewell(console: Console, show: Show, status: int | None) -> int:
    """The summary, and the exit status."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)

    if show.trouble is not None:
        say(f"croupier demo: {show.trouble}", "red")
        return 1
    say("\nSummary (the last fifth of the visits)")
    for crowd in show.crowds:
        rates = last_part(crowd.ledger)
        if rates.shown:
            say(
                f"  {crowd.world.policy:<10} {rates.clicked:.2%} clicked, random {rates.random:.2%}, best possible "
                f"{rates.best:.2%}: {times(rates):.2f} times random",
                "green" if times(rates) >= GOAL else "yellow",
            )
    report = books(show)
    counts = ", ".join(f"{line.server:,} {line.outcome}" for line in report.books if line.outcome != "all")
    wrong = [f"{line.low:,} to {line.high:,} {line.outcome}" for line in report.books if not line.agrees]
    say(f"  rewards    {counts}: " + (f"NOT as sent ({', '.join(wrong)})" if wrong else "as sent, each once"))
    fresh = report.freshness.to_dict()["acknowledged_to_visible_ms"] if report.freshness else {}
    if fresh:
        say(f"  freshness  acknowledged to visible in {fresh['p50']:.0f} ms (median), {fresh['max']:.0f} ms at most")
    say(f"  the server has stopped (status {status}); its temporary files are gone")
    return 0
