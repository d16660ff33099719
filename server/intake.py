"""Many rewards at once: from the rows of a call to the batch for the agent, by two kernels.

    decision ids --base64, MAC--> payloads --items' numbers and shards, by the view--> events by shard, back to back

Usual rows are accepted here. What remains is judged row by row (`server.feedback.judge`): it refuses with a sentence,
and knows what is rare, an item that was removed since. Both make the same of a row, tests/server/test_intake.py says.
In the batch the usual rows come first; those for the same item of a decision, whose order counts, are alike in that.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.raw import get, put
from server.feedback import NOT_YET, Counters, Known, judge
from server.outbox import HEAD, pack
from server.schemas import ACCEPTED, FeedbackRow, Verdict
from server.settings import SHARDS_MAX
from streaming.control import REWARD_MAX
from streaming.events import event_hash
from streaming.mac import BLOCK, keyed
from streaming.reading import read_token, size_of, slot_of, write_reward
from streaming.token import ARMS, MAC_SIZE, SUM
from streaming.writing import event_bytes

FEW = 3  # rows that go faster one by one
_HEAD = HEAD.size


class Taken(NamedTuple):
    """A verdict for each row, the accepted rows' events as a batch (`server.outbox`), and which rows are NOT_YET."""

    verdicts: list[Verdict]
    batch: bytes
    late: list[int]


