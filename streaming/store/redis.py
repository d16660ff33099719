"""The parameter store in Redis or Valkey, alone or as a cluster. `streaming.store.redis_keys` draws every key.

A commit is one script: compare-and-set on the last commit id, one entry to the shard's stream. Redis replicates without
waiting, so a failover may lose the newest commits, never their order or half of one; the chain of ids shows it to the
learner, which loads again and re-reads the log from there. What nothing else holds (manifest, snapshots, blobs) is
written with WAIT, where there is a replica.

A fold writes the changed parts in pieces and then, by one script, moves the base's position and trims the stream:

    parts as of base B, some as of the commit C that is folded;  stream: B -> c1 -> c2 -> ... -> C -> ... -> last

So a reader may find parts of both. That is sound: what differs between them are rows that the commits from B to C
wrote, every one of those commits is in the stream until the final script, and it carries the rows' absolute values.
Whoever reads position B first, then the parts, then the stream from B on, has after the last commit the same rows
whichever parts it saw. If a fold ends meanwhile and trims what it needed, the stream no longer joins B, and it reads
again. If a failover comes between, a part may be as of a commit that was lost; it names its head, a shard's state is a
function of the head, and a reader whose stream ends before that head reads again. The same holds for a fold that
crashed: the next learner writes all parts that changed since B. A failover may also lose a fold that had ended, while
the commits stay; the learner, who has not loaded again, would then write too few parts, so it names the base it means.
"""

import hashlib
import secrets
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from streaming.errors import LayoutMismatch, NotFound, StaleCommit, StoreCorrupt, StoreUnavailable
from streaming.log import Clock, wall_clock
from streaming.store import NOTHING, Commit, Image, Manifest, SnapshotInfo, snapshot_name
from streaming.store.redis_keys import (
    FIRST_ENTRY,
    PIECE_BYTES,
    REMEDY,
    START,
    Keys,
    Position,
    Record,
    ShardKeys,
    commit_fields,
    pack_part,
    position,
)
from streaming.store.redis_link import Link, Script
from streaming.store.redis_read import chained, in_pieces, position_of, read_back_to, read_parts, read_stream
from streaming.store.redis_shelf import Shelf
from streaming.store.redis_url import parse

_COMMIT, _FOLD, _FOLD_END, _FORGET = Script("commit"), Script("fold"), Script("fold_end"), Script("forget")
_TRIES = 20
_REMEMBERED = 1000
"""Commits of a shard whose places in the stream a handle remembers."""


