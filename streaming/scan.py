"""From bytes to rows: the kernels that read log records (laid out in `streaming.events` and `streaming.token`).

`scan` turns frames into one row of EVENT per event; the contexts stay in the buffer, and `expand_diag` and
`expand_arms` read them where a policy learns. The buffer is seen through arrays of each word size at once: every field
stands at a multiple of its size, so a field is one load.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.scalar import exp2
from streaming.events import DECISION, EVENT_SIZE, FRAME_SIZE, LAYOUT, MAGIC, REWARD, SEGMENT
from streaming.token import ARMS, ARMS_SIZE, FUNDED, HEADER_SIZE, NO_DEFAULT
from streaming.token import LAYOUT as TOKEN_LAYOUT

POISON, UNKNOWN = 0, 255  # kinds of a row, beside those of streaming.events
NONE = np.uint32(0)
AHEAD = 10  # half-lives that a decision may be ahead of the log's time; a clock further ahead counts as that

EVENT = np.dtype(
    [
        ("kind", "u1"), ("context", "u1"), ("aggregation", "u1"), ("mode", "u1"), ("funded", "u1"),
        ("no_default", "u1"), ("slot", "u1"), ("m", "u1"), ("k", "u1"), ("outcome", "u1"), ("first", "u1"),
        ("policy", "u4"), ("sequence", "u4"), ("lineage", "u4"), ("item", "u4"), ("record", "i4"), ("index", "i4"),
        ("pidx", "i4"), ("at", "i8"), ("decision", "u8"), ("key", "u8"), ("time_ms", "i8"), ("window_ms", "i8"),
        ("log_time_ms", "i8"), ("reward", "f8"), ("default", "f8"), ("old", "f8"), ("new", "f8"), ("bank", "u8"),
        ("p", "f8"), ("w", "f8"), ("a", "f8"), ("c", "f8"),
    ],
    align=True,
)  # fmt: skip
"""One event. `at` is the byte where its payload starts, `record` the record it came in, `index` its place there.
`key` is the event-id hash of a reward or the bank of a segment. `outcome`, `pidx`, `first`, `old` and `new` are
filled by the reward contract."""


def _crc_tables() -> NDArray[np.uint32]:
    table = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        table[0, byte] = value
    for k in range(1, 8):
        for byte in range(256):
            before = int(table[k - 1, byte])
            table[k, byte] = before >> 8 ^ int(table[0, before & 255])
    return table


CRC_TABLES = _crc_tables()


class Buffer(NamedTuple):
    """Log records back to back, each at a multiple of 8, seen as bytes and as words; (start, end) of each record."""

    u8: NDArray[np.uint8]
    u16: NDArray[np.uint16]
    u32: NDArray[np.uint32]
    u64: NDArray[np.uint64]
    f32: NDArray[np.float32]
    f64: NDArray[np.float64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def buffer(records: list[bytes]) -> Buffer:
    """The records in one buffer. A copy; but of many megabytes a second and core, it is the cheapest thing here."""
    sizes = np.array([len(data) for data in records], np.int64)
    room = -(-sizes // 8) * 8
    start = np.zeros(len(records), np.int64)
    start[1:] = np.cumsum(room)[:-1]
    joined = b"".join(data if len(data) % 8 == 0 else data + bytes(-len(data) % 8) for data in records)
    u64 = np.frombuffer(joined, np.uint64)
    views = (u64.view(np.uint8), u64.view(np.uint16), u64.view(np.uint32), u64)
    return Buffer(*views, u64.view(np.float32), u64.view(np.float64), start, start + sizes)


@njit(cache=True, nogil=True)
def crc32(
    u8: NDArray[np.uint8], u32: NDArray[np.uint32], start: Any, end: Any, table: NDArray[np.uint32], before: Any
) -> Any:
    """CRC-32 of bytes start..end, start a multiple of 4, after bytes whose CRC is `before` (0: none).

    Eight bytes a step by eight tables.
    """
    crc = before ^ np.uint32(0xFFFFFFFF)
    at = start
    while at + 8 <= end:
        one = crc ^ u32[at >> 2]
        two = u32[(at >> 2) + 1]
        crc = (
            table[7, one & 255]
            ^ table[6, one >> 8 & 255]
            ^ table[5, one >> 16 & 255]
            ^ table[4, one >> 24]
            ^ table[3, two & 255]
            ^ table[2, two >> 8 & 255]
            ^ table[1, two >> 16 & 255]
            ^ table[0, two >> 24]
        )
        at += 8
    while at < end:
        crc = table[0, (crc ^ u8[at]) & 255] ^ crc >> np.uint32(8)
        at += 1
    return crc ^ np.uint32(0xFFFFFFFF)


@njit(cache=True, nogil=True)
def count_events(buf: Buffer) -> int:
    """An upper bound of the rows that `scan` writes: what the frames say, as far as their bytes can hold it."""
    rows = 0
    for r in range(buf.start.shape[0]):
        start, end = buf.start[r], buf.end[r]
        said = np.int64(buf.u32[(start >> 2) + 2]) if end - start >= FRAME_SIZE else np.int64(1)
        rows += max(1, min(said, 1 + (end - start) // EVENT_SIZE))
    return rows


@njit(cache=True, nogil=True)
def scan(buf: Buffer, times: NDArray[np.int64], table: NDArray[np.uint32], out: NDArray[np.void]) -> int:
    """One row of `out` for each event of the records, poison rows included; returns how many.

    `times` is each record's log time, ms. Only kind, record, index and log_time_ms of a poison row mean anything.
    """
    n = 0
    for r in range(buf.start.shape[0]):
        start, end = buf.start[r], buf.end[r]
        word = start >> 2
        sound = (
            end - start >= FRAME_SIZE
            and buf.u32[word] == MAGIC
            and buf.u8[start + 4] == LAYOUT
            and buf.u8[start + 5] == 0
            and crc32(buf.u8, buf.u32, start, start + 12, table, NONE) == buf.u32[word + 3]
        )
        count = np.int64(buf.u32[word + 2]) if sound else np.int64(1)
        at = start + FRAME_SIZE
        index = 0
        while index < count:
            e = out[n]
            e.record, e.index, e.log_time_ms, e.kind, e.pidx, e.outcome = r, index, times[r], POISON, -1, 255
            n += 1
            index += 1
            if not sound and _foreign(buf, start, end, table):
                e.kind = UNKNOWN
            if not sound or at + EVENT_SIZE > end:
                break
            size = np.int64(buf.u16[(at >> 1) + 2]) * 8
            if size < EVENT_SIZE or at + size > end:
                break
            if crc32(buf.u8, buf.u32, at + 4, at + size, table, NONE) == buf.u32[at >> 2]:
                _read(buf, at, size, e)
            at += size
    return n


@njit(cache=True, nogil=True)
def _foreign(buf: Buffer, start: Any, end: Any, table: NDArray[np.uint32]) -> Any:
    """Whether a frame that is none of this release's is sound all the same: one of another release."""
    word = start >> 2
    if end - start < FRAME_SIZE or buf.u32[word] != MAGIC:
        return False
    head = crc32(buf.u8, buf.u32, start, start + 12, table, NONE)
    whole = crc32(buf.u8, buf.u32, start + FRAME_SIZE, end, table, head)
    return head == buf.u32[word + 3] or whole == buf.u32[word + 3]


