"""The parameter store in memory: the model the other adapters are tested against, and the medium of simulations.

Like `MemoryLog`, the object plays the disk and outlives the learners that use it.
"""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from streaming.errors import LayoutMismatch, NotFound, StaleCommit
from streaming.log import Clock, wall_clock
from streaming.store import NOTHING, Commit, Image, Manifest, SnapshotInfo, snapshot_name


@dataclass
class _Shard:
    last_id: bytes = NOTHING
    head: int = 0
    time_ms: int = 0
    base_id: bytes = NOTHING
    base_head: int = 0
    base_time_ms: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)
    stream: list[Commit] = field(default_factory=list)
    unfolded: int = 0
    """How many of the stream's last commits come after the base."""


class MemoryStore:
    """A `ParameterStore` in dictionaries."""

    def __init__(self, clock: Clock = wall_clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None
        self._shards: list[_Shard] = []
        self._blobs: dict[str, tuple[bytes, int]] = {}
        self._snapshots: dict[str, tuple[int, SnapshotInfo, dict[str, bytes]]] = {}

    def manifest(self) -> Manifest | None:
        """See `ParameterStore.manifest`."""
        return self._manifest

    def create(self, manifest: Manifest) -> None:
        """See `ParameterStore.create`."""
        with self._lock:
            if self._manifest is None:
                self._manifest = manifest
                self._shards = [_Shard() for _ in range(manifest.shards)]
            elif self._manifest != manifest:
                raise LayoutMismatch(f"the store is {self._manifest}, not {manifest}: use a new store")

    def load(self, shard: int) -> Image:
        """See `ParameterStore.load`."""
        with self._lock:
            s = self._shard(shard)
            return Image(s.base_id, s.base_head, dict(s.parts), s.stream[len(s.stream) - s.unfolded :])

    def last(self, shard: int) -> tuple[bytes, int]:
        """See `ParameterStore.last`."""
        with self._lock:
            s = self._shard(shard)
            return s.last_id, s.head

    def lasts(self) -> list[tuple[bytes, int]]:
        """See `ParameterStore.lasts`."""
        return [self.last(shard) for shard in range(len(self._shards))]

    def commit(self, shard: int, commit: Commit) -> None:
        """See `ParameterStore.commit`."""
        with self._lock:
            s = self._shard(shard)
            if s.last_id == commit.id:
                return
            if s.last_id != commit.after:
                raise StaleCommit(shard, commit.after, s.last_id)
            s.stream.append(commit)
            s.unfolded += 1
            s.last_id, s.head, s.time_ms = commit.id, commit.head, commit.log_time_ms

    def changes(self, shard: int, after: bytes) -> list[Commit] | None:
        """See `ParameterStore.changes`."""
        with self._lock:
            s = self._shard(shard)
            if s.last_id == after:
                return []
            for position, commit in enumerate(s.stream):
                if commit.after == after:
                    return s.stream[position:]
            return None

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
        with self._lock:
            s = self._shard(shard)
            if s.last_id != commit_id:
                raise StaleCommit(shard, commit_id, s.last_id)
            if base is not None and s.base_id != base:
                raise StaleCommit(shard, base, s.base_id)
            for name in list(s.parts) if whole else drop:
                s.parts.pop(name, None)
            s.parts.update(parts)
            s.base_id, s.base_head, s.base_time_ms = s.last_id, s.head, s.time_ms
            s.unfolded = 0
            del s.stream[: max(0, len(s.stream) - keep)]

    def put_blob(self, data: bytes) -> str:
        """See `ParameterStore.put_blob`."""
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        with self._lock:
            self._blobs[name] = bytes(data), self._clock()
        return name

    def get_blob(self, name: str) -> bytes:
        """See `ParameterStore.get_blob`."""
        with self._lock:
            if name not in self._blobs:
                raise NotFound(f"the store has no blob {name}: upload it again")
            return self._blobs[name][0]

    def drop_blobs(self, keep: set[str], put_before_ms: int) -> None:
        """See `ParameterStore.drop_blobs`."""
        with self._lock:
            blobs = self._blobs.items()
            self._blobs = {n: (data, put) for n, (data, put) in blobs if n in keep or put >= put_before_ms}

    def snapshot(self, shard: int, label: str = "") -> SnapshotInfo:
        """See `ParameterStore.snapshot`."""
        with self._lock:
            s = self._shard(shard)
            size = sum(map(len, s.parts.values()))
            name = snapshot_name(shard, s.base_head, s.base_id, label)
            info = SnapshotInfo(name, s.base_head, s.base_id, s.base_time_ms, size, label)
            self._snapshots[name] = shard, info, dict(s.parts)
            return info

    def snapshots(self, shard: int) -> list[SnapshotInfo]:
        """See `ParameterStore.snapshots`."""
        with self._lock:
            self._shard(shard)
            return sorted((i for s, i, _ in self._snapshots.values() if s == shard), key=lambda i: (i.head, i.name))

    def load_snapshot(self, name: str) -> Image:
        """See `ParameterStore.load_snapshot`."""
        with self._lock:
            if name not in self._snapshots:
                raise NotFound(f"the store has no snapshot {name}: `croupier doctor` lists those it has")
            _, info, parts = self._snapshots[name]
            return Image(info.commit_id, info.head, dict(parts), [])

    def drop_snapshot(self, name: str) -> None:
        """See `ParameterStore.drop_snapshot`."""
        with self._lock:
            self._snapshots.pop(name, None)

    def size_bytes(self) -> int:
        """See `ParameterStore.size_bytes`."""
        with self._lock:
            held = [*(s.parts for s in self._shards), *(parts for _, _, parts in self._snapshots.values())]
            deltas = sum(len(c.delta) for s in self._shards for c in s.stream)
            blobs = sum(len(data) for data, _ in self._blobs.values())
            return deltas + blobs + sum(len(data) for parts in held for data in parts.values())

    def close(self) -> None:
        """Nothing to release: the medium outlives its users."""

    def _shard(self, shard: int) -> _Shard:
        if not 0 <= shard < len(self._shards):
            raise ValueError(f"shard {shard}: the store has {len(self._shards)} shards (none before create)")
        return self._shards[shard]
