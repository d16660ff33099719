"""Every key and byte of a parameter store in Redis. One hash tag per shard, so that a script may touch all of a shard.

NAME is the path of the store's URL (`croupier` unless given), p a shard. Integers are little-endian.

    key                              type    value
    {NAME}:manifest                  string  MessagePack of `Manifest`, written once
    {NAME}:blobs                     hash    blob hash -> when it was last put, ms in decimal
    {NAME:p}:last                    string  position of the last commit
    {NAME:p}:stream                  stream  one entry a commit: h = header, d = delta, or z = delta compressed by zlib
    {NAME:p}:base                    string  position as of which the base is: a copy of `last` when it was folded
    {NAME:p}:parts                   hash    part -> bytes of its string
    {NAME:p}:part:PART               string  part
    {NAME:p}:folding                 string  commit id, fold and piece number of a fold under way; gone when it ends
    {NAME:p}:kept                    hash    snapshot -> record (MessagePack of `Record`); it is there when this is
    {NAME:p}:kept:TOKEN:i            string  piece i: CRC-32 (4) of the rest, zlib of MessagePack {part: bytes}
    {NAME:blob:HASH}:kept            hash    HASH -> record
    {NAME:blob:HASH}:kept:TOKEN:i    string  piece i: CRC-32 (4) of the rest, bytes of the blob
    {TAG}:wait                       string  empty; written before WAIT on its connection, expires after a second

    position     0  commit id (16)      16  head (8)       24  log time, ms (8)      32  id of its entry in the stream
    header       0  id (16)             16  after (16)     32  head (8)              40  log time, ms (8)
                48  first time, ms (8)  56  CRC-32 (4) of the bytes before and the delta
    part         0  head as of which it was written (8)     8  CRC-32 (4) of head and data     12  data

A part of 32,000 rows of 16 bytes takes 512,000 + 12 bytes and the header that `streaming.state` gives it: with Redis's
own, one allocation of 512 KiB.

What bounds them: `stream` is trimmed behind every fold; `parts` are the state; pieces of snapshots and blobs expire
after an hour until the record that names them is written by the script that also makes them stay.
"""

import struct
import zlib
from typing import NamedTuple

import msgspec

from streaming.errors import StoreCorrupt
from streaming.store import NOTHING, Commit

FIRST_ENTRY = b"0-0"
"""Before every entry of a stream."""
PIECE_BYTES = 1 << 20
"""About as much as one command or its answer carries, so that none holds up the others for long."""
PIECE_LIFE_S = 3600
MOST_BYTES = 500 << 20
"""Redis refuses a value of more than 512 MiB (proto-max-bulk-len)."""
COMPRESSED_FROM = 256 << 10
"""Deltas of at least so many bytes are compressed: a new graph's edges are mostly alike."""

_POSITION = struct.Struct("<16sqq")
_HEADER = struct.Struct("<16s16sqqq")
_CRC = struct.Struct("<I")
_PART = struct.Struct("<q")


class Position(NamedTuple):
    """A point in a shard's chain of commits."""

    commit_id: bytes
    head: int
    time_ms: int
    entry: bytes

    def pack(self) -> bytes:
        return _POSITION.pack(self.commit_id, self.head, self.time_ms) + self.entry


START = Position(NOTHING, 0, 0, FIRST_ENTRY)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is kept in pieces: a snapshot or a blob."""

    token: str
    pieces: int
    stored_bytes: int
    about: msgspec.Raw


class Keys:
    """The keys of one store."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = f"{{{name}}}"
        self.manifest = f"{self.root}:manifest"
        self.blobs = f"{self.root}:blobs"

    def shard(self, shard: int) -> "ShardKeys":
        return ShardKeys(f"{{{self.name}:{shard}}}")

    def blob(self, name: str) -> str:
        """The hash tag of a blob."""
        return f"{{{self.name}:blob:{name}}}"