class RedisStore:
    """A `ParameterStore` in the Redis at `url` (`streaming.store.redis_url`), which must not evict keys.

    Connections are made when they are first used, and anew in a child after a fork.
    """

    def __init__(self, url: str, clock: Clock = wall_clock) -> None:
        address = parse(url)
        self._clock = clock
        self._keys = Keys(address.name)
        self._link = Link(address)
        self._manifest: Manifest | None = None
        self._lasts: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._entries: dict[int, dict[bytes, bytes]] = {}
        try:
            self._link.check()
        finally:
            self._link.close()  # whoever forks now shares no connection with us

    def manifest(self) -> Manifest | None:
        """See `ParameterStore.manifest`."""
        if self._manifest is None:
            found = self._link.call("GET", self._keys.manifest)
            try:
                self._manifest = None if found is None else msgspec.msgpack.decode(found, type=Manifest)
            except msgspec.DecodeError as error:
                raise StoreCorrupt(f"the manifest in {self._link.address} cannot be read: {error}") from error
        return self._manifest

    def create(self, manifest: Manifest) -> None:
        """See `ParameterStore.create`."""
        shards = [self._keys.shard(shard) for shard in range(manifest.shards)]
        if self.manifest() is None:
            found = self._link.many([("EXISTS", keys.last) for keys in shards])
            if any(found) and self.manifest() is None:
                raise LayoutMismatch(
                    f"{self._link.address} has shards named {self._keys.name} but no manifest, so it has lost keys: "
                    "delete all that begins so and make the parameters anew, or use another name"
                )
            self._link.call("SET", self._keys.manifest, msgspec.msgpack.encode(manifest), "NX")
        if self.manifest() != manifest:
            raise LayoutMismatch(
                f"the parameter store {self._keys.name} in {self._link.address} is {self._manifest}, not {manifest}: "
                "log and store belong together; use a new store, by another name after the hosts, for another log"
            )
        self._link.many([("SET", key, START.pack(), "NX") for keys in shards for key in (keys.last, keys.base)])
        for tag in (self._keys.root, *(keys.tag for keys in shards)):
            self._link.durable(tag)

    def load(self, shard: int) -> Image:
        """See `ParameterStore.load`."""
        keys = self._shard(shard)
        unmoved = 0
        for _ in range(_TRIES):
            base = self._position(shard, keys.base)
            parts = read_parts(self._link, keys)
            commits = list(read_stream(self._link, keys, base.entry))
            last = position_of(*commits[-1]) if commits else self._position(shard, keys.last)
            if (
                parts is not None
                and chained(base.commit_id, commits, last.commit_id)
                and all(head <= last.head for head, _ in parts.values())
            ):
                self._remember(shard, last.commit_id, last.entry)
                data = {name: data for name, (_, data) in parts.items()}
                return Image(base.commit_id, base.head, data, [commit for _, commit in commits])
            # A fold that ended meanwhile has moved the base; a commit or failover meanwhile does harm once or twice.
            unmoved = unmoved + 1 if self._position(shard, keys.base) == base else 0
            if unmoved == 3:
                raise StoreCorrupt(f"{self._link.address} lost parts or commits of shard {shard}: {REMEDY}")
        raise StoreUnavailable(f"shard {shard} was folded {_TRIES} times while it was loaded: try again")

    def last(self, shard: int) -> tuple[bytes, int]:
        """See `ParameterStore.last`."""
        return self._position(shard, self._shard(shard).last)[:2]

    def lasts(self) -> list[tuple[bytes, int]]:
        """See `ParameterStore.lasts`."""
        manifest = self.manifest()
        if len(self._lasts) != (manifest.shards if manifest else 0):
            self._lasts = tuple(self._keys.shard(shard).last for shard in range(manifest.shards if manifest else 0))
        found = self._link.gets(self._lasts)
        return [self._positioned(shard, data)[:2] for shard, data in enumerate(found)]

    def commit(self, shard: int, commit: Commit) -> None:
        """See `ParameterStore.commit`."""
        keys, c = self._shard(shard), commit
        position = Position(c.id, c.head, c.log_time_ms, b"").pack()[16:]
        found = self._link.run(_COMMIT, [keys.last, keys.stream], [c.id, c.after, position, *commit_fields(c)])
        self._remember(shard, c.id, self._accepted(shard, c.after, found))

    def changes(self, shard: int, after: bytes) -> list[Commit] | None:
        """See `ParameterStore.changes`."""
        keys = self._shard(shard)
        entry = FIRST_ENTRY if after == NOTHING else self._entries.get(shard, {}).get(after)
        if entry is None:
            if self._position(shard, keys.last).commit_id == after:
                return []
            commits = read_back_to(self._link, keys, after)
        else:
            commits = list(read_stream(self._link, keys, entry))
            if not commits:
                last = self._position(shard, keys.last)
                if last.commit_id == after:
                    return []
                commits = list(
                    read_stream(self._link, keys, entry)
                )  # committed between the two calls, or lost by a failover
        if not commits or not chained(after, commits, commits[-1][1].id):
            return None
        self._remember(shard, commits[-1][1].id, commits[-1][0])
        return [commit for _, commit in commits]

    def fold(
        self,
        shard: int,
        commit_id: bytes,
        parts: dict[str, bytes],
        drop: Iterable[str] = (),
        keep: int = 1000,
        base: bytes | None = None,
        whole: bool = False,
    ) -> None:
        """See `ParameterStore.fold`."""
        keys = self._shard(shard)
        last = self._position(shard, keys.last)
        if last.commit_id != commit_id:
            raise StaleCommit(shard, commit_id, last.commit_id)
        if whole:
            drop = [name.decode() for name in self._link.call("HKEYS", keys.parts)]
        gone = [name for name in drop if name not in parts]
        for _ in range(3):
            mark = self._write_parts(shard, last, parts)
            if mark is None:
                continue
            end = [keys.last, keys.folding, keys.parts, keys.base, keys.stream, *map(keys.part, gone)]
            found = self._link.run(_FOLD_END, end, [commit_id, mark, keep, base or b"", *gone])
            if self._accepted(shard, base or commit_id, found):
                return
        raise StoreUnavailable(
            f"{self._link.address} lost pieces of a fold of shard {shard}, as a failover does: try again"
        )

    def _write_parts(self, shard: int, last: Position, parts: dict[str, bytes]) -> bytes | None:
        """Writes the parts piece by piece; what the key `folding` is then, None where a failover lost a piece."""
        keys = self._shard(shard)
        fold, mark = secrets.token_bytes(8), b""
        for number, piece in enumerate(in_pieces(parts)):
            after, mark = mark, last.commit_id + fold + b"%d" % number
            values = [value for name in piece for value in (name, pack_part(last.head, parts[name]))]
            scripted = [keys.last, keys.folding, keys.parts, *map(keys.part, piece)]
            found = self._link.run(_FOLD, scripted, [last.commit_id, after, mark, *values])
            if not self._accepted(shard, last.commit_id, found):
                return None
        return mark

    def put_blob(self, data: bytes) -> str:
        """See `ParameterStore.put_blob`."""
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        shelf = Shelf(self._link, self._keys.blob(name))
        put_ms = self._clock()
        # The index first: it is how `drop_blobs` finds what is there, and a name in it without a blob does no harm.
        self._link.call("HSET", self._keys.blobs, name, put_ms)
        old = shelf.record(name)
        if old is None or not shelf.replace(name, old, _dated(old, put_ms)):
            view = memoryview(data)
            shelf.put(name, (bytes(view[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)), put_ms)
        self._link.durable(self._keys.root)
        return name

    def get_blob(self, name: str) -> bytes:
        """See `ParameterStore.get_blob`."""
        missing = f"the parameter store in {self._link.address} has no blob {name}: upload it again"
        _, pieces = Shelf(self._link, self._keys.blob(name)).read(name, missing)
        data = b"".join(pieces)
        if hashlib.blake2b(data, digest_size=32).hexdigest() != name:
            raise StoreCorrupt(f"blob {name} in {self._link.address} does not have that hash: upload it again")
        return data

    def drop_blobs(self, keep: set[str], put_before_ms: int) -> None:
        """See `ParameterStore.drop_blobs`."""
        for raw, put in self._link.call("HGETALL", self._keys.blobs).items():
            name = raw.decode()
            if name in keep or int(put) >= put_before_ms:
                continue
            shelf = Shelf(self._link, self._keys.blob(name))
            old = shelf.record(name)
            # Put again meanwhile: it has another record then, and its name in the index another time.
            if old is None or (msgspec.msgpack.decode(old.about) < put_before_ms and shelf.replace(name, old, None)):
                self._link.run(_FORGET, [self._keys.blobs], [name, put])

    def snapshot(self, shard: int, label: str = "") -> SnapshotInfo:
        """See `ParameterStore.snapshot`."""
        keys = self._shard(shard)
        for _ in range(_TRIES):
            base = self._position(shard, keys.base)
            parts = read_parts(self._link, keys)
            folding = self._link.call("GET", keys.folding)
            if self._position(shard, keys.base) != base or parts is None:
                continue
            if folding is not None or any(head > base.head for head, _ in parts.values()):
                raise StoreUnavailable(f"shard {shard} is being folded, or a fold was cut off: fold it first")
            size = sum(len(data) for _, data in parts.values())
            info = SnapshotInfo(
                snapshot_name(shard, base.head, base.commit_id, label),
                base.head,
                base.commit_id,
                base.time_ms,
                size,
                label,
            )
            Shelf(self._link, keys.tag).put(info.name, _packed({name: data for name, (_, data) in parts.items()}), info)
            return info
        raise StoreUnavailable(f"shard {shard} was folded {_TRIES} times while it was copied: try again")

    def snapshots(self, shard: int) -> list[SnapshotInfo]:
        """See `ParameterStore.snapshots`."""
        records = Shelf(self._link, self._shard(shard).tag).records().values()
        infos = [msgspec.msgpack.decode(record.about, type=SnapshotInfo) for record in records]
        return sorted(infos, key=lambda info: (info.head, info.name))

    def load_snapshot(self, name: str) -> Image:
        """See `ParameterStore.load_snapshot`."""
        missing = (
            f"the parameter store in {self._link.address} has no snapshot {name}: `croupier doctor` lists those it has"
        )
        shard = name.partition("-")[0]
        if not shard.isdecimal():
            raise NotFound(missing)
        record, pieces = Shelf(self._link, self._keys.shard(int(shard)).tag).read(name, missing)
        info = msgspec.msgpack.decode(record.about, type=SnapshotInfo)
        parts: dict[str, bytes] = {}
        for piece in pieces:
            parts |= msgspec.msgpack.decode(zlib.decompress(piece), type=dict[str, bytes])
        return Image(info.commit_id, info.head, parts, [])

    def drop_snapshot(self, name: str) -> None:
        """See `ParameterStore.drop_snapshot`."""
        shard = name.partition("-")[0]
        if shard.isdecimal():
            Shelf(self._link, self._keys.shard(int(shard)).tag).drop(name)

    def size_bytes(self) -> int:
        """See `ParameterStore.size_bytes`: parts, snapshots and blobs as stored, streams with their overhead."""
        manifest = self.manifest()
        size = 0
        for shard in range(manifest.shards if manifest else 0):
            keys = self._keys.shard(shard)
            size += self._link.call("MEMORY", "USAGE", keys.stream) or 0
            size += sum(map(int, self._link.call("HVALS", keys.parts)))
            size += sum(record.stored_bytes for record in Shelf(self._link, keys.tag).records().values())
        for name in self._link.call("HKEYS", self._keys.blobs):
            record = Shelf(self._link, self._keys.blob(name.decode())).record(name.decode())
            size += record.stored_bytes if record else 0
        return size

    def close(self) -> None:
        """See `ParameterStore.close`."""
        self._link.close()

    def _shard(self, shard: int) -> ShardKeys:
        manifest = self.manifest()
        if manifest is None or not 0 <= shard < manifest.shards:
            raise ValueError(
                f"the parameter store in {self._link.address} has no shard {shard} (none at all before create)"
            )
        return self._keys.shard(shard)

    def _position(self, shard: int, key: str) -> Position:
        return self._positioned(shard, self._link.call("GET", key))

    def _positioned(self, shard: int, data: bytes | None) -> Position:
        if data is None:
            raise StoreCorrupt(
                f"{self._link.address} lost shard {shard} of {self._keys.name}: was it flushed, or restarted without "
                f"`appendonly yes`? Restore it from a backup, or {REMEDY}"
            )
        return position(data)

    def _accepted(self, shard: int, after: bytes, found: Any) -> Any:
        """What a guarded script returned, unless it found another last commit or no shard."""
        if isinstance(found, list):
            raise StaleCommit(shard, after, found[0])
        if found is None:
            self._positioned(shard, None)
        return found

    def _remember(self, shard: int, commit_id: bytes, entry: bytes) -> None:
        with self._lock:
            entries = self._entries.setdefault(shard, {})
            entries[commit_id] = entry
            if len(entries) > _REMEMBERED:
                del entries[next(iter(entries))]


def _dated(record: Record, put_ms: int) -> Record:
    return msgspec.structs.replace(record, about=msgspec.Raw(msgspec.msgpack.encode(put_ms)))


def _packed(parts: dict[str, bytes]) -> Iterator[bytes]:
    """The pieces of a snapshot."""
    for piece in in_pieces(parts):
        data = msgspec.msgpack.encode({name: parts[name] for name in piece})
        # Edges that were never seen are alike, much used ones are noise, which costs 20 times as long to no avail.
        sample = data[len(data) // 2 :][:16_384]
        yield zlib.compress(data, 1 if len(zlib.compress(sample, 1)) < len(sample) // 2 else 0)
