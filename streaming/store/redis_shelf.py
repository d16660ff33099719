"""Things kept in pieces under one hash tag: snapshots of a shard, a blob.

Pieces are written first and expire after an hour; then one script makes them stay and writes the record that names
them. So what is listed is whole, and what a crash leaves half-written goes by itself.
"""

import secrets
from collections.abc import Iterable, Iterator

import msgspec

from streaming.errors import NotFound, StoreCorrupt, StoreUnavailable
from streaming.store.redis_keys import PIECE_LIFE_S, Record, pack_piece, unpack_piece
from streaming.store.redis_link import Link, Script

_KEEP = Script("keep")


class Shelf:
    """What is kept under `tag`."""

    def __init__(self, link: Link, tag: str) -> None:
        self._link, self.tag = link, tag
        self._key = f"{tag}:kept"

    def records(self) -> dict[str, Record]:
        """Everything that is kept, by name."""
        return {name.decode(): _record(data) for name, data in self._link.call("HGETALL", self._key).items()}

    def record(self, name: str) -> Record | None:
        """The record of that name."""
        data = self._link.call("HGET", self._key, name)
        return None if data is None else _record(data)

    def put(self, name: str, pieces: Iterable[bytes], about: object) -> Record:
        """Keeps pieces under a name, in place of what it named. `about` goes into the record. Durable."""
        token, number, size = secrets.token_hex(8), 0, 0
        for number, piece in enumerate(pieces, 1):
            stored = pack_piece(piece)
            size += len(stored)
            self._link.call("SET", self._piece(token, number - 1), stored, "EX", PIECE_LIFE_S)
        record = Record(token, number, size, msgspec.Raw(msgspec.msgpack.encode(about)))
        while not self.replace(name, self.record(name), record):
            pass
        return record

    def replace(self, name: str, old: Record | None, new: Record | None) -> bool:
        """Puts one record in place of another, and drops the pieces that nothing names then. Durable.

        False where `old` is not what is there. A new record with the old one's pieces keeps them.
        """
        same = old is not None and new is not None and old.token == new.token
        coming = [] if new is None or same else self._pieces(new)
        going = [] if old is None or same else self._pieces(old)
        args = [name, _bytes(old), _bytes(new), len(coming)]
        found = self._link.run(_KEEP, [self._key, *coming, *going], args)
        if found < 0:
            raise StoreUnavailable(
                f"{self._link.address} lost a piece of {self.tag} {name} while it was written, "
                "as a failover does: try again"
            )
        if found:
            self._link.durable(self.tag)
        return bool(found)

    def drop(self, name: str) -> None:
        """Forgets what is kept under a name; nothing where there is none."""
        while (old := self.record(name)) is not None and not self.replace(name, old, None):
            pass

    def read(self, name: str, missing: str) -> tuple[Record, list[bytes]]:
        """The record and the pieces of that name. Raises NotFound(missing)."""
        while (record := self.record(name)) is not None:
            pieces = list(self._read(record))
            if len(pieces) == record.pieces:
                return record, pieces
            if self.record(name) == record:
                raise StoreCorrupt(
                    f"{self._link.address} has no piece {len(pieces)} of {self.tag} {name}: was it restarted empty, or "
                    "did somebody delete keys? Upload or take it again"
                )
        raise NotFound(missing)

    def _read(self, record: Record) -> Iterator[bytes]:
        for key in self._pieces(record):
            stored = self._link.call("GET", key)
            if stored is None:
                return
            yield unpack_piece(key, stored)

    def _pieces(self, record: Record) -> list[str]:
        return [self._piece(record.token, number) for number in range(record.pieces)]

    def _piece(self, token: str, number: int) -> str:
        return f"{self._key}:{token}:{number}"


def _bytes(record: Record | None) -> bytes:
    return b"" if record is None else msgspec.msgpack.encode(record)


def _record(data: bytes) -> Record:
    try:
        return msgspec.msgpack.decode(data, type=Record)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(f"the record of something kept in pieces cannot be read: {error}") from error
