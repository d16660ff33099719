"""One Diag-LinUCB recommendation in one kernel: from the numbers of a request to the bytes of its answer.

    text --ask--> numbers --context--> clusters, weights --choose--> slate --payload, MAC--> token --> the answer
                                                                       `--> an event for each shard --> the outbox

What `server.view_diag` does in steps that can be read, with structs, is done here without an object; both call the same
`choose`, and tests/server/test_reply.py compares bytes, events and counters. Where anything is unusual nothing is
changed and the answer is 0: then those steps are taken, and they say what was wrong.

    desk    i64[PLACES]: where all arrays lie (the names below)
    parts   what the outbox gathers: shard i32 | events u32 | bytes u32 | zero u32 | the event, again and again
"""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from bandits.choosing import CANDIDATE, EXCLUDED, choose, limit
from bandits.choosing import PLACES as CHOOSE_PLACES
from bandits.nearest import LANES, nearest, quantise
from bandits.raw import copy, get, put
from bandits.reaching import pointer
from server import asking
from server.decimals import ROOM, write_number
from streaming.mac import mac
from streaming.token import HEADER_SIZE, MAC_SIZE
from streaming.writing import event_bytes, write_base64, write_decision, write_payload

PARTS_HEAD = 16
PLACES = 39
(
    PLACE, AVAILABLE,  # of `choose`; items that are not paused
    TEXT, ASKED, CLUSTERS, GIVEN, EMBEDDING, LISTED,  # of server/asking.py
    WEIGHTS, FOUND,  # u16[CLUSTERS_MAX], i64[LISTED_MAX], scratch
    CENTROIDS, DIM, PRODUCTS, SHORTLIST, SIMILARITY, ROOM_OF_SHORTLIST, PER_USER,  # of `nearest`
    TEMPERATURE,  # f64[1]
    NUMBERS, SHARDS, IDS, IDS_AT, IDS_HASH, IDS_ORDER,  # of items: u32[N], u16[N]; the rest see server/ids.py
    NAME, NAME_BYTES,  # of the policy
    MIDDLE, MIDDLE_BYTES,  # of the answer, between token and items
    HEADER,  # u8[36] of a payload, see streaming/token.py, without what differs from one decision to the next
    KEY,  # u64[9] of streaming/mac.py
    PAYLOAD,  # scratch for a payload, zeros up to a multiple of 128 bytes, and a MAC
    ANSWER, ANSWER_BYTES,
    N_SHARDS, SEQUENCES, CONCERNED,  # u32[P], the next decision's number in each shard; u8[P] zeros between calls
    PARTS, FILL,  # u8[fill[1]]; i64[2], fill[0] bytes of it are in use
    COUNTED,  # u64[3], decisions of this policy by mode
) = range(PLACES)  # fmt: skip


def _word(text: bytes) -> Any:
    return np.uint64(int.from_bytes(text[:8], "little"))


_BEGIN = _word(b'{"decisi'), _word(b'on_id":"')
_ID, _SCORE = _word(b'{"id":'), _word(b',"score"')
_PROPENSITY = _word(b',"propen'), _word(b'sity":')
_ITEM_BYTES = 30 + 2 * ROOM  # of an item beside its id


@njit(cache=True, nogil=True)
def _ask(desk: Any, n_bytes: int) -> int:
    """Read the body of n_bytes at TEXT. Where the policy's name is in it, and behind 32 bits its length; 0: unusual."""
    numbers = carray(pointer(desk[ASKED], np.int64), (asking.NUMBERS,))
    usual = asking.read_query(
        desk[TEXT],
        n_bytes,
        numbers,
        carray(pointer(desk[CLUSTERS], np.uint32), (asking.CLUSTERS_MAX,)),
        carray(pointer(desk[GIVEN], np.float64), (asking.CLUSTERS_MAX,)),
        carray(pointer(desk[EMBEDDING], np.float32), (asking.DIM_MAX,)),
        carray(pointer(desk[LISTED], np.int64), (2, asking.LISTED_MAX)),
    )
    return numbers[asking.NAME] << 32 | numbers[asking.NAME_BYTES] if usual else 0


