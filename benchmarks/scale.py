"""Shards and learner processes over a real Kafka and Redis Cluster: `python -m benchmarks.scale [--quick]`.

One broker, a cluster of three masters and their replicas, two servers and one or two learners, all on this machine and
its cores. Events go straight into Kafka as packed frames of 10 ms, made beforehand and appended by a process of their
own: making them over HTTP would take the cores that are to be measured. The policy is that of `benchmarks.learner`:
10,000 clusters x 100 of 20,000 items, slates of nine; an event is one (decision, item) or one reward, nine to one. A
slate's decision goes to every shard that has one of its items, so more shards read more bytes for the same events.

    visible    20,000 events/s flow for some seconds; a probe's rewards, acknowledged over HTTP, until both servers show
               them, as in `benchmarks.freshness`; beside it each server's own histogram and every part's share of cores
    takeover   kill -9 of one of two learners under that flow, until all its shards are committed to by the other; the
               group notices a death only after the session timeout, which is given apart
    learn      the servers are stopped; everything is appended as fast as Kafka takes it, and the CPU of the learners
               alone is counted until all is learned
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.learner import N_CLUSTERS, WIDTH, K, make_graph
from loadtest.client import Address, Connection
from loadtest.probe import Probe
from streaming import events, token
from streaming.log.kafka import KafkaLog
from streaming.shards import shards_of_items
from tests.faults.site import Server, Site, Team
from tests.parts.host import Process, wait_for
from tests.parts.kafka import Broker
from tests.parts.redis import Cluster

POLICY = "films"
SHARDS, LEARNERS = (1, 2, 4, 8), (1, 2)
RATE = 20_000.0  # events a second that flow
TICK_S = 0.01
SLATE = 9
SESSION_S = 6.0  # what `croupier learner` has unless told otherwise
BAR_PER_CPU_S, BAR_P99_MS = 100_000, 100.0

Tick = list[tuple[int, bytes]]
"""What is appended at once: a frame for each shard."""


class Source:
    """Makes the events of one stream of decisions for a team's shards."""

    def __init__(self, policy: int, lineage: int, shards: int) -> None:
        self._policy, self._lineage, self._shards = policy, lineage, shards
        self._rng = np.random.default_rng(0)
        self._graph = make_graph(self._rng)
        self._shard_of = shards_of_items(policy, np.arange(len(self._graph.ids), dtype=np.uint32), shards)
        self._sequence = 0
        self._of_shard = [0] * shards
        self._owed = 0.0

    def ticks(self, count: int, decisions: int) -> tuple[list[Tick], int]:
        """`count` ticks of so many decisions, each with its rewards; and how many events that is."""
        made, total = [], 0
        for _ in range(count):
            parts: list[list[bytes]] = [[] for _ in range(self._shards)]
            for _ in range(decisions):
                total += self._decide(parts)
            made.append([(shard, events.frame(part)) for shard, part in enumerate(parts) if part])
        return made, total

    def _decide(self, parts: list[list[bytes]]) -> int:
        rng = self._rng
        clusters = rng.integers(0, N_CLUSTERS, K).astype(np.uint32)
        edges = self._graph.indptr[clusters[rng.integers(0, K, SLATE)]] + rng.integers(0, WIDTH, SLATE)
        items = np.unique(self._graph.items[edges])
        self._sequence += 1
        payload = token.encode(token.Context(
            token.DIAG, self._policy, (1 << 63) | self._sequence, time.time_ns() // 1_000_000, 1_800_000, 0.0,
            token.FIRST, 0, True, items, np.full(len(items), 0.1, np.float16), self._lineage,
            clusters, np.full(K, 6553, np.uint16),
        ))  # fmt: skip
        owners = self._shard_of[items]
        for shard in np.unique(owners).tolist():
            parts[shard].append(events.decision(payload, self._of_shard[shard]))
            self._of_shard[shard] += 1
        self._owed += len(items) / 9
        rewards = int(self._owed)
        self._owed -= rewards
        for slot in rng.integers(0, len(items), rewards).tolist():
            parts[owners[slot]].append(events.reward(payload, slot, 1.0, int(rng.integers(1, 1 << 62))))
        return len(items) + rewards


