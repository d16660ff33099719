"""What a shard of a store in Redis holds, read about PIECE_BYTES at a time so that no answer holds up the others."""

from collections.abc import Iterator
from typing import Any

from streaming.store import Commit
from streaming.store.redis_keys import PIECE_BYTES, Position, ShardKeys, commit_of, unpack_part
from streaming.store.redis_link import Link


def read_parts(link: Link, keys: ShardKeys) -> dict[str, tuple[int, bytes]] | None:
    """The parts with the heads they were written at, about PIECE_BYTES at a time. None where one is gone."""
    parts: dict[str, tuple[int, bytes]] = {}
    sizes = {name.decode(): int(size) for name, size in link.call("HGETALL", keys.parts).items()}
    for piece in in_pieces(sizes):
        for name, stored in zip(piece, link.call("MGET", *map(keys.part, piece)), strict=True):
            if stored is None:
                return None
            parts[name] = unpack_part(name, stored)
    return parts


def read_stream(link: Link, keys: ShardKeys, entry: bytes) -> Iterator[tuple[bytes, Commit]]:
    """The commits after an entry with their own entries, about PIECE_BYTES at a time."""
    count, size = 4, 0
    read = 0
    while True:
        found = link.call("XRANGE", keys.stream, b"(" + entry, "+", "COUNT", count)
        for entry, fields in found:
            size += sum(map(len, fields.values()))
            yield entry, commit_of(fields)
        if len(found) < count:
            return
        read += len(found)
        count = _page(count, read, size)


def read_back_to(link: Link, keys: ShardKeys, after: bytes) -> list[tuple[bytes, Commit]]:
    """The commits after an id whose entry is not known, found from the stream's end; [] where it is not there."""
    commits: list[tuple[bytes, Commit]] = []
    end, count, size = b"+", 4, 0
    while found := link.call("XREVRANGE", keys.stream, end, "-", "COUNT", count):
        for entry, fields in found:
            commits.append((entry, commit_of(fields)))
            size += sum(map(len, fields.values()))
            if commits[-1][1].after == after:
                return commits[::-1]
        end, count = b"(" + commits[-1][0], _page(count, len(commits), size)
    return []


def _page(count: int, read: int, size: int) -> int:
    """How many entries to ask for next, after `read` of `size` bytes: about PIECE_BYTES."""
    return max(1, min(1000, 2 * count, PIECE_BYTES * read // size))


def position_of(entry: bytes, commit: Commit) -> Position:
    return Position(commit.id, commit.head, commit.log_time_ms, entry)


def chained(after: bytes, commits: list[tuple[bytes, Commit]], last: bytes) -> bool:
    """Whether the commits lead from one id to another, each following the one before."""
    for _, commit in commits:
        if commit.after != after:
            return False
        after = commit.id
    return after == last


def in_pieces(parts: dict[str, Any]) -> Iterator[list[str]]:
    """Names of parts, given with their bytes or sizes, in groups of about PIECE_BYTES."""
    piece: list[str] = []
    size = 0
    for name, data in parts.items():
        length = data if isinstance(data, int) else len(data)
        if piece and size + length > PIECE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += length
    if piece:
        yield piece
