"""A plan for a large site from the costs of its parts: `python -m benchmarks.sizing [--decisions-per-day N ...]`.

    FIGURES (measured, each with its command) + Site (yours) + Prices (yours) -> plan: partitions, cores, memory, ...

A figure that was not measured yet is None, and everything that needs it says TO_MEASURE instead of a number.
`--markdown` prints the tables of docs/sizing.md, which a test compares.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from streaming import events, token

DAY_S = 86_400
TO_MEASURE = "TO_MEASURE"
SHARDS_MIN, SHARDS_MAX = 8, 1024
GBIT_S = 1e9 / 8


class Figure(NamedTuple):
    """What a part costs, measured on the machine that docs/benchmarks.md names; "and core" is a second of CPU."""

    value: float | None
    unit: str
    what: str
    command: str


FIGURES = {
    "recommends": Figure(4_900, "/s and worker", "film recommendations over HTTP", "python -m benchmarks.http"),
    "rewards": Figure(127_000, "/s and worker", "rewards over HTTP, 500 a request", "python -m benchmarks.rewards"),
    "appended": Figure(220_000, "/s and core", "copies of decisions appended to Kafka", "python -m benchmarks.kafka"),
    "followed": Figure(3_400_000, "cells/s and core", "an agent follows commits", "python -m benchmarks.follow"),
    "cell": Figure(41, "bytes", "a changed cell in the feed, all that comes with it", "python -m benchmarks.follow"),
    "routed": Figure(54_500, "/s and core", "rewards through the router", "python -m benchmarks.router"),
    "learned": Figure(390_000, "events/s and core", "from Kafka, one item a decision", "python -m benchmarks.scale"),
    "commit": Figure(289, "us", "Redis: commit of 1,000 cells", "python -m benchmarks.redis"),
    "edge": Figure(16.3, "bytes", "Redis: one edge", "python -m benchmarks.redis"),
    "snapshot": Figure(16, "bytes", "Redis: one edge in a snapshot", "python -m benchmarks.redis"),
    "loaded": Figure(12_000_000, "edges/s", "a shard loaded from Redis", "python -m benchmarks.redis"),
}


@dataclass(frozen=True)
class Site:
    """What a site asks for, and how it is run. Change any of it by a flag of the same name."""

    decisions_per_day: float = 1e9
    peak: float = 2.5
    """The busiest second over the average one."""
    items: int = 10
    """Items of a decision."""
    clusters: int = 10
    """Clusters of a user, m: each item of a decision touches as many edges."""
    answers: float = 0.1
    """Rewards sent for a decision, on average."""
    routed: float = 0.0
    """Share of them that comes through the router instead of HTTP."""
    edges: float = 1e7
    window_h: float = 0.5
    """How long a reward counts."""
    snapshot_interval_s: float = 300.0
    keep_snapshots: int = 2
    busy: float = 0.5
    """Of its cores, what a part may use at the peak."""
    cores_per_server: int = 16
    learner_commits_per_s: float = 50.0
    """A shard's; a busy learner takes more records into each commit."""
    redis_busy: float = 0.5
    """Of a Redis node's memory, what may be filled: the rest is for forks and failovers."""
    gb_per_redis_node: float = 16.0
    kafka_replicas: int = 3


@dataclass(frozen=True)
class Prices:
    """A month, in dollars; round list prices of rented machines, for orders of magnitude only."""

    core: float = 25.0
    gb_memory: float = 3.0
    gb_disk: float = 0.1


class Line(NamedTuple):
    """One line of the plan; `value` None: a figure in it is not measured."""

    part: str
    what: str
    value: float | None
    unit: str
    how: str


def event_bytes(clusters: int, items: int) -> int:
    """Bytes of a decision in the log, and of a reward, which carries the decision.

    >>> event_bytes(10, 10)
    192
    """
    context = token.Context(
        token.DIAG, 1, 1, 0, 1, 0.0, token.FIRST, 0, True, np.arange(items, dtype=np.uint32),
        np.zeros(items, np.float16), 1, np.arange(clusters, dtype=np.uint32), np.zeros(clusters, np.uint16),
    )  # fmt: skip
    return len(events.decision(token.encode(context), 0))