def flow(log_url: str, ticks: list[Tick], pace_s: float, found: Any) -> None:
    """Appends a tick every `pace_s`, in a process of its own; `found`: the most that one was late, what all took, s."""
    log = KafkaLog(log_url, write=True)
    log.append([(shard, events.frame([])) for shard in range(log.shards)])  # connects
    began = time.monotonic()
    for number, tick in enumerate(ticks):
        behind = time.monotonic() - began - number * pace_s
        found[0] = max(found[0], behind)
        time.sleep(max(0.0, -behind))
        log.append(tick)
    found[1] = time.monotonic() - began
    log.close()


@contextlib.contextmanager
def flowing(team: Team, ticks: list[Tick], pace_s: float) -> Iterator[Any]:
    """The flow is under way inside the block, which waits for its end."""
    found = multiprocessing.get_context("spawn").Array("d", 2)
    process = multiprocessing.get_context("spawn").Process(target=flow, args=(team.log_url, ticks, pace_s, found))
    process.start()
    try:
        yield process, found
    finally:
        process.join(120)
        process.kill()


def cpu_s(process: Process) -> float:
    """CPU seconds of a process and those it has started, without those that have ended."""
    own = psutil.Process(process.pid)
    return float(sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True))))


def parts_of(team: Team) -> dict[str, list[Process]]:
    return {
        "learners": team.learners,
        "servers": [server.process for server in team.servers],
        "kafka": [team.site.broker.process],
        "redis": [node.process for node in team.site.cluster.nodes],
    }


def shares(team: Team, before: dict[str, float], seconds: float) -> dict[str, float]:
    """Cores that each part has used since `before`."""
    return {name: round((now - before[name]) / seconds, 3) for name, now in spent(team).items()}


def spent(team: Team) -> dict[str, float]:
    return {name: sum(cpu_s(each) for each in them if each.alive) for name, them in parts_of(team).items()}


def learned(team: Team, log: KafkaLog) -> bool:
    return [head for _, head in team.store.lasts()] == log.ends()[: team.shards]


# ------------------------------------------------------------------------------------------------------------- visible


