"""Where one worker's usual requests are answered: the arrays that server/reply.py works on, and their addresses.

What belongs to the worker is made once, with the `Desk`. What belongs to a policy as the newest catalog has it is a
`Place`, made at its first request.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from server import asking, reply
from server.outbox import Outbox
from server.shared import Row
from server.view_diag import DiagView
from server.views import Views
from streaming import mac
from streaming.token import DIAG, Context, encode

TEXT_BYTES = 64 << 10
ANSWER_BYTES = 64 << 10
_NO_ITEMS = np.empty(0, np.uint32), np.empty(0, np.float16)


class Place:
    """The addresses of one view's arrays beside the worker's, `desk`; see `server.reply`."""

    def __init__(self, view: DiagView, desk: Mapping[int, Any], row: Row) -> None:
        serving, arrays, entry = view.serving, view.arrays, view.entry
        blank = Context(
            DIAG, entry.number, 0, 0, view.window_ms, view.default, view.aggregation, 0, True, *_NO_ITEMS, view.lineage
        )
        self.name = np.frombuffer(entry.name.encode(), np.uint8)
        self.header = np.frombuffer(encode(blank), np.uint8)
        self.middle = np.frombuffer(
            b'","policy":%b,"version":%d,"items":[' % (msgspec.json.encode(entry.name), entry.version), np.uint8
        )
        self.temperature = np.array([serving.parameters.temperature])
        self.kept = serving, arrays  # only their addresses are below
        shortlist, similarity = serving._shortlist
        at = {
            reply.PLACE: serving._place, reply.AVAILABLE: view.available,
            reply.CENTROIDS: serving.centroids, reply.DIM: serving.centroids.shape[1],
            reply.PRODUCTS: serving._products, reply.SHORTLIST: shortlist, reply.SIMILARITY: similarity,
            reply.ROOM_OF_SHORTLIST: len(shortlist), reply.TEMPERATURE: self.temperature,
            reply.PER_USER: min(serving.parameters.clusters_per_user, serving.n_clusters),
            reply.NUMBERS: arrays["numbers"], reply.SHARDS: arrays["shards"],
            reply.IDS: arrays["ids"], reply.IDS_AT: arrays["ids_at"],
            reply.IDS_HASH: arrays["ids_hash"], reply.IDS_ORDER: arrays["ids_order"],
            reply.NAME: self.name, reply.NAME_BYTES: len(self.name),
            reply.MIDDLE: self.middle, reply.MIDDLE_BYTES: len(self.middle), reply.HEADER: self.header,
            reply.N_SHARDS: view.shards, reply.COUNTED: row.counted(entry.number),
        }  # fmt: skip
        self.words = words_of({**desk, **at})


class Desk:
    """Answers usual requests for Diag-LinUCB policies. `sequences` u32[P] counts the decisions sent to each shard."""

    def __init__(self, views: Views, outbox: Outbox, row: Row, sequences: NDArray[np.uint32]) -> None:
        self._views, self._row = views, row
        self._places: dict[bytes, Place] = {}
        self._generation = 0
        self._signing: tuple[int, bytes] | None = None
        self._key = np.zeros(9, np.uint64)
        text, answer = bytearray(TEXT_BYTES + 8), bytearray(ANSWER_BYTES)
        self._text, self._answer = memoryview(text), memoryview(answer)
        payload = np.zeros(-(-2048 // mac.BLOCK) * mac.BLOCK + 16, np.uint8)
        self._at: dict[int, Any] = {
            reply.TEXT: np.frombuffer(text, np.uint8), reply.ASKED: np.empty(asking.NUMBERS, np.int64),
            reply.CLUSTERS: np.empty(asking.CLUSTERS_MAX, np.uint32),
            reply.WEIGHTS: np.empty(asking.CLUSTERS_MAX, np.uint16), reply.GIVEN: np.empty(asking.CLUSTERS_MAX),
            reply.EMBEDDING: np.empty(asking.DIM_MAX, np.float32),
            reply.LISTED: np.empty((2, asking.LISTED_MAX), np.int64),
            reply.FOUND: np.empty(asking.LISTED_MAX, np.int64),
            reply.KEY: self._key, reply.PAYLOAD: payload,
            reply.ANSWER: np.frombuffer(answer, np.uint8), reply.ANSWER_BYTES: ANSWER_BYTES,
            reply.SEQUENCES: sequences, reply.CONCERNED: np.zeros(len(sequences), np.uint8),
            reply.PARTS: outbox.parts, reply.FILL: outbox.fill,
        }  # fmt: skip
        self._words = self._nowhere = words_of({**self._at, reply.NAME_BYTES: -1})  # of the last request's policy: none

    def answer(self, body: bytes, word: int, now_ms: int, stream: int, sequence: int) -> bytes | None:
        """The JSON of the decision, which is handed on and counted; None where nothing was done."""
        n_bytes = len(body)
        if n_bytes > TEXT_BYTES:
            return None
        if self._views.generation != self._generation or self._views.signing is not self._signing:
            self._begin_anew()
        self._text[:n_bytes] = body
        size = reply.reply(self._words, n_bytes, word, now_ms, stream, sequence)
        if size < 0:  # the policy is not that of the last request
            at = -size >> 32
            if not self._turn_to(body[at : at + (-size & 0xFFFFFFFF)]):
                return None
            size = reply.reply(self._words, n_bytes, word, now_ms, stream, sequence)
        return bytes(self._answer[:size]) if size else None

    def _begin_anew(self) -> None:
        """Another catalog, or another key that signs."""
        self._places, self._generation, self._signing = {}, self._views.generation, self._views.signing
        self._words = self._nowhere
        assert self._signing is not None, "the first catalog has a key"
        mac.keyed(self._signing[1], self._signing[0], self._key)

    def _turn_to(self, name: bytes) -> bool:
        """To the place of the policy of this name, if there is one that answers come from here for."""
        place = self._places.get(name)
        if place is None:
            view = self._views.by_name.get(name.decode(errors="surrogateescape"))
            if not isinstance(view, DiagView):
                return False
            place = self._places[name] = Place(view, self._at, self._row)
        self._words = place.words
        return True


def words_of(at: Mapping[int, Any]) -> NDArray[np.int64]:
    """A desk of `server.reply`: numbers as they are, of arrays their addresses."""
    words = np.zeros(reply.PLACES, np.int64)
    for place, value in at.items():
        words[place] = value.ctypes.data if isinstance(value, np.ndarray) else value
    return words