@njit(cache=True, nogil=True)
def _context(desk: Any, numbers: Any, clusters: Any, weights: Any) -> int:
    """The user's clusters and weights; how many, 0 where they cannot be used."""
    m, n_weights, dim = numbers[asking.M], numbers[asking.N_WEIGHTS], numbers[asking.DIMS]
    n_clusters = get(desk[PLACE] + 32, np.int64)
    if dim > 0:
        if dim != desk[DIM] or m > 0 or n_weights > 0:
            return 0
        room = desk[ROOM_OF_SHORTLIST]
        found = nearest(
            carray(pointer(desk[CENTROIDS], np.float32), (n_clusters, dim)),
            carray(pointer(desk[EMBEDDING], np.float32), (dim,)),
            get(desk[TEMPERATURE], np.float64),
            carray(pointer(desk[PRODUCTS], np.float32), (n_clusters + LANES,)),
            carray(pointer(desk[SHORTLIST], np.int64), (room,)),
            carray(pointer(desk[SIMILARITY], np.float64), (room,)),
            clusters[: desk[PER_USER]],
            weights[: desk[PER_USER]],
        )
        return found if found == desk[PER_USER] else 0
    if m == 0 or (n_weights != 0 and n_weights != m):
        return 0
    for i in range(m):
        if clusters[i] >= n_clusters:
            return 0
        for j in range(i):
            if clusters[i] == clusters[j]:
                return 0
    given = carray(pointer(desk[GIVEN], np.float64), (n_weights,))
    return m if quantise(given, weights[:m]) else 0


@njit(cache=True, nogil=True)
def _find(desk: Any, first: int, last: int, found: Any) -> Any:
    """The items of the ids listed from `first` to `last`."""
    n_items = get(desk[PLACE] + 40, np.int64)
    listed = carray(pointer(desk[LISTED], np.int64), (2, asking.LISTED_MAX))
    hashes = carray(pointer(desk[IDS_HASH], np.uint32), (n_items,))
    order = carray(pointer(desk[IDS_ORDER], np.uint32), (n_items,))
    n = asking.find_items(listed, first, last, desk[IDS], desk[IDS_AT], hashes, order, found)
    return found[:n]


@njit(cache=True, nogil=True)
def _choose(desk: Any, numbers: Any, place: Any, clusters: Any, weights: Any, word: int) -> Any:
    """`choose` within what the request excludes and names: (number of items, mode)."""
    n_exclude, n_candidates = numbers[asking.N_EXCLUDED], numbers[asking.N_CANDIDATES]
    k, mode = numbers[asking.SLATE], numbers[asking.MODE]
    if n_exclude == 0 and n_candidates == 0:
        return choose(place, clusters, weights, 0, k, mode, word)
    found = carray(pointer(desk[FOUND], np.int64), (asking.LISTED_MAX,))
    exclude = _find(desk, 0, n_exclude, found)
    candidates = _find(desk, n_exclude, n_exclude + n_candidates, found[n_exclude:])
    if n_candidates > 0 and candidates.shape[0] == 0:
        return 0, 0
    limit(place, exclude, EXCLUDED)
    limit(place, candidates, CANDIDATE)
    wanted = CANDIDATE if n_candidates > 0 else 0
    n, used = choose(place, clusters, weights, wanted, k, mode, word)
    limit(place, exclude, 0)
    limit(place, candidates, 0)
    return n, used


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
def reply(desk: Any, n_bytes: int, word: int, now_ms: int, stream: int, sequence: int) -> int:
    """Read the body of n_bytes at TEXT, decide, hand the decision on, count it, and write the answer; its size.

    Else nothing was done: 0; or, where another policy is asked, what `_ask` says, below 0.
    """
    named = _ask(desk, n_bytes)
    if named == 0:
        return 0
    if named & 0xFFFFFFFF != desk[NAME_BYTES] or not asking.same(
        desk[TEXT] + (named >> 32), desk[NAME], desk[NAME_BYTES]
    ):
        return -named
    numbers = carray(pointer(desk[ASKED], np.int64), (asking.NUMBERS,))
    place = carray(pointer(desk[PLACE], np.int64), (CHOOSE_PLACES,))
    clusters = carray(pointer(desk[CLUSTERS], np.uint32), (asking.CLUSTERS_MAX,))
    weights = carray(pointer(desk[WEIGHTS], np.uint16), (asking.CLUSTERS_MAX,))
    if numbers[asking.SLATE] > desk[AVAILABLE]:
        return 0
    m = _context(desk, numbers, clusters, weights)
    if m == 0:
        return 0
    found, used = _choose(desk, numbers, place, clusters[:m], weights[:m], word)
    if found == 0:
        return 0
    n_items = place[5]
    slate = carray(pointer(place[13], np.uint32), (n_items,))[:found]
    worth = carray(pointer(place[14], np.float64), (2, n_items))
    if not _has_room(desk, m, slate):
        return 0
    items = carray(pointer(desk[NUMBERS], np.uint32), (n_items,))
    payload, key_id = desk[PAYLOAD], get(desk[KEY] + 64, np.uint64)
    decision = np.uint64(stream) << np.uint64(32) | np.uint64(sequence)
    size = write_payload(
        payload, desk[HEADER], key_id, used, decision, now_ms, clusters[:m], weights[:m], items, slate, worth[1]
    )
    _write_events(desk, size, slate)
    put(payload + size, mac(desk[KEY], payload, size))
    counted = carray(pointer(desk[COUNTED], np.uint64), (3,))
    counted[used] += np.uint64(1)
    return _write_answer(desk, size, slate, worth)