def histogram_of(server: Server) -> dict[float, float]:
    """Upper bound -> cumulative count of `croupier_visible_seconds`."""
    text = server.http.get("/metrics").text
    found = re.findall(r'croupier_visible_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    return {float(bound): float(count) for bound, count in found}


def quantile(before: dict[float, float], after: dict[float, float], q: float) -> float:
    """The q-quantile, ms, of what came between two scrapes, by straight lines inside the buckets.

    >>> quantile({0.01: 0, 0.02: 0}, {0.01: 50, 0.02: 100}, 0.75)
    15.0
    """
    total = after[max(after)] - before[max(before)]
    low, below = 0.0, 0.0
    for bound in sorted(after):
        count = after[bound] - before[bound]
        if count >= q * total and count > below:
            return 1000 * (low + (bound - low) * (q * total - below) / (count - below))
        low, below = bound, count
    return float("nan")


async def probed(team: Team, seconds: float) -> dict[str, Any]:
    """The probe on one connection to each server, while whatever flows flows."""
    probe = Probe(team.servers[0].url, connections=1, poll_s=0.002)
    await probe.set_up()
    probe.connections += [Connection(Address.of(server.url)) for server in team.servers[1:]]
    for connection in probe.connections:
        while await probe._ask(connection, 0) is None:
            await asyncio.sleep(0.05)
    found = await probe.run(seconds, every_s=0.05)
    probe.close()
    return found.to_dict()


def visible(team: Team, source: Source, seconds: float) -> dict[str, Any]:
    """Freshness while `RATE` events a second flow."""
    count = int((seconds + 3.0) / TICK_S)
    ticks, total = source.ticks(count, round(RATE * TICK_S / 10))
    with flowing(team, ticks, TICK_S) as (process, timing):
        time.sleep(2.0)  # a spawned process needs a moment to begin
        before, cpu, began = [histogram_of(server) for server in team.servers], spent(team), time.monotonic()
        generator = sum(psutil.Process(process.pid).cpu_times()[:2])
        found = asyncio.run(probed(team, seconds - 1.0))
        took = time.monotonic() - began
        cores = shares(team, cpu, took)
        cores["generator"] = round((sum(psutil.Process(process.pid).cpu_times()[:2]) - generator) / took, 3)
        after = [histogram_of(server) for server in team.servers]
    both = [[quantile(b, a, q) for b, a in zip(before, after, strict=True)] for q in (0.5, 0.99)]
    return {
        "events_per_s": total / timing[1],
        "generator_late_ms": 1000 * timing[0],
        "probe": found,
        "p99_ms": found["acknowledged_to_visible_ms"].get("p99", float("nan")),
        "appended_to_visible_ms": {"p50": max(both[0]), "p99": max(both[1])},
        "cores": cores,
    }


# ------------------------------------------------------------------------------------------------------------ takeover


def shards_of(team: Team, learner: Process) -> set[int]:
    """The shards that a learner says it has; none while it does not answer."""
    try:
        text = httpx.get(f"http://127.0.0.1:{team.metrics_of[learner]}/metrics", timeout=5).text
    except httpx.HTTPError:
        return set()
    return {int(shard) for shard in re.findall(r'croupier_learner_behind_records\{shard="(\d+)"\}', text)}


def shared_out(team: Team) -> bool:
    parts = [shards_of(team, learner) for learner in team.learners]
    idle = sum(not part for part in parts)
    return idle <= max(0, len(parts) - team.shards) and sorted(s for part in parts for s in part) == list(
        range(team.shards)
    )


def takeover(team: Team, source: Source, log: KafkaLog) -> float:
    """Seconds from kill -9 of the second learner to the first commit, by the other, on the last of its shards."""
    wait_for(lambda: shared_out(team), "the shards are shared out", 60)
    ticks, _ = source.ticks(int((SESSION_S + 10) / TICK_S), round(RATE * TICK_S / 10))
    with flowing(team, ticks, TICK_S):
        time.sleep(3.0)
        victim = team.learners[1]
        waiting = shards_of(team, victim)
        victim.kill()
        killed = time.monotonic()
        time.sleep(0.1)  # what it had sent to Redis is there by now
        lasts = team.store.lasts()
        while waiting:
            assert time.monotonic() < killed + 60, f"nobody takes over shards {waiting}"
            now = team.store.lasts()
            waiting = {shard for shard in waiting if now[shard] == lasts[shard]}
            taken = time.monotonic() - killed
            time.sleep(0.005)
    wait_for(lambda: learned(team, log), "all is learned", 60)
    victim.start()
    return taken


# --------------------------------------------------------------------------------------------------------------- learn


def learn(team: Team, source: Source, log: KafkaLog, decisions: int) -> dict[str, Any]:
    """CPU of the learners for events that come as fast as Kafka takes them; no server follows meanwhile."""
    wait_for(lambda: shared_out(team), "the shards are shared out", 60)
    warm, _ = source.ticks(20, 100)
    ticks, total = source.ticks(decisions // 500, 500)
    with flowing(team, warm, 0.0):
        pass
    wait_for(lambda: learned(team, log), "all is learned", 60)
    before, began = spent(team), time.monotonic()
    with flowing(team, ticks, 0.0):
        pass
    wait_for(lambda: learned(team, log), "all is learned", 300)
    took = time.monotonic() - began
    after = spent(team)
    cpu = {name: after[name] - before[name] for name in after}
    return {
        "events": total,
        "wall_s": took,
        "events_per_s": total / took,
        "learner_us_per_event": cpu["learners"] / total * 1e6,
        "events_per_cpu_s": total / cpu["learners"],
        "kafka_us_per_event": cpu["kafka"] / total * 1e6,
        "redis_us_per_event": cpu["redis"] / total * 1e6,
    }


# ----------------------------------------------------------------------------------------------------------------- run


def policy_of(team: Team) -> tuple[int, int]:
    """Makes the policy and its graph; (policy number, lineage of its graph)."""
    first = team.servers[0].http
    assert first.put(f"/v1/policies/{POLICY}", json={"algorithm": "diag-linucb"}).status_code in (201, 202)
    graph = make_graph(np.random.default_rng(0)).to_bytes()
    path, headers = f"/v1/policies/{POLICY}/graph", {"content-type": "application/octet-stream"}
    wait_for(lambda: first.get(f"/v1/policies/{POLICY}").status_code == 200, "the policy is shown")
    assert first.put(path, content=graph, headers=headers, timeout=60).status_code == 202
    for server in team.servers:
        wait_for(lambda server=server: server.http.get(path).status_code == 200, "the graph is shown", 60)  # type: ignore[misc]
    return first.get(f"/v1/policies/{POLICY}").json()["number"], first.get(path).json()["lineage"]


def one(site: Site, folder: Path, shards: int, learners: int, quick: bool) -> dict[str, Any]:
    """All figures of so many shards and learners."""
    team = Team(site, f"scale-{shards}-{learners}", folder, shards, learners, SESSION_S)
    log: KafkaLog | None = None
    try:
        team.begin()
        team.start()
        log = KafkaLog(team.log_url)
        source = Source(*policy_of(team), shards)
        wait_for(lambda: learned(team, log), "all is learned", 60)
        figures = {"visible": visible(team, source, 6.0 if quick else 20.0)}
        if learners == 2 and shards > 1:
            times = [takeover(team, source, log) for _ in range(1 if quick else 3)]
            figures["takeover"] = {
                "session_s": SESSION_S,
                "seconds": times,
                "beyond_the_session_s": max(times) - SESSION_S,
            }
        for server in team.servers:
            server.process.stop()
        figures["learn"] = learn(team, source, log, 20_000 if quick else 100_000)
        return figures
    finally:
        if log is not None:
            log.close()
        team.close()
        site.forget(team.name)


def run(quick: bool = False, shards: tuple[int, ...] = SHARDS, learners: tuple[int, ...] = LEARNERS) -> dict[str, Any]:
    """Every number of shards over every number of learners, and learning with two over learning with one."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="croupier-scale-") as temporary:
        folder = Path(temporary)
        with Broker(folder / "kafka") as broker, Cluster(folder / "redis") as cluster:
            for s in shards:
                for n in learners:
                    name = f"{s} shards, {n} learners"
                    rows[name] = one(Site(broker, cluster), folder / f"{s}-{n}", s, n, quick)
                    print(line(name, rows[name]), flush=True)
    base = rows[f"{shards[0]} shards, {learners[0]} learners"]["learn"]
    ratios = {
        name: {
            "cpu_per_event": row["learn"]["learner_us_per_event"] / base["learner_us_per_event"],
            "events_per_s": row["learn"]["events_per_s"] / base["events_per_s"],
        }
        for name, row in rows.items()
    }
    return {
        "rate": RATE,
        "bar_events_per_cpu_s": BAR_PER_CPU_S,
        "bar_p99_ms": BAR_P99_MS,
        "rows": rows,
        "ratios": ratios,
        "plots": plots(rows, shards, learners),
    }


def plots(rows: dict[str, Any], shards: tuple[int, ...], learners: tuple[int, ...]) -> list[dict[str, Any]]:
    """CPU of an event, and time to visible, over shards."""

    def over(take: Callable[[dict[str, Any]], float]) -> dict[str, list[list[float]]]:
        return {f"{n} learners": [[s, take(rows[f"{s} shards, {n} learners"])] for s in shards] for n in learners}

    cpu = over(lambda row: row["learn"]["learner_us_per_event"])
    seen = over(lambda row: row["visible"]["p99_ms"])
    y = f"ms until visible at {RATE:,.0f} events/s, p99"
    return [
        {"title": "Learning from Kafka into Redis", "series": cpu, "x": "shards", "y": "µs of CPU an event"},
        {"title": "Acknowledged to visible", "series": seen, "x": "shards", "y": y, "limit": BAR_P99_MS},
    ]


def line(name: str, row: dict[str, Any]) -> str:
    seen, learn = row["visible"], row["learn"]
    probe = seen["probe"]["acknowledged_to_visible_ms"]
    p50 = probe.get("p50", float("nan"))
    text = (
        f"{name}: {learn['events_per_cpu_s']:,.0f} events/s and core ({learn['learner_us_per_event']:.2f} us; kafka "
        f"{learn['kafka_us_per_event']:.2f}, redis {learn['redis_us_per_event']:.2f}), {learn['events_per_s']:,.0f}/s "
        f"in all; at {seen['events_per_s']:,.0f} events/s visible after p50 {p50:.0f} ms, p99 {seen['p99_ms']:.0f} ms; "
        f"cores {seen['cores']}, generator late {seen['generator_late_ms']:.0f} ms"
    )
    if "takeover" in row:
        text += f"; taken over after {', '.join(f'{s:.1f} s' for s in row['takeover']['seconds'])}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer events and seconds")
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--learners", type=int, nargs="+", default=LEARNERS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, tuple(arguments.shards), tuple(arguments.learners))
    if arguments.json:
        print(json.dumps(found, indent=2))
    for name, ratio in found["ratios"].items():
        print(f"{name}: CPU per event x{ratio['cpu_per_event']:.2f}, events/s x{ratio['events_per_s']:.2f}")


if __name__ == "__main__":
    main()
