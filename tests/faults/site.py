"""The processes of a run: Kafka and Redis Cluster for all runs, and teams of croupier's own processes."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from kafka import KafkaAdminClient
from redis import RedisCluster

from streaming.store import automatic
from streaming.store.redis import RedisStore
from tests.parts.host import Process, free_ports, wait_for
from tests.parts.kafka import Broker, client
from tests.parts.redis import Cluster

SHARDS = 4
FLUSH_MS = 20
SNAPSHOT_S, KEPT = 5, 4
SESSION_S = 2.0  # of the learners' group: short, so that a dead learner is missed within a run
CODE = "import sys; sys.argv[0] = 'croupier'; from server.cli import main; main()"


class Site:
    """A running Kafka broker and Redis Cluster whose nodes are behind proxies."""

    def __init__(self, broker: Broker, cluster: Cluster) -> None:
        self.broker = broker
        self.cluster = cluster

    def heal(self) -> None:
        """Broker and nodes all run, and every proxy passes."""
        self.broker.resume()
        if not self.broker.process.alive:
            self.broker.start()
        self.cluster.heal()

    def forget(self, name: str) -> None:
        """The topics and keys of a name that nobody uses any more."""
        with client(KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)) as admin:
            admin.delete_topics([topic for topic in admin.list_topics() if topic.startswith(f"{name}.")])
        node = self.cluster.live[0]
        with RedisCluster(host="127.0.0.1", port=node.client_port) as redis:
            for key in list(redis.scan_iter(match=f"{{{name}*", count=1000)):
                redis.unlink(key)


class Server:
    """One `croupier serve` on a port that stays the same when it is started again."""

    def __init__(self, number: int, team: "Team") -> None:
        self.number = number
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = team.croupier(
            f"server-{number}", "serve", f"--port={self.port}", f"--data={team.folder / f'data-{number}'}",
            f"--run-dir={team.folder / f'run-{number}'}", "--workers=1", f"--flush-ms={FLUSH_MS}",
            f"--shards={team.shards}",
        )  # fmt: skip
        self.http = httpx.Client(base_url=self.url, timeout=10)

    def ready(self) -> bool:
        self.process.check()
        try:
            return self.http.get("/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def degraded(self) -> list[str]:
        found: list[str] = self.http.get("/readyz").json()["degraded"]
        return found

    def children(self) -> dict[str, int]:
        """name -> pid of the live processes under the supervisor."""
        found = {}
        for each in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if each.status() != psutil.STATUS_ZOMBIE:
                    found[each.name()] = each.pid
        return found

    def kill_child(self, name: str) -> None:
        """kill -9 of its agent or worker; returns when another is there in its place."""
        pid = self.children()[name]
        psutil.Process(pid).kill()
        wait_for(lambda: self.children().get(name, pid) != pid, f"another {name}")


class Team:
    """The croupier processes of one name: two servers, two learners, a router. `close` ends what was started.

    `begin` starts the servers, which make the log and the store, `start` the others. Snapshots are taken every few
    seconds, so that folds, snapshots and trims happen under the faults. A log is trimmed behind the oldest snapshot
    kept: once each shard has one, records stay for several more, long enough for a tail to read them.
    """

    def __init__(
        self, site: Site, name: str, folder: Path, shards: int = SHARDS, learners: int = 2, session_s: float = SESSION_S
    ) -> None:
        self.site, self.name, self.folder, self.shards = site, name, folder, shards
        folder.mkdir(parents=True)
        self.log_url = (
            f"kafka://{site.broker.bootstrap}/{name}?one_broker=yes&session_timeout_ms={session_s * 1000:.0f}"
            f"&heartbeat_interval_ms={session_s * 250:.0f}"
        )
        self.store_url = f"{site.cluster.url.rstrip('/')}/{name}"
        self.servers = [Server(number, self) for number in range(2)]
        self.learners: list[Process] = []
        self.metrics_of: dict[Process, int] = {}
        for _ in range(learners):
            self.new_learner()
        self.router = self.croupier("router", "router", f"--metrics-port={free_ports(1)[0]}")
        self.store: RedisStore

    def croupier(self, who: str, command: str, *flags: str) -> Process:
        """A process of ours that is not started yet; what it writes goes to WHO.log."""
        place = [f"--log={self.log_url}", f"--store={self.store_url}"]
        return Process([sys.executable, "-c", CODE, command, *place, *flags], self.folder / f"{who}.log")

    def new_learner(self) -> Process:
        """One more learner, not started yet."""
        port = free_ports(1)[0]
        made = self.croupier(
            f"learner-{len(self.learners)}", "learner", f"--metrics-port={port}",
            f"--snapshot-interval-s={SNAPSHOT_S}", f"--keep-snapshots={KEPT}",
        )  # fmt: skip
        self.learners.append(made)
        self.metrics_of[made] = port
        return made

    def begin(self) -> None:
        """Returns when the first server is ready; the other one is on its way."""
        self.servers[0].process.start()
        wait_for(self.servers[0].ready, "the first server is ready", 240)  # kernels may have to be compiled
        self.servers[1].process.start()
        self.store = RedisStore(self.store_url)

    def start(self) -> None:
        """Returns when both servers are ready and every shard was learned and has a snapshot."""
        for process in (*self.learners, self.router):
            process.start()
        wait_for(self.servers[1].ready, "the second server is ready", 60)
        wait_for(lambda: all(automatic(self.store, shard) for shard in range(self.shards)), "shards have snapshots", 60)

    def counted(self, learner: Process, name: str) -> float:
        """A counter of a learner's /metrics; NaN while it does not answer."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.metrics_of[learner]}/metrics", timeout=5).text
        except httpx.HTTPError:
            return float("nan")
        found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} ")]
        return found[0] if found else float("nan")

    def heal(self) -> None:
        """Every process runs (but learners that were sent home), and both servers are ready."""
        for process in (*(server.process for server in self.servers), *self.learners, self.router):
            process.resume()
            if not process.alive:
                process.start()
        for server in self.servers:
            wait_for(server.ready, f"server {server.number} is ready again", 60)

    def close(self) -> None:
        for server in self.servers:
            server.http.close()
        processes: Sequence[Process] = (self.router, *self.learners, *(server.process for server in self.servers))
        for process in processes:
            process.resume() if process.paused else None
            process.kill()
        if hasattr(self, "store"):
            self.store.close()