@njit(cache=True, nogil=True)
def _read(buf: Buffer, at: Any, size: Any, e: Any) -> None:
    """Fills the row of an event whose CRC holds; kind UNKNOWN where its layout is of another release."""
    kind = buf.u8[at + 7]
    short = kind != SEGMENT and size < EVENT_SIZE + HEADER_SIZE
    if buf.u8[at + 6] != LAYOUT or kind < DECISION or kind > SEGMENT or short:
        e.kind = UNKNOWN
        return
    e.kind = kind
    e.reward = buf.f64[(at >> 3) + 1]
    e.key = buf.u64[(at >> 3) + 2]
    e.sequence = buf.u32[(at >> 2) + 6]
    e.slot = buf.u8[at + 28]
    p = at + EVENT_SIZE
    e.at = p
    if kind == SEGMENT:
        e.policy = e.sequence
        return
    flags, context = buf.u8[p + 3], buf.u8[p + 2]
    m, k = np.int64(buf.u8[p + 22]), np.int64(buf.u8[p + 23])
    need = (ARMS_SIZE if context == ARMS else HEADER_SIZE + 6 * m) + 6 * k
    nowhere = e.slot >= k and (kind == REWARD or e.slot > 0)
    if buf.u8[p] != TOKEN_LAYOUT or context > ARMS or EVENT_SIZE + need > size or nowhere:
        e.kind = UNKNOWN
        return
    e.context, e.aggregation, e.mode = context, flags & 3, flags >> 2 & 3
    e.funded, e.no_default = (flags & FUNDED) != 0, (flags & NO_DEFAULT) != 0
    e.policy = buf.u32[(p >> 2) + 1]
    e.decision = buf.u64[(p >> 3) + 1]
    e.time_ms = np.int64(buf.u32[(p >> 2) + 4]) + (np.int64(buf.u16[(p >> 1) + 10]) << 32)
    e.m, e.k = m, k
    e.window_ms = buf.u32[(p >> 2) + 6]
    e.default = buf.f32[(p >> 2) + 7]
    e.lineage = buf.u32[(p >> 2) + 8]
    items: Any = p + HEADER_SIZE + 4 * m
    e.bank, e.p, e.w, e.a, e.c = np.uint64(0), 0.0, 0.0, 0.0, 0.0
    if context == ARMS:
        b = p >> 3
        e.bank, e.p, e.w, e.a, e.c = buf.u64[b + 5], buf.f64[b + 6], buf.f64[b + 7], buf.f64[b + 8], buf.f64[b + 9]
        items = p + ARMS_SIZE
    e.item = buf.u32[(items >> 2) + e.slot] if k > 0 else np.uint32(0)


