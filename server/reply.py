"""One Diag-LinUCB recommendation in one kernel: from the numbers of a request to the bytes of its answer.

    asked --context--> clusters, weights --choose--> slate --payload, MAC--> token --> {"decision_id":"...", ...}
                                                              `--> an event for each shard concerned --> outbox

What `server.view_diag` does in steps that can be read, with structs, is done here without an object; both call the same
`choose`, and tests/server/test_reply.py compares bytes, events and counters. Where anything is unusual nothing is
changed and the answer is 0: then those steps are taken, and they say what was wrong.

    asked   i64[HEAD]: m clusters, weights (m or 0), dim of the embedding (0 without), excluded, candidates,
            k, mode (-1: the policy's), random word, now_ms, decision number;
            then u64 clusters[m], f64 weights, or f32 embedding[dim] up to a word; then i64 excluded[], candidates[]
    desk    i64[PLACES]: where all arrays lie (the names below)
    parts   what the outbox gathers: shard i32 | events u32 | bytes u32 | zero u32 | the event, again and again
"""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from bandits.choosing import CANDIDATE, EXCLUDED, choose, limit
from bandits.nearest import LANES, nearest, quantise
from bandits.raw import copy, get, put
from bandits.reaching import pointer
from server.decimals import ROOM, write_number
from streaming.mac import mac
from streaming.token import HEADER_SIZE, MAC_SIZE
from streaming.writing import event_bytes, write_base64, write_decision, write_payload

HEAD = 10
CLUSTERS_MAX = 64  # of a user, or 0 is the answer
PARTS_HEAD = 16
(
    PLACE,  # of `choose`
    ASKED,
    CLUSTERS, WEIGHTS,  # u32, u16 [CLUSTERS_MAX], scratch
    CENTROIDS, DIM, PRODUCTS, SHORTLIST, SIMILARITY, ROOM_OF_SHORTLIST, PER_USER,  # of `nearest`
    TEMPERATURE,  # f64[1]
    NUMBERS, SHARDS, IDS, IDS_AT,  # of items: u32[N], u16[N], their ids as a JSON list, i64[N+1] where each begins
    MIDDLE, MIDDLE_BYTES,  # of the answer, between token and items
    HEADER,  # u8[36] of a payload, see streaming/token.py, without what differs from one decision to the next
    KEY,  # u64[9] of streaming/mac.py
    PAYLOAD,  # scratch for a payload, zeros up to a multiple of 128 bytes, and a MAC
    ANSWER, ANSWER_BYTES,
    N_SHARDS, SEQUENCES, CONCERNED,  # u32[P], the next decision's number in each shard; u8[P] zeros between calls
    PARTS, FILL,  # u8[fill[1]]; i64[2], fill[0] bytes of it are in use
    COUNTED,  # u64[3], decisions of this policy by mode
) = range(29)  # fmt: skip
PLACES = 29


def _word(text: bytes) -> Any:
    return np.uint64(int.from_bytes(text[:8], "little"))


_BEGIN = _word(b'{"decisi'), _word(b'on_id":"')
_ID, _SCORE = _word(b'{"id":'), _word(b',"score"')
_PROPENSITY = _word(b',"propen'), _word(b'sity":')
_ITEM_BYTES = 30 + 2 * ROOM  # of an item beside its id


@njit(cache=True, nogil=True)
def _context(desk: Any, asked: Any, clusters: Any, weights: Any) -> int:
    """The user's clusters and weights; how many, 0 where they cannot be used."""
    m, n_weights, dim = asked[0], asked[1], asked[2]
    if dim > 0:
        if dim != desk[DIM]:
            return 0
        room, n_clusters = desk[ROOM_OF_SHORTLIST], get(desk[PLACE] + 32, np.int64)
        return nearest(
            carray(pointer(desk[CENTROIDS], np.float32), (n_clusters, dim)),
            carray(pointer(desk[ASKED] + 8 * HEAD, np.float32), (dim,)),
            get(desk[TEMPERATURE], np.float64),
            carray(pointer(desk[PRODUCTS], np.float32), (n_clusters + LANES,)),
            carray(pointer(desk[SHORTLIST], np.int64), (room,)),
            carray(pointer(desk[SIMILARITY], np.float64), (room,)),
            clusters[: desk[PER_USER]],
            weights[: desk[PER_USER]],
        )
    n_clusters = get(desk[PLACE] + 32, np.int64)
    if not 0 < m <= CLUSTERS_MAX:
        return 0
    for i in range(m):
        c = asked[HEAD + i]
        if not 0 <= c < n_clusters:
            return 0
        clusters[i] = c
    for i in range(m):
        for j in range(i):
            if clusters[i] == clusters[j]:
                return 0
    given = carray(pointer(desk[ASKED] + 8 * (HEAD + m), np.float64), (n_weights,))
    return m if quantise(given, weights[:m]) else 0


@njit(cache=True, nogil=True)
def _choose(asked: Any, place: Any, clusters: Any, weights: Any) -> Any:
    """`choose` within what the request excludes and names: (number of items, mode)."""
    n_exclude, n_candidates = asked[3], asked[4]
    lists = HEAD + (asked[0] + asked[1] if asked[2] == 0 else (asked[2] + 1) >> 1)
    exclude, candidates = asked[lists : lists + n_exclude], asked[lists + n_exclude : lists + n_exclude + n_candidates]
    limit(place, exclude, EXCLUDED)
    limit(place, candidates, CANDIDATE)
    wanted = CANDIDATE if n_candidates > 0 else 0
    found, used = choose(place, clusters, weights, wanted, asked[5], asked[6], asked[7])
    limit(place, exclude, 0)
    limit(place, candidates, 0)
    return found, used


