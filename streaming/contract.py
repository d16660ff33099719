"""The reward contract: every event of the log gets exactly one outcome.

A reward is judged in this order: *gone* (policy, item or cluster numbering is no longer there), *late* (log time after
decision time + window), *out_of_range* (beyond the policy's min and max), then against the answers so far; what is new
by then but not for the bank to learn from is *unfunded*. The answered-set remembers, until the decision's window has
passed,

    (decision, slot)            -> the aggregate so far
    (decision, hash of event id) where the caller gave one

Without an event id a second reward is a *duplicate* under first, and where it leaves the aggregate as it is; with one,
a *duplicate* is an event id seen before. A later reward that counts is *amended* and teaches the difference.

Decisions are taken once: each stream numbers what it sends to a shard, so a repeat is seen (`decisions_duplicate`) and
so is a gap (`decisions_lost`).

What people did is counted beside, whether it teaches or not, for each policy and mode (`shown`): items shown, those of
them that were answered, and the sum of the answers' aggregates; and how long first answers took (`delays`).
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streaming.events import DECISION, REWARD
from streaming.scan import POISON, UNKNOWN
from streaming.state import State, distinct
from streaming.token import ARMS, FIRST, MAX, SUM

OUTCOMES = ("applied", "amended", "duplicate", "late", "gone", "unfunded", "out_of_range", "poison")
DECISIONS = (
    "decisions_explore",
    "decisions_exploit",
    "decisions_thompson",
    "decisions_duplicate",
    "decisions_lost",
    "decisions_gone",
)
COLUMNS = OUTCOMES + DECISIONS
SHOWN = ("items_shown", "items_answered", "reward_sum")
"""Columns of the table shown/{policy}, which has a row for each mode."""
DELAY_S = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 43_200, 86_400, 259_200, 604_800)
"""Upper bounds of the buckets of delays/{policy}; one beyond and the sum in ms follow."""
APPLIED, AMENDED, DUPLICATE, LATE, GONE, UNFUNDED, OUT_OF_RANGE, POISONED = range(len(OUTCOMES))
TAKEN, TAKEN_TWICE, LOST, NOWHERE = len(OUTCOMES), len(OUTCOMES) + 3, len(OUTCOMES) + 4, len(OUTCOMES) + 5
_DELAY_MS = np.array(DELAY_S, np.int64) * 1000
DONE = -1  # what `resolve` returns when it got through all rows

MINUTE_MS = 60_000
STREAM_IDLE_MS = 86_400_000  # a stream that was silent for a day is forgotten; its writer has taken another by then
_EMPTY = -1
_EVENT_KEY = np.uint64(1 << 63)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class Policies(NamedTuple):
    """What the contract must know of the policies, one row each, sorted by number.

    `index_of[item_start[p] + number]` is the item's index, negative where it is not in this shard (-2) or nowhere.
    """

    number: NDArray[np.uint32]
    context: NDArray[np.uint8]
    lineage: NDArray[np.uint32]
    learns_slate: NDArray[np.uint8]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    item_start: NDArray[np.int64]
    item_count: NDArray[np.int64]
    index_of: NDArray[np.int32]


class Answers(NamedTuple):
    """The answered-set as arrays: an arena of entries, and an open-addressing index of positions in it.

    `sizes` holds the number of entries used. The index is at most half full.
    """

    places: NDArray[np.int32]
    decision: NDArray[np.uint64]
    key: NDArray[np.uint64]
    value: NDArray[np.float64]
    minute: NDArray[np.int64]
    row: NDArray[np.int64]
    changed: NDArray[np.uint8]
    sizes: NDArray[np.int64]


class Told(NamedTuple):
    """What people did, by policy: `shown` f64[P, modes, SHOWN], `delays` i64[P, len(DELAY_S) + 2]."""

    shown: NDArray[np.float64]
    delays: NDArray[np.int64]


class Streams(NamedTuple):
    """The streams of decisions this shard has heard: last sequence and log time; `sizes` holds how many."""

    stream: NDArray[np.int64]
    last: NDArray[np.int64]
    heard_ms: NDArray[np.int64]
    sizes: NDArray[np.int64]


@njit(cache=True, nogil=True)
def _place(answers: Answers, decision: np.uint64, key: np.uint64) -> Any:
    """The place of (decision, key) in the index: of its entry, or the empty one where it would go."""
    mask = np.uint64(answers.places.shape[0] - 1)
    h = (decision ^ key * _SPREAD) * _SPREAD
    h ^= h >> np.uint64(29)
    at = h & mask
    while True:
        entry = answers.places[at]
        if entry == _EMPTY or (answers.decision[entry] == decision and answers.key[entry] == key):
            return np.int64(at)
        at = (at + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def _insert(answers: Answers, place: int, decision: np.uint64, key: np.uint64, value: float, minute: int) -> None:
    entry = answers.sizes[0]
    answers.sizes[0] += 1
    answers.places[place] = entry
    answers.decision[entry], answers.key[entry], answers.value[entry] = decision, key, value
    answers.minute[entry], answers.row[entry], answers.changed[entry] = minute, -1, 1


@njit(cache=True, nogil=True)
def _judge(e: Any, answers: Answers) -> int:
    """Outcome of a reward that is in time and in range, with what it teaches in e.old, e.new and e.first."""
    minute = (e.time_ms + e.window_ms) // MINUTE_MS + 1
    slot = np.uint64(e.slot)
    if e.key != 0 and e.aggregation != FIRST:
        event = (e.key ^ slot * _SPREAD) | _EVENT_KEY
        place = _place(answers, e.decision, event)
        if answers.places[place] != _EMPTY:
            return DUPLICATE
        _insert(answers, place, e.decision, event, 0.0, minute)
    place = _place(answers, e.decision, slot)
    entry = answers.places[place]
    if entry == _EMPTY:
        _insert(answers, place, e.decision, slot, e.reward, minute)
        e.first = e.no_default
        e.old = 0.0 if e.no_default else e.default
        e.new = e.reward
        return APPLIED
    old = answers.value[entry]
    new = e.reward
    if e.aggregation == MAX:
        new = max(old, e.reward)
    elif e.aggregation == SUM:
        new = old + e.reward
    if e.aggregation == FIRST or (e.key == 0 and (new == old or e.aggregation == SUM)):
        return DUPLICATE
    answers.value[entry], answers.changed[entry] = new, 1
    e.first, e.old, e.new = 0, old, new
    return AMENDED


@njit(cache=True, nogil=True)
def _take(e: Any, streams: Streams, counts: NDArray[np.int64]) -> bool:
    """Whether a decision is new to this shard; counts those that its stream sent before and are missing."""
    stream = np.int64(e.decision >> np.uint64(32))
    n = streams.sizes[0]
    at = 0
    while at < n and streams.stream[at] != stream:
        at += 1
    if at == n:
        streams.sizes[0] += 1
        streams.stream[at] = stream
        streams.last[at] = -1
    elif e.log_time_ms - streams.heard_ms[at] > STREAM_IDLE_MS:
        streams.last[at] = -1
    streams.heard_ms[at] = e.log_time_ms
    if e.sequence <= streams.last[at]:
        return False
    counts[0, LOST] += np.int64(e.sequence) - streams.last[at] - 1
    streams.last[at] = e.sequence
    return True


@njit(cache=True, nogil=True)
def _tell_delay(told: Told, p: int, delay_ms: int) -> None:
    delay_ms = max(delay_ms, 0)  # a server's clock may be ahead of the log's
    told.delays[p, np.searchsorted(_DELAY_MS, delay_ms)] += 1
    told.delays[p, -1] += delay_ms


@njit(cache=True, nogil=True)
def resolve(
    events: NDArray[np.void],
    begin: int,
    end: int,
    policies: Policies,
    answers: Answers,
    streams: Streams,
    counts: NDArray[np.int64],
    told: Told,
) -> int:
    """Gives rows begin..end their outcome, in order; counts (policies + 1, COLUMNS) has what exists no longer in row 0.

    A row that teaches keeps pidx >= 0, any other has -1. Returns DONE, or the row at which a table was too full (grow
    it and go on from there), or -2 - row for an event of another release, which must stop the shard.
    """
    last = -1
    for i in range(begin, end):
        if answers.sizes[0] + 2 > answers.decision.shape[0] or streams.sizes[0] + 1 > streams.stream.shape[0]:
            return i
        e = events[i]
        if e.kind == POISON:
            counts[0, POISONED] += 1
            continue
        if e.kind == UNKNOWN:
            return -2 - i
        if last < 0 or policies.number[last] != e.policy:
            last = np.searchsorted(policies.number, e.policy)
            if last == policies.number.shape[0] or policies.number[last] != e.policy:
                last = -1
        if e.kind == DECISION:
            if not _take(e, streams, counts):
                counts[last + 1, TAKEN_TWICE] += 1
            elif last < 0 or policies.context[last] != e.context or policies.lineage[last] != e.lineage:
                counts[last + 1, NOWHERE] += 1
            else:
                e.pidx = last
                if _index(policies, last, e.item) != -2:
                    counts[last + 1, TAKEN + min(e.mode, 2)] += 1
                    told.shown[last, min(e.mode, 2), 0] += e.k  # the whole slate, where its first item belongs
            continue
        if e.kind != REWARD:
            if last >= 0 and policies.context[last] == ARMS:
                e.pidx = last
            continue
        outcome = APPLIED
        if (
            last < 0
            or policies.context[last] != e.context
            or policies.lineage[last] != e.lineage
            or _index(policies, last, e.item) < 0
        ):
            outcome = GONE
        elif e.log_time_ms > e.time_ms + e.window_ms:
            outcome = LATE
            _tell_delay(told, last, e.log_time_ms - e.time_ms)
        elif not (policies.low[last] <= e.reward <= policies.high[last]):
            outcome = OUT_OF_RANGE
        else:
            outcome = _judge(e, answers)
            if outcome != DUPLICATE:
                mode = min(e.mode, 2)
                if outcome == APPLIED:
                    told.shown[last, mode, 1] += 1.0
                    told.shown[last, mode, 2] += e.reward
                    _tell_delay(told, last, e.log_time_ms - e.time_ms)
                else:
                    told.shown[last, mode, 2] += e.new - e.old
                if e.context == ARMS and not policies.learns_slate[last] and (e.slot != 0 or not e.funded):
                    outcome = UNFUNDED
                else:
                    e.pidx = last
        e.outcome = outcome
        counts[last + 1, outcome] += 1
    return DONE


@njit(cache=True, nogil=True)
def _index(policies: Policies, p: int, number: int) -> Any:
    if number >= policies.item_count[p]:
        return -1
    return policies.index_of[policies.item_start[p] + number]


@njit(cache=True, nogil=True)
def _fill(answers: Answers) -> None:
    for entry in range(answers.sizes[0]):
        answers.places[_place(answers, answers.decision[entry], answers.key[entry])] = entry


class AnsweredSet:
    """The answered-set of a shard, kept in the state's tables answered/{minute} and found through an index.

    The tables are the truth; the arena and its index are made from them when a shard is loaded.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        minutes = {int(name.partition("/")[2]): name for name in state.tables if name.startswith("answered/")}
        tables = {minute: state[name] for minute, name in minutes.items()}
        self.arrays = _answers(max(1024, 2 * sum(len(rows) for rows in tables.values())))
        at = 0
        for minute, rows in sorted(tables.items()):
            end = at + len(rows)
            self.arrays.decision[at:end] = rows[:, 0]
            self.arrays.key[at:end] = rows[:, 1]
            self.arrays.value[at:end] = np.ascontiguousarray(rows[:, 2]).view(np.float64)
            self.arrays.minute[at:end] = minute
            self.arrays.row[at:end] = np.arange(len(rows))
            at = end
        self.arrays.sizes[0] = at
        _fill(self.arrays)
        self._minutes = set(minutes)

    def __len__(self) -> int:
        return int(self.arrays.sizes[0])

    def grow(self) -> None:
        """Room for twice as many answers; those of windows that have passed are left behind first."""
        self._rebuild(max(2 * len(self), 1024))

    def _rebuild(self, room: int) -> None:
        old, n = self.arrays, len(self)
        keep = np.flatnonzero(np.isin(old.minute[:n], list(self._minutes)) | (old.row[:n] < 0))
        self.arrays = _answers(max(room, 2 * len(keep)))
        for name in ("decision", "key", "value", "minute", "row", "changed"):
            getattr(self.arrays, name)[: len(keep)] = getattr(old, name)[keep]
        self.arrays.sizes[0] = len(keep)
        _fill(self.arrays)

    def save(self) -> None:
        """Writes the entries that are new or changed into the state's tables."""
        a, n = self.arrays, len(self)
        changed = np.flatnonzero(a.changed[:n])
        a.changed[:n] = 0
        for minute in distinct(a.minute[changed]):
            mine = changed[a.minute[changed] == minute]
            name = f"answered/{minute}"
            size = len(self._state[name]) if name in self._state else 0
            new = mine[a.row[mine] < 0]
            a.row[new] = np.arange(size, size + len(new))
            rows = np.column_stack([a.decision[mine], a.key[mine], a.value[mine].view(np.uint64)])
            if name in self._state:
                self._state.put(name, a.row[mine], rows)
            else:
                self._state.write(name, rows)
            self._minutes.add(int(minute))

    def expire(self, log_time_ms: int) -> None:
        """Drops the minutes whose windows have all passed: whatever comes for them now is late before it is known."""
        passed = {minute for minute in self._minutes if minute * MINUTE_MS <= log_time_ms}
        for minute in passed:
            self._state.drop(f"answered/{minute}")
        self._minutes -= passed
        if passed and len(self) > 4096:
            live = sum(len(self._state[f"answered/{minute}"]) for minute in self._minutes)
            if live < len(self) // 2:
                self._rebuild(2 * live)


def _answers(room: int) -> Answers:
    size = 1 << int(np.ceil(np.log2(2 * room)))
    return Answers(
        np.full(size, _EMPTY, np.int32),
        np.zeros(room, np.uint64),
        np.zeros(room, np.uint64),
        np.zeros(room),
        np.zeros(room, np.int64),
        np.zeros(room, np.int64),
        np.zeros(room, np.uint8),
        np.zeros(1, np.int64),
    )