@njit(cache=True, nogil=True)
def read(text: int, lengths: Any, keys: int, payloads: int, at: Any, policy: Any, bank: Any) -> None:
    """The payloads of decision ids that stand back to back at address `text`, each at a multiple of BLOCK from address
    `payloads` on.

    at i64[n] is the address of each, 0 where it is no good; policy u32[n] and bank u64[n] are what it says, 0 and 0
    there; lengths i64[n].
    """
    to = payloads
    for i in range(lengths.shape[0]):
        size = read_token(text, lengths[i], keys, to)
        text += lengths[i]
        at[i], policy[i], bank[i] = 0, np.uint32(0), np.uint64(0)
        if size:
            at[i], policy[i] = to, get(to + 4, np.uint32)
            if get(to + 2, np.uint8) == ARMS:
                bank[i] = get(to + 40, np.uint64)
            to += -(-(size + MAC_SIZE) // BLOCK) * BLOCK


@njit(cache=True, nogil=True)
def write(
    at: Any, number: Any, shard: Any, reward: Any, key: Any, slot: Any, sizes: Any, places: Any, batch: int
) -> int:
    """The batch of these rows, shards ascending, at address `batch`, a multiple of 8; its bytes.

    at, number, shard i64[n] (at 0 or number -1: nothing), reward f64[n], key u64[n], the hash of the event id.
    slot i64[n] becomes -1 where a row is not in the batch. sizes, places i64[P] are scratch.
    """
    sizes[:] = 0
    for i in range(at.shape[0]):
        slot[i] = -1
        if not (at[i] and number[i] >= 0 and abs(reward[i]) <= REWARD_MAX):
            continue
        if key[i] or get(at[i] + 3, np.uint8) & 3 != SUM:
            slot[i] = slot_of(at[i], number[i])
        if slot[i] >= 0:
            sizes[shard[i]] += event_bytes(size_of(at[i]))
    to = batch
    for s in range(sizes.shape[0]):
        if sizes[s]:
            put(to, np.int32(s))
            put(to + 4, np.uint32(0))
            put(to + 8, np.uint32(sizes[s]))
            put(to + 12, np.uint32(0))
            places[s] = to
            to += _HEAD + sizes[s]
            sizes[s] = _HEAD  # from now on, where the next event goes
    for i in range(at.shape[0]):
        if slot[i] >= 0:
            place, size = places[shard[i]], size_of(at[i])
            put(place + 4, np.uint32(get(place + 4, np.uint32) + np.uint32(1)))
            write_reward(place + sizes[shard[i]], at[i], size, slot[i], reward[i], key[i])
            sizes[shard[i]] += event_bytes(size)
    return to - batch


class Intake:
    """Takes the rewards of one worker: what `judge` does, over memory that is kept from call to call."""

    def __init__(self, views: Known, counters: Counters) -> None:
        self._views, self._counters = views, counters
        self._known: object = None
        self._keys = np.zeros((256, 9), np.uint64)
        self._payloads, self._batch = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._sizes, self._places = np.zeros((2, SHARDS_MAX), np.int64)

    def take(self, rows: Sequence[FeedbackRow]) -> Taken:
        """Verdicts and events of the rows."""
        if len(rows) <= FEW:
            verdicts, by_shard = judge(rows, self._views, self._counters)
            return Taken(verdicts, pack(by_shard), [i for i, each in enumerate(verdicts) if each.detail is NOT_YET])
        batch, slot = self._take(rows)
        verdicts = [ACCEPTED] * len(rows)
        late: list[int] = []
        if slot.min() < 0:
            unusual = np.flatnonzero(slot < 0).tolist()
            again, by_shard = judge([rows[i] for i in unusual], self._views, self._counters)
            for i, verdict in zip(unusual, again, strict=True):
                verdicts[i] = verdict
                if verdict.detail is NOT_YET:
                    late.append(i)
            batch += pack(by_shard)
        return Taken(verdicts, batch, late)

    def _take(self, rows: Sequence[FeedbackRow]) -> tuple[bytes, NDArray[np.int64]]:
        """The batch of the usual rows, and slots i64[n], -1 for the others."""
        self._views.refresh()
        if self._views.keys is not self._known:
            self._learn_keys()
        n = len(rows)
        ids = [row.decision_id for row in rows]
        lengths = np.array(list(map(len, ids)), np.int64)
        text = "".join(ids).encode("ascii", "replace")  # whatever is no ASCII is not in the alphabet
        source = np.frombuffer(text or b"\0", np.uint8)
        self._payloads = _room(self._payloads, len(text) + (BLOCK + MAC_SIZE) * n)
        at, number, shard, slot = np.empty((4, n), np.int64)
        policy, bank = np.empty(n, np.uint32), np.empty(n, np.uint64)
        read(source.ctypes.data, lengths, self._keys.ctypes.data, self._payloads.ctypes.data, at, policy, bank)
        self._find(rows, policy, bank, number, shard)
        reward = np.array([row.reward for row in rows])
        event_ids = [row.event_id for row in rows]
        key = np.array([0 if each is None else event_hash(each) for each in event_ids], np.uint64)
        self._batch = _room(self._batch, self._payloads.nbytes + 64 * n + _HEAD * SHARDS_MAX)
        size = write(at, number, shard, reward, key, slot, self._sizes, self._places, self._batch.ctypes.data)
        return self._batch.view(np.uint8)[:size].tobytes(), slot

    def _learn_keys(self) -> None:
        self._known = self._views.keys
        self._keys[:] = 0
        for number, secret in self._views.keys.items():
            keyed(secret, 1, self._keys[number])

    def _find(
        self,
        rows: Sequence[FeedbackRow],
        policy: NDArray[np.uint32],
        bank: NDArray[np.uint64],
        number: NDArray[np.int64],
        shard: NDArray[np.int64],
    ) -> None:
        """Fills number and shard of the rows' items; number -1 where the view says that there is none."""
        number[:] = -1
        policies = set(policy.tolist())
        for each in policies:
            view = self._views.by_number.get(each)
            if view is None:
                continue
            if len(policies) == 1:
                number[:], shard[:] = view.places([row.item for row in rows], bank)
            else:
                mine = np.flatnonzero(policy == each)
                items = [rows[i].item for i in mine.tolist()]
                number[mine], shard[mine] = view.places(items, bank[mine])


def _room(array: NDArray[np.uint64], n_bytes: int) -> NDArray[np.uint64]:
    return array if array.nbytes >= n_bytes else np.empty(n_bytes // 8 + 1, np.uint64)