@njit(cache=True, nogil=True)
def _write_events(desk: Any, size: int, slate: Any) -> None:
    """The decision's event for every shard that has one of its items; there is room for them."""
    n_shards = desk[N_SHARDS]
    if n_shards == 1:
        _write_part(desk, size, 0)
        return
    concerned = carray(pointer(desk[CONCERNED], np.uint8), (n_shards,))
    for i in range(slate.shape[0]):
        concerned[get(desk[SHARDS] + 2 * np.int64(slate[i]), np.uint16)] = 1
    for shard in range(n_shards):
        if concerned[shard] != 0:
            concerned[shard] = 0
            _write_part(desk, size, shard)


@njit(cache=True, nogil=True)
def _write_part(desk: Any, size: int, shard: int) -> None:
    fill = carray(pointer(desk[FILL], np.int64), (2,))
    sequences = carray(pointer(desk[SEQUENCES], np.uint32), (desk[N_SHARDS],))
    at, n_bytes = desk[PARTS] + fill[0], event_bytes(size)
    put(at, np.int32(shard))
    put(at + 4, np.uint32(1))
    put(at + 8, np.uint32(n_bytes))
    put(at + 12, np.uint32(0))
    write_decision(at + PARTS_HEAD, desk[PAYLOAD], size, sequences[shard])
    sequences[shard] += np.uint32(1)
    fill[0] += PARTS_HEAD + n_bytes


@njit(cache=True, nogil=True)
def _write_answer(desk: Any, size: int, slate: Any, numbers: Any) -> int:
    """The JSON of the answer; its size."""
    at = desk[ANSWER]
    put(at, _BEGIN[0])
    put(at + 8, _BEGIN[1])
    at = write_base64(at + 16, desk[PAYLOAD], size + MAC_SIZE)
    copy(at, desk[MIDDLE], desk[MIDDLE_BYTES])
    at += desk[MIDDLE_BYTES]
    ids, ids_at = desk[IDS], desk[IDS_AT]
    for i in range(slate.shape[0]):
        if i:
            put(at, np.uint8(44))
            at += 1
        put(at, _ID)
        j = np.int64(slate[i])
        begin, end = get(ids_at + 8 * j, np.int64), get(ids_at + 8 * j + 8, np.int64) - 1
        copy(at + 6, ids + begin, end - begin)
        at += 6 + end - begin
        put(at, _SCORE)
        put(at + 8, np.uint8(58))
        at = write_number(at + 9, numbers[0, i])
        put(at, _PROPENSITY[0])
        put(at + 8, _PROPENSITY[1])
        at = write_number(at + 14, numbers[1, i])
        put(at, np.uint8(125))
        at += 1
    put(at, np.uint16(0x7D5D))  # ]}
    return at + 2 - desk[ANSWER]


@njit(cache=True, nogil=True)
def _has_room(desk: Any, m: int, slate: Any) -> bool:
    """For the answer and for its events."""
    k, n_bytes = slate.shape[0], desk[MIDDLE_BYTES] + 64
    size = HEADER_SIZE + 6 * (m + k)
    n_bytes += (size + MAC_SIZE) * 4 // 3 + k * _ITEM_BYTES
    for i in range(k):
        j = desk[IDS_AT] + 8 * np.int64(slate[i])
        n_bytes += get(j + 8, np.int64) - get(j, np.int64)
    fill = carray(pointer(desk[FILL], np.int64), (2,))
    parts = min(k, desk[N_SHARDS]) * (PARTS_HEAD + event_bytes(size))
    return n_bytes <= desk[ANSWER_BYTES] and fill[0] + parts <= fill[1]


@njit(cache=True, nogil=True)
def reply(desk: Any) -> int:
    """Decide, hand the decision on, count it, and write the answer; its size, or 0 where nothing was done."""
    asked = carray(pointer(desk[ASKED], np.int64), (1 << 20,))
    place = carray(pointer(desk[PLACE], np.int64), (17,))
    clusters = carray(pointer(desk[CLUSTERS], np.uint32), (CLUSTERS_MAX,))
    weights = carray(pointer(desk[WEIGHTS], np.uint16), (CLUSTERS_MAX,))
    m = _context(desk, asked, clusters, weights)
    if m == 0:
        return 0
    found, used = _choose(asked, place, clusters[:m], weights[:m])
    if found == 0:
        return 0
    n_items = place[5]
    slate = carray(pointer(place[13], np.uint32), (n_items,))[:found]
    numbers = carray(pointer(place[14], np.float64), (2, n_items))
    if not _has_room(desk, m, slate):
        return 0
    items = carray(pointer(desk[NUMBERS], np.uint32), (n_items,))
    payload, key_id = desk[PAYLOAD], get(desk[KEY] + 64, np.uint64)
    size = write_payload(
        payload, desk[HEADER], key_id, used, asked[9], asked[8], clusters[:m], weights[:m], items, slate, numbers[1]
    )
    _write_events(desk, size, slate)
    put(payload + size, mac(desk[KEY], payload, size))
    counted = carray(pointer(desk[COUNTED], np.uint64), (3,))
    counted[used] += np.uint64(1)
    return _write_answer(desk, size, slate, numbers)