def copies(items: int, shards: int) -> float:
    """Shards that hear of a decision: those that own one of its items, each drawn by hash.

    >>> copies(10, 1), round(copies(10, 8), 1), round(copies(10, 64), 1)
    (1.0, 5.9, 9.3)
    """
    return shards * (1 - (1 - 1 / shards) ** items)


def shards_for(site: Site, figures: dict[str, Figure]) -> int | None:
    """The fewest shards, as a power of two, each of which keeps its learner's core below `busy` at the peak."""
    learned = figures["learned"].value
    if learned is None:
        return None
    least = _events_per_s(site) / (site.busy * learned)
    return int(max(SHARDS_MIN, min(SHARDS_MAX, 2 ** math.ceil(math.log2(least)))))


def _decisions_per_s(site: Site) -> float:
    return site.decisions_per_day / DAY_S * site.peak


def _events_per_s(site: Site) -> float:
    """What learners learn: an event is an item of a decision, or a reward."""
    return _decisions_per_s(site) * (site.items + site.answers)


def _times(factor: float | None, *by: float | None) -> float | None:
    value = factor
    for each in by:
        value = None if value is None or each is None else value * each
    return value


def _over(value: float | None, by: float | None) -> float | None:
    return 0.0 if value == 0 else None if value is None or by is None else value / by


def plan(site: Site, figures: dict[str, Figure] = FIGURES) -> list[Line]:
    """The plan, line by line."""
    return [*_load(site, figures), *_servers(site, figures), *_learners(site, figures), *_redis(site, figures)]


def _load(site: Site, figures: dict[str, Figure]) -> Iterator[Line]:
    shards, decisions = shards_for(site, figures), _decisions_per_s(site)
    size = event_bytes(site.clusters, site.items)
    heard = None if shards is None else copies(site.items, shards)
    written = None if heard is None else decisions * (heard + site.answers) * size
    yield Line("load", "decisions at the peak", decisions, "/s", "a day / 86,400 x peak")
    yield Line("load", "events at the peak", _events_per_s(site), "/s", "decisions/s x (items + answers)")
    yield Line("Kafka", "partitions P", shards, "", "events/s / (learned x busy), a power of two from 8")
    yield Line("Kafka", "copies of a decision", heard, "", "P (1 - (1 - 1/P)^items)")
    yield Line(
        "Kafka",
        "written at the peak",
        _times(written, 1e-6),
        "MB/s",
        f"decisions/s x (copies + answers) x {size} bytes",
    )
    yield Line("Kafka", "between brokers", _times(written, (site.kafka_replicas - 1) / 1e6), "MB/s", "x (replicas - 1)")
    kept = _times(written, site.snapshot_interval_s * (site.keep_snapshots + 1) / 1e9)
    disk = None if kept is None or shards is None else site.kafka_replicas * (kept + shards)
    yield Line("Kafka", "disk, all brokers", disk, "GB", "replicas x (written x interval x (kept + 1) + 1 GB x P)")


