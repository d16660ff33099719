"""Where one worker's usual requests are answered: the arrays that server/reply.py works on, and their addresses.

What belongs to the worker is made once, with the `Desk`. What belongs to a policy as the newest catalog has it is a
`Place`, made at the view's first request. Only the numbers of a request are written anew for each.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from server import reply
from server.outbox import Outbox
from server.schemas import RecommendRequest
from server.shared import Row
from server.view import MODE
from server.view_diag import DiagView
from streaming import mac
from streaming.token import DIAG, Context, encode

ASKED_WORDS = 4096
ANSWER_BYTES = 64 << 10
_NO_ITEMS = np.empty(0, np.uint32), np.empty(0, np.float16)


_HEAD = f"<{reply.HEAD - 1}qQ"


@lru_cache(1024)
def _given(clusters: int, weights: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD}{clusters}Q{weights}d")


@lru_cache(1024)
def _embedding(dim: int) -> struct.Struct:
    return struct.Struct(f"{_HEAD}{dim}f")


@lru_cache(1024)
def _indices(n: int) -> struct.Struct:
    return struct.Struct(f"<{n}q")


class Place:
    """The addresses of one view's arrays beside the worker's, `desk`; see `server.reply`."""

    def __init__(self, view: DiagView, desk: Mapping[int, Any], row: Row) -> None:
        serving, arrays, entry = view.serving, view.arrays, view.entry
        blank = Context(
            DIAG, entry.number, 0, 0, view.window_ms, view.default, view.aggregation, 0, True, *_NO_ITEMS, view.lineage
        )
        self.header = np.frombuffer(encode(blank), np.uint8)
        self.middle = np.frombuffer(
            b'","policy":%b,"version":%d,"items":[' % (msgspec.json.encode(entry.name), entry.version), np.uint8
        )
        self.temperature = np.array([serving.parameters.temperature])
        self.kept = serving, arrays  # only their addresses are below
        shortlist, similarity = serving._shortlist
        at = {
            reply.PLACE: serving._place,
            reply.CENTROIDS: serving.centroids, reply.DIM: serving.centroids.shape[1],
            reply.PRODUCTS: serving._products, reply.SHORTLIST: shortlist, reply.SIMILARITY: similarity,
            reply.ROOM_OF_SHORTLIST: len(shortlist), reply.TEMPERATURE: self.temperature,
            reply.PER_USER: min(serving.parameters.clusters_per_user, serving.n_clusters),
            reply.NUMBERS: arrays["numbers"], reply.SHARDS: arrays["shards"],
            reply.IDS: arrays["ids"], reply.IDS_AT: arrays["ids_at"],
            reply.MIDDLE: self.middle, reply.MIDDLE_BYTES: len(self.middle), reply.HEADER: self.header,
            reply.N_SHARDS: view.shards, reply.COUNTED: row.counted(entry.number),
        }  # fmt: skip
        self.words = np.zeros(reply.PLACES, np.int64)
        for place, value in {**desk, **at}.items():
            self.words[place] = value.ctypes.data if isinstance(value, np.ndarray) else value


class Desk:
    """Answers usual requests for Diag-LinUCB policies. `sequences` u32[P] counts the decisions sent to each shard."""

    def __init__(self, outbox: Outbox, row: Row, sequences: NDArray[np.uint32]) -> None:
        self._row = row
        self._signing: tuple[int, bytes] | None = None
        self._key = np.zeros(9, np.uint64)
        self._asked, self._answer = bytearray(8 * ASKED_WORDS), bytearray(ANSWER_BYTES)
        self._answered = memoryview(self._answer)
        payload = np.zeros(-(-2048 // mac.BLOCK) * mac.BLOCK + 16, np.uint8)
        self.at: dict[int, Any] = {
            reply.ASKED: np.frombuffer(self._asked, np.int64),
            reply.CLUSTERS: np.empty(reply.CLUSTERS_MAX, np.uint32),
            reply.WEIGHTS: np.empty(reply.CLUSTERS_MAX, np.uint16),
            reply.KEY: self._key, reply.PAYLOAD: payload,
            reply.ANSWER: np.frombuffer(self._answer, np.uint8), reply.ANSWER_BYTES: ANSWER_BYTES,
            reply.SEQUENCES: sequences, reply.CONCERNED: np.zeros(len(sequences), np.uint8),
            reply.PARTS: outbox.parts, reply.FILL: outbox.fill,
        }  # fmt: skip

    def answer(
        self, view: DiagView, query: RecommendRequest, signing: tuple[int, bytes], word: int, now_ms: int, decision: int
    ) -> bytes | None:
        """The JSON of the decision, which is handed on and counted; None where nothing was done."""
        if query.k > view.available or not self._ask(view, query, word, now_ms, decision):
            return None
        if signing is not self._signing:
            mac.keyed(signing[1], signing[0], self._key)
            self._signing = signing
        if view.place is None:
            view.place = Place(view, self.at, self._row)
        size = reply.reply(view.place.words)
        return bytes(self._answered[:size]) if size else None

    def _ask(self, view: DiagView, query: RecommendRequest, word: int, now_ms: int, decision: int) -> bool:
        """Writes the request's numbers; False where it is no usual one."""
        user = query.user
        clusters, weights, embedding = user.clusters or (), user.weights or (), user.embedding or ()
        exclude = view.indices(query.exclude) if query.exclude else ()
        candidates: Sequence[int] = ()
        if query.candidates is not None:
            candidates = view.indices(query.candidates)
            if not candidates:
                return False
        m, n, dim = len(clusters), len(weights), len(embedding)
        if user.segment is not None or (user.weights is not None and (n != m or not m)):
            return False
        mode = -1 if query.mode is None else MODE[query.mode]
        head = (m, n, dim, len(exclude), len(candidates), query.k, mode, word, now_ms, decision)
        lists = 8 * (reply.HEAD + m + n + ((dim + 1) >> 1))
        if lists + 8 * (len(exclude) + len(candidates)) > len(self._asked):
            return False
        if dim:
            if m:
                return False
            try:
                _embedding(dim).pack_into(self._asked, 0, *head, *embedding)
            except OverflowError:  # too large for float32
                return False
        else:
            _given(m, n).pack_into(self._asked, 0, *head, *clusters, *weights)
        if exclude or candidates:
            _indices(len(exclude) + len(candidates)).pack_into(self._asked, lists, *exclude, *candidates)
        return True
