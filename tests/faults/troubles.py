"""What goes wrong in a run. Each trouble is a generator: it does something, yields how long that lasts (s), undoes it.

What it returns from `next` on is up to the director (`tests.faults.director`): troubles may overlap, and one that finds
what it would break already broken does nothing.
"""

import random
import time
from collections.abc import Callable, Generator
from typing import NamedTuple

import httpx
import psutil
from redis.exceptions import RedisError

from tests.faults.load import put_graph
from tests.faults.site import SESSION_S, SHARDS, Team
from tests.parts.host import Process
from tests.parts.redis import Cluster

Course = Generator[float, None, str]
"""Yields seconds, returns a note of what was seen."""


class Happened(NamedTuple):
    """A trouble that is over: from `began` to `ended` (time.monotonic()), `servers` were killed in whole or in part."""

    name: str
    began: float
    ended: float
    note: str


def server_killed(team: Team, rng: random.Random) -> Course:
    """kill -9 of a supervisor, which takes its agent and its worker along.

    Over when it is ready again: it waits for log and store. Should it end, it is started again, as an init system does.
    """
    server = rng.choice(team.servers)
    if not server.process.alive:
        return "was down"
    server.process.kill()
    yield rng.uniform(0.2, 1.5)
    deadline = time.monotonic() + 60
    while not server.process.alive or not server.ready():
        assert time.monotonic() < deadline, f"server {server.number} does not start: {server.process.tail(1000)}"
        if not server.process.alive:
            server.process.start()
        yield 0.3
    return f"server {server.number}"


def _child_killed(name: str) -> Callable[[Team, random.Random], Course]:
    def killed(team: Team, rng: random.Random) -> Course:
        pids = {each.number: each.children().get(name) for each in team.servers if each.process.alive}
        there = [(number, pid) for number, pid in pids.items() if pid is not None]
        if not there:
            return "was down"
        number, pid = rng.choice(there)
        psutil.Process(pid).kill()
        yield 0.3
        return f"server {number}"

    return killed


agent_killed = _child_killed("agent")
worker_killed = _child_killed("worker 0")


def _restarted(process: Process, rng: random.Random) -> Course:
    if not process.alive or process.paused:
        return "was down"
    process.kill()
    yield rng.uniform(0.1, 2.0)
    process.start()
    return ""


def learner_killed(team: Team, rng: random.Random) -> Course:
    """kill -9 of a learner; the other takes over after the session, or this one is back before."""
    number = rng.randrange(2)
    note = yield from _restarted(team.learners[number], rng)
    return note or f"learner {number}"


def learner_stopped(team: Team, rng: random.Random) -> Course:
    """SIGSTOP past its session, then SIGCONT: it may go on with shards that are another's by now."""
    number = rng.randrange(2)
    learner = team.learners[number]
    if not learner.alive or learner.paused:
        return "was down"
    shards = team.counted(learner, "croupier_learner_shards")
    before = [team.counted(learner, f"croupier_learner_{name}_total") for name in ("refused_commits", "rebalances")]
    learner.pause()
    yield SESSION_S + rng.uniform(1.0, 2.5)
    learner.resume()
    yield 1.0
    after = [team.counted(learner, f"croupier_learner_{name}_total") for name in ("refused_commits", "rebalances")]
    refused, rebalances = (b - a for a, b in zip(before, after, strict=True))
    return f"learner {number} with {shards:.0f} shards: {refused:.0f} commits refused, {rebalances:.0f} rebalances"


def learner_joins(team: Team, rng: random.Random) -> Course:
    """A third learner comes and goes, in order or not."""
    learner = team.new_learner()
    learner.start()
    began = time.monotonic()
    while not (had := team.counted(learner, "croupier_learner_shards")) > 0 and time.monotonic() < began + 20:
        yield 0.5
    yield rng.uniform(0.5, 2.0)
    if rng.random() < 0.5:
        learner.stop(5.0)
        how = "left"
    else:
        learner.kill()
        how = "was killed"
    team.learners.remove(learner)
    return f"with {had:.0f} shards, {how}"


def router_killed(team: Team, rng: random.Random) -> Course:
    """kill -9 of the router: what it had not committed is read again."""
    return (yield from _restarted(team.router, rng))


def broker_killed(team: Team, rng: random.Random) -> Course:
    """kill -9 of the only broker, and its restart, which takes some 3 s."""
    broker = team.site.broker
    if not broker.process.alive or broker.process.paused:
        return "was down"
    broker.kill()
    yield rng.uniform(0.0, 3.0)
    began = time.monotonic()
    broker.start()
    return f"back after {time.monotonic() - began:.1f} s of starting"


