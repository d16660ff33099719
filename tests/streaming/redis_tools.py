"""Looking behind a store in Redis: its keys, and those that nothing names."""

from collections.abc import Iterator

import msgspec
from redis import Redis

from streaming.store.redis_keys import Record
from tests.parts.redis import Cluster, Single


def admins(server: Single | Cluster) -> list[Redis]:
    """A client of every master, past the proxies."""
    nodes = server.live if isinstance(server, Cluster) else [server]
    return [node.admin for node in nodes if node.admin.info("replication")["role"] == "master"]


def raw(admin: Redis) -> Redis:
    """The same server, answers as bytes."""
    made = admin.get_connection_kwargs()
    return Redis(host=made["host"], port=made["port"], password=made["password"])


def keys_of(server: Single | Cluster, url: str) -> Iterator[tuple[Redis, str]]:
    """Every key of the store, with a client of the master that has it."""
    name = url.rpartition("/")[2]
    for admin in admins(server):
        for pattern in (f"{{{name}}}*", f"{{{name}:*"):
            for key in admin.scan_iter(pattern, count=10_000):
                yield admin, key


def left_behind(server: Single | Cluster, url: str) -> set[str]:
    """Keys that stay though nothing names them: parts not listed, pieces without a record and without an expiry."""
    found: dict[str, Redis] = {key: admin for admin, key in keys_of(server, url)}
    named: set[str] = set()
    for key, admin in found.items():
        tag, _, kind = key.partition("}:")
        if kind == "parts":
            named |= {f"{tag}}}:part:{part}" for part in admin.hkeys(key)}
        elif kind == "kept":
            with raw(admin) as client:
                records = [msgspec.msgpack.decode(data, type=Record) for data in client.hvals(key)]
            named |= {f"{key}:{record.token}:{i}" for record in records for i in range(record.pieces)}
    pieces = {key for key in found if ":part:" in key or ":kept:" in key}
    assert named <= pieces, f"named but not there: {named - pieces}"
    assert all(found[key].pttl(key) == -1 for key in named), "what is named must not expire"
    return {key for key in pieces - named if found[key].pttl(key) < 0}