@njit(cache=True, nogil=True)
def decay(time_ms: int, origin_ms: int, half_life_ms: float, exponent: int) -> Any:
    """g = 2^((time - origin) / half_life - exponent), so that a change of exponent is an exact change of g."""
    x = (time_ms - origin_ms) / half_life_ms
    whole = np.floor(x)
    return exp2(x - whole) * exp2(whole - exponent)


@njit(cache=True, nogil=True)
def expand_diag(
    buf: Buffer,
    events: NDArray[np.void],
    rows: NDArray[np.int64],
    index_of: NDArray[np.int32],
    origin_ms: int,
    half_life_ms: float,
    exponent: int,
    item: NDArray[np.int64],
    start: NDArray[np.int64],
    count: NDArray[np.int64],
    play: NDArray[np.float64],
    amount: NDArray[np.float64],
    scale: NDArray[np.float64],
    clusters: NDArray[np.uint32],
    weights: NDArray[np.float64],
    totals: NDArray[np.float64],
    seen: NDArray[np.int64],
) -> tuple[int, int]:
    """The updates of `bandits.kernels.learn` for these rows of events, in order; and plays and rewards of the items.

    `index_of` maps item numbers to indices (negative: not here). totals (N, 2) gets plays and rewards; `seen` the
    items written there. half_life_ms 0: scale 1. Returns (updates, items seen).
    """
    n, n_seen = 0, 0
    n_context: Any = 0
    for row in rows:
        e = events[row]
        m, k = np.int64(e.m), np.int64(e.k)
        first_cluster = (e.at + HEADER_SIZE) >> 2
        first_item = first_cluster + m
        first_weight = (e.at + HEADER_SIZE + 4 * m + 4 * k) >> 1
        for i in range(m):
            clusters[n_context + i] = buf.u32[first_cluster + i]
            weights[n_context + i] = buf.u16[first_weight + i] / 65535.0
        g = 1.0
        if half_life_ms > 0.0:
            latest_ms = e.log_time_ms + np.int64(AHEAD * half_life_ms)
            g = decay(min(e.time_ms, latest_ms), origin_ms, half_life_ms, exponent)
        low: Any = 0 if e.kind == DECISION else np.int64(e.slot)
        high: Any = k if e.kind == DECISION else np.int64(e.slot) + 1
        for i in range(low, high):
            number = buf.u32[first_item + i]
            j = index_of[number] if number < index_of.shape[0] else np.int32(-1)
            if j < 0:
                continue
            seen[n_seen] = j
            n_seen += 1
            if e.kind == DECISION:
                totals[j, 0] += 1.0
                if e.no_default:
                    continue
                play[n], amount[n] = 1.0, e.default
            else:
                totals[j, 1] += e.new - e.old
                play[n], amount[n] = (1.0 if e.first else 0.0), e.new - e.old
            item[n], start[n], count[n], scale[n] = j, n_context, m, g
            n += 1
        n_context += m
    return n, n_seen


@njit(cache=True, nogil=True)
def expand_arms(
    buf: Buffer,
    events: NDArray[np.void],
    rows: NDArray[np.int64],
    bank_of_row: NDArray[np.int64],
    index_of: NDArray[np.int32],
    learns_slate: bool,
    arm: NDArray[np.int64],
    bank: NDArray[np.int64],
    source: NDArray[np.int64],
) -> int:
    """One operation of `bandits.arms.Ops` for each shown item that teaches: arm, bank, row of its event. Returns n."""
    n = 0
    for i in range(rows.shape[0]):
        e = events[rows[i]]
        if bank_of_row[i] < 0 or not (e.funded or learns_slate):
            continue
        low: Any = 0 if e.kind == DECISION else np.int64(e.slot)
        high: Any = np.int64(e.k) if e.kind == DECISION else np.int64(e.slot) + 1
        if not learns_slate:
            high = min(high, 1)
        for slot in range(low, high):
            number = buf.u32[((e.at + ARMS_SIZE) >> 2) + slot]
            j = index_of[number] if number < index_of.shape[0] else np.int32(-1)
            if j >= 0:
                arm[n], bank[n], source[n] = j, bank_of_row[i], rows[i]
                n += 1
    return n