def broker_stopped(team: Team, rng: random.Random) -> Course:
    """SIGSTOP of the broker: connections stay, nobody answers."""
    broker = team.site.broker
    if not broker.process.alive or broker.process.paused:
        return "was down"
    broker.pause()
    yield rng.uniform(0.5, 5.0)
    broker.resume()
    return ""


def whole(cluster: Cluster, without: int = 0) -> bool:
    """Whether live nodes own every slot and all but `without` nodes live."""
    try:
        return (
            sum(node.process.alive for node in cluster.nodes) >= len(cluster.nodes) - without and not cluster.trouble()
        )
    except (RedisError, OSError):
        return False


def master_killed(team: Team, rng: random.Random) -> Course:
    """kill -9 of the Redis master of a shard, failover to its replica, the old one comes back as a replica."""
    cluster = team.site.cluster
    if not whole(cluster):
        return "was not whole"
    shard = rng.randrange(SHARDS)
    node = cluster.kill_master(f"{{{team.name}:{shard}}}:last")
    began = time.monotonic()
    while not whole(cluster, without=1):
        yield 0.2
        assert time.monotonic() < began + 30, f"no failover: {cluster.trouble()}"
    took = time.monotonic() - began
    yield rng.uniform(0.0, 1.0)
    node.begin()
    while not whole(cluster):
        yield 0.2
        assert time.monotonic() < began + 60, f"the old master does not come back: {cluster.trouble()}"
    return f"of shard {shard}, failover after {took:.1f} s"


def network(team: Team, rng: random.Random) -> Course:
    """The way to the Redis nodes, all or one, is cut, silent, slow, or loses its connections."""
    nodes = [node for node in team.site.cluster.nodes if node.process.alive]
    some = nodes if rng.random() < 0.5 else rng.sample(nodes, 2)
    proxies = [node.proxy for node in some if node.proxy is not None]
    how = rng.choice(("refuse", "stall", "delay", "reset"))
    for _ in range(rng.randint(2, 4) if how == "reset" else 1):
        for proxy in proxies:
            proxy.delay(rng.uniform(20, 200)) if how == "delay" else getattr(proxy, how)()
        yield rng.uniform(0.3, 0.8) if how == "reset" else rng.uniform(0.5, 4.0)
    for proxy in proxies:
        proxy.pass_through()
    return f"{how} of {len(proxies)} nodes"


def changes(team: Team, rng: random.Random) -> Course:
    """Control records from both servers: parameters, an item paused, other edges."""
    said = []
    for turn in range(3):
        http = rng.choice(team.servers).http
        try:
            if turn == 0:
                answer = http.patch("/v1/policies/films", json={"alpha": rng.choice((0.5, 1.0, 2.0))})
            elif turn == 1:
                answer = http.patch("/v1/policies/news/items/b", json={"paused": rng.random() < 0.5})
            else:
                answer = put_graph(http, rng.randrange(5), keeps=True)
            said.append(str(answer.status_code))
        except httpx.HTTPError as error:  # this server is down
            said.append(type(error).__name__)
        yield 0.3
    return " ".join(said)


def restored(team: Team, rng: random.Random) -> Course:
    """A snapshot, and soon a policy goes back to it."""
    label, policy = f"s{rng.randrange(10**6)}", rng.choice(("films", "news", "shop"))
    asks = [("PUT", f"/v1/snapshots/{label}", None), ("POST", f"/v1/policies/{policy}/restore", {"label": label})]
    said = []
    for _ in range(20):
        method, path, body = asks[0]
        try:
            status = rng.choice(team.servers).http.request(method, path, json=body).status_code
        except httpx.HTTPError as error:  # this server is down
            said.append(type(error).__name__)
        else:
            said.append(str(status))
            if status < 300 or (method == "PUT" and status == 409):  # 409: it came through, the answer did not
                asks.pop(0)
        if not asks:
            break
        yield rng.uniform(0.2, 0.6)
    return f"{policy}: {' '.join(said)}"


TROUBLES: dict[str, Callable[[Team, random.Random], Course]] = {
    "server killed": server_killed,
    "agent killed": agent_killed,
    "worker killed": worker_killed,
    "learner killed": learner_killed,
    "learner stopped": learner_stopped,
    "learner joins": learner_joins,
    "router killed": router_killed,
    "broker killed": broker_killed,
    "broker stopped": broker_stopped,
    "master killed": master_killed,
    "network": network,
    "changes": changes,
    "restored": restored,
}
