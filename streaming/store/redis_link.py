"""The connection to a Redis, alone or a cluster: scripts, errors as sentences, and waiting for a replica.

Nothing is tried twice here but what redis-py redirects (MOVED, ASK, at most 16 times): a command whose fate is unknown
raises StoreUnavailable within a few socket timeouts, and the caller, who knows whether a second time does harm, tries
again.
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TimeoutError,
)
from redis.retry import Retry

from streaming.errors import StoreCorrupt, StoreUnavailable
from streaming.store.redis_url import Address

logger = logging.getLogger(__name__)
TIMEOUT_S = 2.0
OLDEST = (6, 2)


class Script:
    """A Lua script beside this module."""

    def __init__(self, name: str) -> None:
        self.source = Path(__file__).with_name(f"redis_{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Link:
    """Connections to the servers at `address`, made when first used and again after a fork. Safe for threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._options = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S} | address.options
        self._lock = threading.Lock()
        self._pid = 0
        self._clustered: bool | None = None
        self._client: Redis | RedisCluster | None = None
        self._plan: _Plan | None = None

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            if client is not None and self._pid == os.getpid():
                client.close()

    def call(self, *command: Any) -> Any:
        """The answer to one command."""
        with self._explained():
            return self._connected().execute_command(*command)

    def many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to commands that were sent together, one round trip per node."""
        with self._explained():
            pipe = self._connected().pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute())

    def gets(self, keys: tuple[str, ...]) -> list[bytes | None]:
        """The values of many keys, of a cluster's nodes all asked at once.

        Polls are made of this, so a cluster's commands are packed once and kept; redis-py's own pipeline, which takes
        ten times as long, does it where the cluster has changed.
        """
        with self._explained():
            client: Any = self._connected()
            if not isinstance(client, RedisCluster):
                return list(client.execute_command("MGET", *keys)) if keys else []
            plan, self._plan = self._plan, None  # kept where it works
            try:
                if plan is None or plan.client is not client or plan.keys != keys:
                    plan = _Plan(client, keys)
                found = plan.run()
                self._plan = plan
                return found
            except TimeoutError:  # not another timeout for the pipeline; the next call asks who is master now
                client.nodes_manager.initialize(last_failed_node_name=plan.asked if plan else None)
                raise
            except (RedisError, RedisClusterException, OSError):
                pass
        return self.many([("GET", key) for key in keys])

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What a script returns. All keys carry one hash tag."""
        with self._explained():
            client = self._connected()
            try:
                return client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:  # nothing ran: the server never saw it, or was restarted
                return client.execute_command("EVAL", script.source, len(keys), *keys, *args)

    def durable(self, tag: str) -> None:
        """Returns once a replica has everything written so far to the server of this hash tag, if it has replicas.

        WAIT speaks of its own connection only, so a write goes before it there.
        """
        write = ("SET", f"{tag}:wait", b"", "PX", 1000)
        *_, replication = self._on(tag, [write, ("INFO", "replication")])
        if not any(
            str(key).startswith("slave") and value["state"] == "online"
            for key, value in replication.items()
            if isinstance(value, dict) and "state" in value
        ):
            return
        wait_ms = int(750 * self._options["socket_timeout"])  # the answer must come before the socket gives up
        if self._on(tag, [write, ("WAIT", 1, wait_ms)])[1] < 1:
            raise StoreUnavailable(
                f"{self.address}: no replica of {tag} confirmed a write within {wait_ms / 1000:g} s, so it may not "
                "outlive its master: see what keeps the replica behind"
            )

    def check(self) -> None:
        """Raises StoreUnavailable where a server is too old, or may evict keys; warns where a restart loses all."""
        with self._explained():
            client = self._connected()
            nodes = [client] if isinstance(client, Redis) else [
                client.get_redis_connection(node) for node in client.get_primaries()
            ]  # fmt: skip
            for node in nodes:
                info = node.info("server") | node.info("memory") | node.info("persistence") | node.info("replication")
                at = "{host}:{port}".format(**node.get_connection_kwargs())
                version = str(info.get("redis_version", "7.0"))
                if tuple(int(n) for n in version.split(".")[:2]) < OLDEST:
                    raise StoreUnavailable(f"the Redis at {at} is {version}: croupier needs 6.2 or newer")
                policy = info.get("maxmemory_policy", "noeviction")
                if policy != "noeviction":
                    raise StoreUnavailable(
                        f"the Redis at {at} has maxmemory-policy {policy}, which lets it drop "
                        "parameters when memory is short: CONFIG SET maxmemory-policy noeviction there, or use "
                        "another Redis"
                    )
                if not info.get("aof_enabled", 1) and not info.get("connected_slaves", 1):
                    logger.warning(
                        "the Redis at %s keeps no append-only file and has no replica: when it is restarted, the "
                        "parameters and snapshots in it are lost, but for what an RDB file may have. CONFIG SET "
                        "appendonly yes there, and in its configuration file",
                        at,
                    )

    def _on(self, tag: str, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Answers to commands sent over one connection to the server of this hash tag."""
        with self._explained():
            client: Any = self._connected()
            for _ in range(3):
                node = client
                if isinstance(client, RedisCluster):
                    node = client.get_redis_connection(client.get_node_from_key(tag))  # type: ignore[no-untyped-call]
                pipe = node.pipeline(transaction=False)
                for command in commands:
                    pipe.execute_command(*command)
                try:
                    return list(pipe.execute())
                except AskError as error:  # MOVED is one of them
                    client.nodes_manager.initialize(additional_startup_nodes_info=[(error.host, error.port)])
            raise StoreUnavailable(f"{self.address}: the slot of {tag} is being moved: try again")

    def _connected(self) -> Any:
        client = self._client
        if client is not None and self._pid == os.getpid():
            return client
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                self._client, self._pid = self._connect(), os.getpid()
            return self._client

    def _connect(self) -> Redis | RedisCluster:
        """A client of the right kind, which the first server that answers knows; of servers alone, the first master."""
        options = dict(self._options)
        errors: list[RedisError] = []
        for host, port in self.address.hosts:
            single = Redis(host=host, port=port, retry=Retry(NoBackoff(), 0), **options)
            try:
                if self._clustered is None:
                    self._clustered = bool(single.info("cluster")["cluster_enabled"])
                if (
                    not self._clustered
                    and len(self.address.hosts) > 1
                    and single.info("replication")["role"] != "master"
                ):
                    raise ReadOnlyError(f"{host}:{port} is a replica")
            except (AuthenticationError, AuthorizationError, NoPermissionError):
                single.close()
                raise
            except RedisError as error:
                single.close()
                errors.append(error)
                continue
            if not self._clustered:
                return single
            single.close()
            break
        else:
            raise errors[0]
        if options.pop("db", 0):
            raise StoreUnavailable(f"{self.address} is a cluster, which has no databases: leave out db=")
        node: Any = ClusterNode
        return RedisCluster(
            startup_nodes=[node(host, port) for host, port in self.address.hosts],
            retry=Retry(NoBackoff(), 0),
            require_full_coverage=False,
            **options,
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as error:
            lost = not isinstance(error, ResponseError | SlotNotCoveredError) or isinstance(error, ReadOnlyError)
            if lost and (isinstance(error, RedisClusterException) or not self._clustered):
                self._client = None  # no server it knew answers, or another is master: begin with the URL's again
            raise self._sentence(error) from error

    def _sentence(self, error: Exception) -> StoreUnavailable | StoreCorrupt:
        text = str(error)
        for kinds, word, sentence in _SENTENCES:
            if isinstance(error, kinds) or (word and re.search(word, text)):
                return StoreUnavailable(f"{self.address} {sentence} ({text})")
        if "WRONGTYPE" in text:
            return StoreCorrupt(
                f"{self.address} has keys named {self.address.name} that are not a store of croupier: ({text})"
            )
        return StoreUnavailable(f"{self.address} cannot be used now: {text or type(error).__name__}")


class _Plan:
    """GETs of the same keys again and again: per node its connections, the packed commands, where the answers go."""

    def __init__(self, client: RedisCluster, keys: tuple[str, ...]) -> None:
        self.client, self.keys, self.asked = client, keys, ""
        places: dict[str, list[int]] = {}
        pools: dict[str, Any] = {}
        for place, key in enumerate(keys):
            node = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
            places.setdefault(node.name, []).append(place)
            pools[node.name] = client.get_redis_connection(node).connection_pool
        self._nodes: list[tuple[str, Any, list[bytes], list[int]]] = []
        for name, pool in pools.items():
            connection = pool.get_connection()
            packed = connection.pack_commands([("GET", keys[place]) for place in places[name]])
            pool.release(connection)
            self._nodes.append((name, pool, packed, places[name]))

    def run(self) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(self.keys)
        open_: list[tuple[Any, Any]] = []
        try:
            for name, pool, packed, _ in self._nodes:
                self.asked = name
                open_.append((pool, pool.get_connection()))
                open_[-1][1].send_packed_command(packed)
            for (_, connection), (name, _, _, places) in zip(open_, self._nodes, strict=True):
                self.asked = name
                for place in places:
                    found[place] = connection.read_response()
        except BaseException:
            for _, connection in open_:
                connection.disconnect()  # answers may be on their way still
            raise
        finally:
            for pool, connection in open_:
                pool.release(connection)
        return found


_Kinds = tuple[type[Exception], ...]
_SENTENCES: list[tuple[_Kinds, str, str]] = [
    ((NoPermissionError,), "NOPERM", "does not let this user do all that a store needs: give it +@all on its keys"),
    ((AuthenticationError, AuthorizationError), "NOAUTH|WRONGPASS", "refuses the user or password of the store's URL"),
    ((OutOfMemoryError,), "OOM ", "has used up its maxmemory: give it more; learning goes on then"),
    ((ReadOnlyError,), "READONLY", "is a replica, or has become one: name the master, or wait for a failover to end"),
    ((BusyLoadingError,), "LOADING", "is still loading its data from disk"),
    ((), "MISCONF", "cannot write its data to disk and takes no writes until it can"),
    ((ClusterError, SlotNotCoveredError), "CLUSTERDOWN|MASTERDOWN", "has no server for some of the keys just now"),
]  # fmt: skip
