"""The records of the event log, byte by byte.

One log record is a frame of many events, or one control record. Little-endian; everything starts at a multiple of 8.

    frame   offset  size  field
            0       4     magic "CRPR"
            4       1     layout version, 1
            5       1     kind: 0 events, 1 control
            6       2     zero
            8       4     number of events (1 for control)
            12      4     CRC-32 of bytes 0-11 and, for control, of all that follows
            16            the events one after another; or the control record

    event   0       4     CRC-32 of the rest of the event
            4       2     length in words of 8 bytes, this header included
            6       1     layout version, 1
            7       1     kind: 1 decision, 2 reward, 3 segment
            8       8     reward, float64 (rewards only)
            16      8     hash of the caller's event id, 0 = none (rewards only); bank key (segments)
            24      4     shard sequence (decisions): counts the decisions that one stream sends to this shard;
                          policy number (segments)
            28      1     slot: which item of the decision is answered (rewards only)
            29      3     zero
            32            payload of the decision as `streaming.token` draws it, zeros up to a word;
                          for a segment its name in UTF-8, ended by zeros

    control 16      8     control number n, from 1
            24            the record as JSON, ended by zeros

A record is poison by its bytes alone: a frame whose header fails, or an event whose CRC or length fails. After an event
of impossible length the rest of its frame cannot be told apart and is one more poison event. Where the CRC holds and
the layout is another, a later release wrote it: that is no poison, it stops the shard. So the first 16 bytes of a frame
and the first 8 of an event stay as they are in all releases.
"""

import hashlib
import struct
from collections.abc import Sequence
from zlib import crc32

LAYOUT = 1
MAGIC = int.from_bytes(b"CRPR", "little")
EVENTS, CONTROL = 0, 1
DECISION, REWARD, SEGMENT = 1, 2, 3
FRAME_SIZE = 16
EVENT_SIZE = 32
SEGMENT_NAME_MAX = 64

_FRAME = struct.Struct("<IBBHI")
_EVENT = struct.Struct("<HBBdQIB3x")
_U32 = struct.Struct("<I")
_CONTROL = struct.Struct("<Q")
_PAD = [b"", b"\0" * 7, b"\0" * 6, b"\0" * 5, b"\0" * 4, b"\0" * 3, b"\0" * 2, b"\0"]


def _event(kind: int, body: bytes, reward: float, key: int, number: int, slot: int) -> bytes:
    pad = _PAD[len(body) & 7]
    words = (EVENT_SIZE + len(body) + len(pad)) >> 3
    rest = _EVENT.pack(words, LAYOUT, kind, reward, key, number, slot) + body + pad
    return _U32.pack(crc32(rest)) + rest


def decision(payload: bytes, shard_seq: int) -> bytes:
    """The event of a decision; `shard_seq` counts the stream's decisions on that shard, from 0."""
    return _event(DECISION, payload, 0.0, 0, shard_seq, 0)


def reward(payload: bytes, slot: int, value: float, event_hash: int = 0) -> bytes:
    """The event of a reward for item `slot` of the decision in `payload`."""
    return _event(REWARD, payload, value, event_hash, 0, slot)


def segment(policy: int, bank: int, name: str) -> bytes:
    """The event that names a bank's segment, sent before its first decision."""
    return _event(SEGMENT, name.encode()[:SEGMENT_NAME_MAX], 0.0, bank, policy, 0)


def frame(events: Sequence[bytes]) -> bytes:
    """One log record of many events.

    >>> len(frame([decision(b"x" * 36, 0), segment(3, 77, "sport")]))
    128
    """
    return frame_of(len(events), b"".join(events))


def frame_of(count: int, events: bytes) -> bytes:
    """One log record of `count` events that stand back to back in `events`."""
    head = _FRAME.pack(MAGIC, LAYOUT, EVENTS, 0, count)
    return head + _U32.pack(crc32(head)) + events


def control_frame(n: int, record: bytes) -> bytes:
    """The log record of control record `n`: of the control partition, and its pointer in each shard."""
    head = _FRAME.pack(MAGIC, LAYOUT, CONTROL, 0, 1)
    body = _CONTROL.pack(n) + record + _PAD[len(record) & 7]
    return head + _U32.pack(crc32(head + body)) + body


def control_of(data: bytes) -> tuple[int, bytes] | None:
    """(n, JSON) where `data` is a sound control record, else None.

    >>> control_of(control_frame(4, b"{}"))
    (4, b'{}')
    """
    if len(data) < FRAME_SIZE + 8 or data[5] != CONTROL:
        return None
    head = data[:12]
    if head != _FRAME.pack(MAGIC, LAYOUT, CONTROL, 0, 1) or _U32.unpack_from(data, 12)[0] != crc32(head + data[16:]):
        return None
    return _CONTROL.unpack_from(data, FRAME_SIZE)[0], data[FRAME_SIZE + 8 :].rstrip(b"\0")


def event_hash(event_id: str) -> int:
    """8 bytes of BLAKE2b of the caller's event id; never 0, which means that there is none."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little") or 1