def _servers(site: Site, figures: dict[str, Figure]) -> Iterator[Line]:
    rate, shards = _decisions_per_s(site), shards_for(site, figures)
    rewards = rate * site.answers
    choosing = _over(rate / site.busy, figures["recommends"].value)
    sent = _over(rewards * (1 - site.routed) / site.busy, figures["rewards"].value)
    cores = None if choosing is None or sent is None else choosing + sent
    servers = None if cores is None else max(2, math.ceil(cores / site.cores_per_server))
    yield Line("servers", "cores that answer", cores, "", "(decisions/s / recommends + rewards/s / rewards) / busy")
    yield Line("servers", "hosts", servers, "", f"cores / {site.cores_per_server}, at least 2")
    cells = rate * site.items * site.clusters
    yield Line("servers", "cells that change, at most", cells / 1e6, "M/s", "decisions/s x items x clusters")
    feed = _times(cells / 1e6, figures["cell"].value)
    yield Line("servers", "feed into each host, at most", feed, "MB/s", "cells/s x cell")
    following = _over(cells, figures["followed"].value)
    yield Line("servers", "agent of each host follows", following, "cores", "cells/s / followed; it has one")
    heard = None if shards is None else rate * (copies(site.items, shards) + site.answers)
    appending = _over(_over(heard, figures["appended"].value), servers)
    yield Line("servers", "agent of each host appends", appending, "cores", "copies/s / appended / hosts; the same one")
    yield Line("servers", "shared memory of each", site.edges * 12 / 1e9, "GB", "edges x (8 mean and width + 4 item)")
    yield Line("servers", "agent's memory of each", site.edges * 20 / 1e9, "GB", "edges x (16 sums + 4 place)")
    routed = _over(rewards * site.routed / site.busy, figures["routed"].value)
    yield Line("routers", "cores", routed, "", "rewards/s x share / routed / busy")


def _learners(site: Site, figures: dict[str, Figure]) -> Iterator[Line]:
    shards = shards_for(site, figures)
    learned = figures["learned"].value
    yield Line("learners", "cores", _over(_events_per_s(site) / site.busy, learned), "", "events/s / learned / busy")
    taking_over = _over(_over(site.edges, figures["loaded"].value), shards)
    yield Line("learners", "a shard taken over is loaded in", taking_over, "s", "edges / P / loaded")


def _redis(site: Site, figures: dict[str, Figure]) -> Iterator[Line]:
    shards = shards_for(site, figures)
    edges = _times(site.edges / 1e9, figures["edge"].value)
    kept = _times(site.edges * (site.keep_snapshots + 1) / 1e9, figures["snapshot"].value)
    answered = site.decisions_per_day / DAY_S * site.peak * site.answers * site.window_h * 3600 * 24 / 1e9
    streams = _times(shards, 16e6 / 1e9)
    parts = (edges, kept, answered, streams)
    memory = None if None in parts else sum(part for part in parts if part is not None)
    yield Line("Redis", "edges", edges, "GB", "edges x bytes each")
    yield Line("Redis", "snapshots", kept, "GB", "(kept + 1 while one is made) x edges x bytes each")
    yield Line("Redis", "answers seen", answered, "GB", "rewards/s x window x 24 bytes")
    yield Line("Redis", "streams", streams, "GB", "P x 16 MB, twice what a fold waits for")
    masters = None if memory is None else max(3, math.ceil(memory / (site.gb_per_redis_node * site.redis_busy)))
    yield Line("Redis", "masters, and as many replicas", masters, "", "memory / (node x redis_busy), at least 3")
    commits = _times(shards, site.learner_commits_per_s)
    each = figures["commit"].value
    busy = None if commits is None or each is None or masters is None else commits * each / 1e6 / masters
    yield Line("Redis", "a master's core, at most", busy, "busy", "P x commits/s x commit, over the masters")


def limits(site: Site, figures: dict[str, Figure] = FIGURES) -> list[Line]:
    """What more machines do not help, and the decisions a day at which each is full: the least breaks first."""
    cells, size, most = site.items * site.clusters, event_bytes(site.clusters, site.items), site.items + site.answers
    per_day = DAY_S / site.peak
    followed, learned, cell = (figures[name].value for name in ("followed", "learned", "cell"))
    kafka = 3 * 10 * GBIT_S / site.kafka_replicas / size / most
    found = [
        Line("servers", "each host's agent, one core, follows every change", _times(followed, per_day / cells),
             "decisions/day", "followed / (items x clusters)"),
        Line("servers", "10 Gbit/s of changes into every host", _over(10 * GBIT_S * per_day / cells, cell),
             "decisions/day", "1.25 GB/s / (cell x items x clusters)"),
        Line("learners", "1,024 partitions", _times(learned, SHARDS_MAX * site.busy * per_day / most),
             "decisions/day", "1,024 x learned x busy / (items + answers)"),
        Line("Kafka", "three brokers at 10 Gbit/s", kafka * per_day,
             "decisions/day", "3.75 GB/s / replicas / event bytes / (items + answers); more brokers help"),
    ]  # fmt: skip
    return sorted(found, key=lambda line: math.inf if line.value is None else line.value)