class ShardKeys:
    """The keys of one shard."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.last, self.stream, self.base = f"{tag}:last", f"{tag}:stream", f"{tag}:base"
        self.parts, self.folding = f"{tag}:parts", f"{tag}:folding"

    def part(self, name: str) -> str:
        return f"{self.tag}:part:{name}"


def position(data: bytes) -> Position:
    """A position from its bytes.

    >>> position(START.pack()) == START
    True
    """
    if len(data) < _POSITION.size:
        raise StoreCorrupt(f"a position of {len(data)} bytes: not a store of croupier, or a damaged one")
    commit_id, head, time_ms = _POSITION.unpack_from(data)
    return Position(commit_id, head, time_ms, data[_POSITION.size :])


def commit_fields(commit: Commit) -> list[bytes]:
    """The fields and values of a commit's stream entry. ValueError where Redis would not take one so large."""
    c = commit
    header = _HEADER.pack(c.id, c.after, c.head, c.log_time_ms, c.first_time_ms)
    header += _CRC.pack(zlib.crc32(c.delta, zlib.crc32(header)))
    if len(c.delta) < COMPRESSED_FROM:
        return [b"h", header, b"d", c.delta]
    compressed = zlib.compress(c.delta, 1)
    if len(compressed) > MOST_BYTES:
        raise ValueError(
            f"a commit of {len(c.delta)} bytes, {len(compressed)} compressed: Redis takes {MOST_BYTES} at most. A "
            "whole table was written at once; export and import with more shards"
        )
    return [b"h", header, b"z", compressed]


def commit_of(fields: dict[bytes, bytes]) -> Commit:
    """The commit of a stream entry.

    >>> fields = iter(commit_fields(Commit(b"2" * 16, b"1" * 16, 7, 50, 40, b"delta")))
    >>> commit_of(dict(zip(fields, fields))).delta
    b'delta'
    """
    try:
        header, crc = fields[b"h"][: _HEADER.size], fields[b"h"][_HEADER.size :]
        delta = fields[b"d"] if b"d" in fields else zlib.decompress(fields[b"z"])
        commit_id, after, head, log_time_ms, first_time_ms = _HEADER.unpack(header)
        (expected,) = _CRC.unpack(crc)
    except (KeyError, struct.error, zlib.error) as error:
        raise StoreCorrupt(f"an entry of a shard's stream cannot be read ({error!r}): {REMEDY}") from error
    if zlib.crc32(delta, zlib.crc32(header)) != expected:
        raise StoreCorrupt(f"commit {commit_id.hex()} has a wrong checksum: {REMEDY}")
    return Commit(commit_id, after, head, log_time_ms, first_time_ms, delta)


REMEDY = "make the parameters anew from the log with `croupier rebuild`"


def pack_part(head: int, data: bytes) -> bytes:
    """A part as it is stored."""
    stamp = _PART.pack(head)
    return stamp + _CRC.pack(zlib.crc32(data, zlib.crc32(stamp))) + data


def unpack_part(name: str, stored: bytes) -> tuple[int, bytes]:
    """(head as of which the part was written, its data).

    >>> unpack_part("a", pack_part(7, b"data"))
    (7, b'data')
    """
    stamp, crc, data = stored[:8], stored[8:12], stored[12:]
    if len(crc) < 4 or _CRC.pack(zlib.crc32(data, zlib.crc32(stamp))) != crc:
        raise StoreCorrupt(f"part {name} has a wrong checksum: {REMEDY}")
    return _PART.unpack(stamp)[0], data


def pack_piece(data: bytes) -> bytes:
    """A piece of a snapshot or blob as it is stored."""
    return _CRC.pack(zlib.crc32(data)) + data


def unpack_piece(key: str, stored: bytes) -> bytes:
    """The bytes of a piece.

    >>> unpack_piece("k", pack_piece(b"data"))
    b'data'
    """
    data = stored[4:]
    if _CRC.pack(zlib.crc32(data)) != stored[:4]:
        raise StoreCorrupt(f"{key} has a wrong checksum: upload or take it again")
    return data