def cost(site: Site, prices: Prices, figures: dict[str, Figure] = FIGURES) -> list[Line]:
    """Dollars a month."""
    lines = {(line.part, line.what): line.value for line in plan(site, figures)}
    hosts, masters = lines["servers", "hosts"], lines["Redis", "masters, and as many replicas"]
    disk = lines["Kafka", "disk, all brokers"]
    spent = {
        "servers": _times(hosts, site.cores_per_server * prices.core),
        "learners": _times(lines["learners", "cores"], prices.core),
        "Redis": _times(masters, 2 * (2 * prices.core + site.gb_per_redis_node * prices.gb_memory)),
        "Kafka": None if disk is None else 3 * (8 * prices.core + 32 * prices.gb_memory) + disk * prices.gb_disk,
    }
    how = {
        "servers": "hosts x cores",
        "learners": "cores",
        "Redis": "2 x masters x (2 cores + memory)",
        "Kafka": "3 brokers of 8 cores and 32 GB, and disk",
    }
    found = [Line(part, "a month", value, "$", how[part]) for part, value in spent.items()]
    total = None if None in spent.values() else sum(value for value in spent.values() if value is not None)
    million = _over(total, site.decisions_per_day * 30.4 / 1e6)
    return [*found, Line("all", "a month", total, "$", ""), Line("all", "a million decisions", million, "$", "")]


def number(value: float | None) -> str:
    """The figure as tables show it.

    >>> number(None), number(0.0123), number(28_935.2), number(4)
    ('TO_MEASURE', '0.012', '28,935', '4')
    """
    if value is None:
        return TO_MEASURE
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.1e}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"


def markdown(site: Site, prices: Prices, figures: dict[str, Figure] = FIGURES) -> str:
    """The tables of docs/sizing.md."""
    out = ["### Measured", "", "| name | measured | what | command |", "|---|---|---|---|"]
    for name, figure in figures.items():
        shown = f"{TO_MEASURE}_{name}" if figure.value is None else f"{number(figure.value)} {figure.unit}"
        out.append(f"| {name} | {shown} | {figure.what} | `{figure.command}` |")
    sections: list[tuple[str, Callable[[], list[Line]]]] = [
        ("The plan", lambda: plan(site, figures)),
        ("What breaks first", lambda: limits(site, figures)),
        ("Cost", lambda: cost(site, prices, figures)),
    ]
    for title, lines in sections:
        out += ["", f"### {title}", "", "| part | what | | from |", "|---|---|---|---|"]
        out += [f"| {x.part} | {x.what} | {number(x.value)} {x.unit}".rstrip() + f" | {x.how} |" for x in lines()]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/sizing.md")
    for each in fields(Site):
        flag = f"--{each.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(each.default), default=each.default, help=f"default {each.default:g}")
    for name, figure in FIGURES.items():
        parser.add_argument(
            f"--measured-{name}", type=float, default=figure.value, help=f"{figure.what}, {figure.unit}"
        )
    given = vars(parser.parse_args())
    site = Site(**{each.name: given[each.name] for each in fields(Site)})
    figures = {name: figure._replace(value=given[f"measured_{name}"]) for name, figure in FIGURES.items()}
    if given["markdown"]:
        print(markdown(site, Prices(), figures), end="")
        return
    for lines in (plan(site, figures), limits(site, figures), cost(site, Prices(), figures)):
        for line in lines:
            print(f"{line.part:10} {line.what:48} {number(line.value):>12} {line.unit:14} {line.how}")
        print()


if __name__ == "__main__":
    main()
